"""The grid of a sweep: axes such as config.model.num_heads=1,2,4, and the product of their values."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

_OPEN, _CLOSE = "([{", ")]}"
_FIELD = re.compile(r"config(\.[A-Za-z_]\w*)+")


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field and the values that it takes.

    Attributes:
      field: dotted, as in --config.PATH: "model.num_heads", or an experiment's own parameter such as "size".
      values: as --config.PATH=VALUE takes them.
    """

    field: str
    values: tuple[str, ...]


def parse_grid(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Reads the axes of a grid.

    Axes are parted by semicolons, values by commas. Commas and semicolons inside quotes or brackets part nothing, and
    quotes around a whole value are taken off: config.data.path='',"a,b" has an empty value and one with a comma.

    Args:
      texts: each of one axis or several.

    Returns:
      The axes, in order; at least one.

    Raises:
      ValueError: a text that is no grid, an axis without values, or a field or value that comes twice.
    """
    axes: dict[str, Axis] = {}
    for text in texts:
        for part in split(text, ";"):
            axis = _axis(part, text)
            if axis.field in axes:
                raise ValueError(f"--grid has two axes of config.{axis.field}: write all its values in one.")
            axes[axis.field] = axis
    if not axes:
        raise ValueError("--grid is empty: name a field and its values, as in --grid='config.model.num_heads=1,2,4'.")
    return tuple(axes.values())


def combinations(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Returns {field: value} of each cell of the product; the last axis changes fastest."""
    return [dict(zip([axis.field for axis in axes], values))
            for values in itertools.product(*(axis.values for axis in axes))]


def split(text: str, separator: str) -> list[str]:
    """Returns the pieces of a text between separators that stand outside quotes and brackets, stripped of spaces.

    Raises:
      ValueError: a quote or bracket is not closed, or closed without being opened.
    """
    pieces, start, quote, closing = [], 0, "", []
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPEN:
            closing.append(_CLOSE[_OPEN.index(letter)])
        elif letter in _CLOSE:
            if not closing or closing.pop() != letter:
                raise ValueError(f"{text!r}: {letter!r} closes no bracket that was opened; quote a value that holds "
                                 "single brackets.")
        elif letter == separator and not closing:
            pieces.append(text[start:place])
            start = place + 1
    if quote or closing:
        raise ValueError(f"{text!r}: {quote or closing[-1]} is missing; quotes and brackets come in pairs.")
    return [piece.strip() for piece in (*pieces, text[start:])]


def unquote(value: str) -> str:
    """Returns a value without the quotes around it, if it has any."""
    quoted = len(value) > 1 and value[0] in "'\"" and value.find(value[0], 1) == len(value) - 1
    return value[1:-1] if quoted else value


def _axis(part: str, text: str) -> Axis:
    """Returns the axis that `part` of the grid `text` says."""
    name, equals, values = part.partition("=")
    name = name.strip()
    if not equals or not _FIELD.fullmatch(name):
        hint = f" Did you mean config.{name}?" if equals and _FIELD.fullmatch(f"config.{name}") else ""
        raise ValueError(f"--grid={text!r}: {part!r} is no axis; write config.PATH=VALUE,VALUE,... and a semicolon "
                         f"between axes.{hint}")
    pieces = split(values, ",")
    if pieces == [""]:
        raise ValueError(f"--grid: {name} has no values; write them after the =, as in {name}=1,2. An empty text is "
                         "written ''.")
    if "" in pieces:
        raise ValueError(f"--grid={part!r} has nothing between two commas; an empty text is written ''.")
    found = tuple(map(unquote, pieces))
    twice = sorted({value for value in found if found.count(value) > 1})
    if twice:
        raise ValueError(f"--grid: {name} has the value {twice[0]} twice; name each value once.")
    return Axis(name.removeprefix("config."), found)
