# Never returns.
def answer(n):
    while True:
        pass
