"""How values pass between the checker and a program: as data only, so that nothing of a program's runs in the checker.

A value that is data (numbers, strings, lists, dictionaries, ... and instances of their subclasses, as the plain type)
is copied. Anything else stays where it is and a number stands for it. JSON carries it; loaded by path, as kernel.py is.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import json
import os
import struct
from collections.abc import Callable, KeysView
from typing import Any

_SMALL = 1 << 63
_KINDS: tuple[type, ...] = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
_TYPES = {kind.__name__: kind for kind in _KINDS}
_SEQUENCES: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset, "q": collections.deque}
_DATES = {kind.__name__: kind for kind in (datetime.datetime, datetime.date, datetime.time)}


class Ended(BaseException):
    """The other side is gone."""


class NotData(TypeError):
    """A value that can be neither copied nor referred to."""


def encode(value: Any, refer: Callable[[Any], int]) -> Any:
    """Returns a value as JSON can hold it.

    Args:
      value: anything.
      refer: object -> the number that stands for it, asked for what is no data; may raise NotData.
    """
    if value is None or value is True or value is False or type(value) is str:
        return value
    if type(value) is float:
        return ["f", value.hex()]
    if isinstance(value, int):
        number = int.__index__(value)
        if isinstance(value, bool):
            return bool(number)
        return number if -_SMALL < number < _SMALL else ["i", hex(number)]  # digits of large numbers are limited
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return ["f", float.hex(value)]
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [name, *(encode(item, refer) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        name = "o" if isinstance(value, collections.OrderedDict) else "d"
        return [name, *([encode(key, refer), encode(item, refer)] for key, item in dict.items(value))]
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return ["n", value.__name__]
    return _encode_rare(value, refer)


def _encode_rare(value: Any, refer: Callable[[Any], int]) -> Any:
    """Does the rest of encode."""
    if isinstance(value, complex):
        return ["c", value.real.hex(), value.imag.hex()]
    if isinstance(value, (bytes, bytearray)):
        return ["b" if isinstance(value, bytes) else "y", bytes(value).hex()]
    if type(value) is range:
        return ["r", *(encode(part, refer) for part in (value.start, value.stop, value.step))]
    if type(value) is decimal.Decimal:
        return ["m", str(value)]
    if type(value) is fractions.Fraction:
        return ["v", encode(value.numerator, refer), encode(value.denominator, refer)]
    if type(value) in _DATES.values():
        return ["w", type(value).__name__, value.isoformat()]
    if type(value) is datetime.timedelta:
        return ["k", value.days, value.seconds, value.microseconds]
    if isinstance(value, KeysView):
        return ["s", *(encode(key, refer) for key in value)]
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "shape", None) == ():
        return encode(value.item(), refer)  # a scalar: equal to the number it holds
    return ["h", refer(value)]


def decode(tree: Any, find: Callable[[int], Any]) -> Any:
    """Returns the value that encode wrote.

    Args:
      tree: from JSON; may come from a hostile program.
      find: number -> what it stands for.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(tree, list):
        if isinstance(tree, (dict, float)):
            raise ValueError("not a value")
        return tree
    name, *parts = tree
    if name in _SEQUENCES:
        return _SEQUENCES[name]([decode(part, find) for part in parts])
    if name in ("d", "o"):
        pairs = [(decode(key, find), decode(value, find)) for key, value in parts]
        return collections.OrderedDict(pairs) if name == "o" else dict(pairs)
    if name == "f":
        return float.fromhex(parts[0])
    if name == "i":
        return int(parts[0], 16)
    if name == "h":
        return find(int(parts[0]))
    if name == "n":
        return _TYPES[parts[0]]
    if name == "c":
        return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
    if name in ("b", "y"):
        return (bytes if name == "b" else bytearray).fromhex(parts[0])
    if name == "r":
        return range(*(decode(part, find) for part in parts))
    if name == "m":
        return decimal.Decimal(parts[0])
    if name == "v":
        above, below = (decode(part, find) for part in parts)
        if type(above) is not int or type(below) is not int:
            raise ValueError("not a value")  # Fraction would call what else it gets
        return fractions.Fraction(above, below)
    if name == "w":
        return _DATES[parts[0]].fromisoformat(parts[1])
    if name == "k":
        return datetime.timedelta(*parts)
    raise ValueError("not a value")


def send(place: int, message: Any) -> None:
    """Writes one message to a descriptor.

    Raises:
      Ended: nobody reads there.
    """
    # Escaped, two halves of a pair that stand apart would come back as one character.
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    view = memoryview(struct.pack("<Q", len(data)) + data)
    try:
        while view:
            view = view[os.write(place, view):]
    except BrokenPipeError:
        raise Ended from None


def receive(place: int, limit: int) -> Any:
    """Reads one message from a descriptor; never a byte beyond it.

    Args:
      place: the descriptor.
      limit: bytes that a message may have.

    Raises:
      Ended: nobody writes there.
      ValueError: it is larger, or no message.
    """
    size = struct.unpack("<Q", _exactly(place, 8))[0]
    if size > limit:
        raise ValueError(f"a message of {size} bytes, over the limit of {limit}")
    return json.loads(_exactly(place, size))


def _exactly(place: int, size: int) -> bytes:
    """Reads so many bytes."""
    parts = []
    while size:
        part = os.read(place, min(size, 1 << 20))
        if not part:
            raise Ended
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
