# Returns what needs far more memory to read than to write.
def answer(n):
    return [range(10**12), [0] * 10**6, "x" * 10**7, 10**100000, {n: {n: range(10**15)}}][n % 5]
