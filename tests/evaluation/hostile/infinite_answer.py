# Returns iterators without end, and containers that hold whatever is asked for.
import itertools


class Holds:
    def __contains__(self, item):
        return True

    def __len__(self):
        return 1

    def __getitem__(self, key):
        return key

    def __bool__(self):
        return True


def counts():
    while True:
        yield True


def answer(n):
    return [itertools.count(), counts(), Holds(), Holds, (one for one in counts()), map(bool, counts())][n - 3]
