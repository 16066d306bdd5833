# Recurses without end: in Python, in C, in the parser.
import sys

sys.setrecursionlimit(2**31 - 1)


def answer(n):
    if n == 3:
        held = []
        for _ in range(10**6):
            held = [held]
        return repr(held)
    if n == 4:
        return eval("-" * 10**6 + "1") or eval("(" * 10**5)
    return (lambda itself: itself(itself))(lambda itself: itself(itself) + 1)
