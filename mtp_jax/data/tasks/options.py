"""Reads `data.options`, the settings of a synthetic source, into a dataclass of the source's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from mtp_jax.config import nearest

Options = TypeVar("Options")
_TRUE, _FALSE = ("true", "True", "1"), ("false", "False", "0")


def _boolean(text: str) -> bool:
    """Returns what a text says of a field that is true or false."""
    if text not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text in _TRUE


_READ: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "bool": _boolean}


def read_options(kind: type[Options], text: str, where: str) -> Options:
    """Returns the settings that a text such as "operations=5,pause=0" has.

    Args:
      kind: a frozen dataclass whose fields are int, float, str or bool and have defaults; its method `validate`, where
        it has one, raises ValueError for values that make no sense.
      text: settings with commas between them; those left out are as by default.
      where: the source's name, for messages.

    Raises:
      ValueError: a setting is unknown (with the nearest known one), given twice, or of the wrong type.
    """
    fields = {field.name: getattr(field.type, "__name__", str(field.type))
              for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        told = f"data.options={text!r} of data.source={where!r}"
        if not equals:
            raise ValueError(f"{told}: {part!r} is not of the form name=value.")
        if name not in fields:
            raise ValueError(f"{told} has no setting {name!r}.{nearest(name, list(fields))}")
        if name in found:
            raise ValueError(f"{told} gives {name} twice: leave one out.")
        try:
            found[name] = _READ[fields[name]](value)
        except ValueError as error:
            raise ValueError(f"{told}: {name}={value!r} must be of type {fields[name]}.") from error
    options = kind(**found)
    check = getattr(options, "validate", None)
    if check is not None:
        check()
    return options


def write_options(options: Any) -> str:
    """Returns the text that `read_options` reads these settings from, those at their default left out."""
    return ",".join(f"{field.name}={getattr(options, field.name)}" for field in dataclasses.fields(options)
                    if getattr(options, field.name) != field.default)
