# Returns a list in a list in a list, and one that holds itself.
import sys

sys.setrecursionlimit(10**9)


def answer(n):
    value = []
    for _ in range(10**5):
        value = [value]
    if n % 2:
        value.append(value)
    return value
