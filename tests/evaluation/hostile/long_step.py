# Spends its time in one step that no handler of signals interrupts.
def answer(n):
    return sum(range(10**12))
