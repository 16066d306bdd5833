# Raises errors whose texts, names and classes are programs.
class Meta(type):
    @property
    def __name__(cls):
        return ["passed"]

    def mro(cls):
        return [cls, *BaseException.__mro__]


class Evil(BaseException, metaclass=Meta):
    __class__ = property(lambda self: AssertionError)

    def __str__(self):
        return "x" * 10**9

    __repr__ = __str__

    def __getattribute__(self, name):
        raise self


class Silent(Exception):
    def __str__(self):
        raise SystemExit(0)


def answer(n):
    raise [Evil(), Silent(), ValueError("passed\n" * 10**7, "\ud800"), KeyboardInterrupt()][n % 4]
