"""What the checks of all settings share: messages that name the field, its value and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Returns ` Did you mean "x"?` for the candidate closest to `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f' Did you mean "{found[0]}"?' if found else ""


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not one of {sorted(choices)}.{nearest(str(value), choices)}")


def check_positive(section: str, config: Any, *names: str, minimum: float = 1) -> None:
    """Raises ValueError where a field of `config` is below `minimum`, or not finite."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{section}.{name}={value} must be at least {minimum}, and finite.")


def check_seed(section: str, config: Any) -> None:
    """Raises ValueError where the seed of `config` is not one that every random generator takes."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"{section}.seed={config.seed} must lie in [0, 2**32).")
