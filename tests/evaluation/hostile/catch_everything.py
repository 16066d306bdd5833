# Catches whatever is thrown at it, and goes on.
def answer(n):
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue
        finally:
            continue  # noqa: B012
