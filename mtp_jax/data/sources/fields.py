"""What the sources of records share: finding `data.field` in a record, and saying that it is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtp_jax.config import DataConfig, nearest

SHOWN = 16  # fields that a message lists


def look_up(record: Mapping[str, Any], field: str) -> Any:
    """Returns the value of a field; "a.b" is the field of that name, or else b of what stands under a.

    Raises:
      KeyError: there is none.
    """
    if field in record:
        return record[field]
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(field)
        value = value[part]
    return value


def names_of(record: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the names of all fields, those inside others as "a.b"."""
    found: list[str] = []
    for name, value in record.items():
        found += names_of(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return found


def missing(config: DataConfig, place: str, names: Sequence[str]) -> ValueError:
    """Returns the error of a record, or a file of records, that has other fields than `config.field`."""
    shown = ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
    other = "" if config.source == "tfds" else ", or leave this file out by a glob in data.path"
    return ValueError(f"{place} has no data.field={config.field!r}, but {shown or 'no field at all'}."
                      f"{nearest(config.field, names)} Set data.field to the one that holds the text{other}.")


def no_string(config: DataConfig, place: str, kind: str) -> ValueError:
    """Returns the error of a field that holds something else than text."""
    return ValueError(f"{place} has {kind}, no string, as data.field={config.field!r}: set data.field to one that "
                      "holds text.")
