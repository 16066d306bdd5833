"""Who holds a registered name: the rule that head kinds, schedules and sources of data share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container
from typing import Any

_HOLDERS: dict[tuple[str, str], tuple[str, str]] = {}  # (what, name) -> (file, qualified name)


def claim(what: str, name: str, registered: Container[str], thing: Callable[..., Any]) -> None:
    """Notes that `thing` is registered under `name`, where it is free or held by an earlier `thing` of the same place.

    The same place is the same file and qualified name: a module that is run by `python -m` and then imported under its
    own name registers twice, and so does a notebook's cell that is run again.

    Args:
      what: the kind of thing, for the message.
      name: what a config calls it.
      registered: the names that are taken.
      thing: a function or a class.

    Raises:
      ValueError: the name is taken by something else.
    """
    module = getattr(thing, "__module__", "")
    file = getattr(sys.modules.get(module), "__file__", None) or module  # a notebook's __main__ has no file
    holder = (file, getattr(thing, "__qualname__", ""))
    known = _HOLDERS.get((what, name), holder)
    if name in registered and known != holder:
        raise ValueError(f"{what} {name!r} is already registered by {known[1]} in {known[0]}: choose another name.")
    _HOLDERS[what, name] = holder
