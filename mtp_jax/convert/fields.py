"""Fields of a foreign config file: of the right type and in range, or an error that names file, field and value."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mtp_jax.config import nearest

_MOST = 2**31 - 1  # tools keep sizes in 32 bits
_WIDEST = 1e300  # an int beyond what a float holds is refused too


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a file of JSON.

    Raises:
      ValueError: it cannot be read as an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it is no JSON object): copy it again.")
    return found


def count(fields: Mapping[str, Any], name: str, place: str, *, optional: bool = False) -> Any:
    """Returns a field that must be a whole number above 0; None where it is optional and null or missing."""
    value = fields.get(name)
    if optional and value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
        raise ValueError(f"{place}: {name}={_shown(value)} must be a whole number above 0 and below 2^31"
                         + (": correct it." if name in fields else f", and it is missing.{nearest(name, fields)}"))
    return value


def number(fields: Mapping[str, Any], name: str, place: str, *, default: float | None = None) -> float:
    """Returns a field that must be a finite number above 0; the default where it is null or missing."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < _WIDEST:
        raise ValueError(f"{place}: {name}={_shown(value)} must be a number above 0, and finite: correct it.")
    return float(value)


def switch(fields: Mapping[str, Any], name: str, place: str) -> bool:
    """Returns a field that must be true or false; false where it is null or missing."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{place}: {name}={_shown(value)} must be true or false: correct it.")
    return bool(value)


def _shown(value: Any) -> str:
    """Returns a value as the file has it, cut where it is long."""
    try:
        text = json.dumps(value)
    except ValueError:  # a number of thousands of digits
        return "(a very long number)"
    return text if len(text) <= 60 else text[:57] + "..."
