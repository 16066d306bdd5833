# Never has defined anything.
while True:
    pass


def answer(n):
    return n
