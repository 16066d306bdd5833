# Raises what loops and generators take for their end, and what handlers of Exception let through.
def answer(n):
    raise [StopIteration, GeneratorExit, KeyboardInterrupt][n % 3]
