# Prints without end.
def answer(n):
    while True:
        print("passed" * 10000)
