"""Order and split of a corpus, decided by names and the seed alone.

Neither depends on contents, on the order in which a file system lists files, or on a random generator's version: names
are sorted by a hash of seed and name. A file that is edited stays on its side of the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def derived_seed(seed: int, purpose: str) -> int:
    """Returns a number below 2**32 for one use of `seed`, so that uses do not repeat one another's draws."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:4], "big")


def name_digest(name: str, *, seed: int, purpose: str) -> bytes:
    """Returns the SHA-256 of a name, of which `seed` and `purpose` have one each."""
    return hashlib.sha256(f"{purpose}:{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def shuffled_names(names: Iterable[str], *, seed: int, purpose: str) -> list[str]:
    """Returns the names in an order that looks random and depends on nothing but them, `seed` and `purpose`."""
    return sorted(names, key=lambda name: (name_digest(name, seed=seed, purpose=purpose), name))


def is_held_out(group: str, *, threshold: int, seed: int) -> bool:
    """Tells whether a group is held out, by itself; `split_groups` takes the groups in the same order.

    Args:
      group: its name.
      threshold: of `split_threshold`.
      seed: of the draw.
    """
    return _place(group, seed) < threshold


def split_threshold(groups: Iterable[str] | None, *, fraction: float, seed: int) -> int:
    """Returns what lets `is_held_out` decide on each group by itself, as `split_groups` would on all together.

    Args:
      groups: names of all groups; None where they are not known: each is then held out with probability `fraction`.
      fraction: share of groups held out, between 0 and 1.
      seed: of the draw.
    """
    if groups is None or len(known := set(groups)) < 2:
        return int(fraction * 2**64)
    training, _ = split_groups(sorted(known), fraction=fraction, seed=seed)
    return min(_place(group, seed) for group in training)


def _place(group: str, seed: int) -> int:
    """Returns where a group stands in the order that the first are held out of, a number below 2**64."""
    return int.from_bytes(name_digest(group, seed=seed, purpose="split")[:8], "big")


def split_groups(groups: Sequence[str], *, fraction: float, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Splits file groups into training and validation, at least one in each.

    Args:
      groups: names of the groups; repeats count once.
      fraction: share of groups held out, between 0 and 1.
      seed: of the draw.

    Returns:
      (training groups, validation groups), disjoint, together all of `groups`.

    Raises:
      ValueError: there are fewer than two groups.
    """
    order = shuffled_names(set(groups), seed=seed, purpose="split")
    if len(order) < 2:
        raise ValueError(f"a split by file needs two files or more, got {len(order)}.")
    held_out = min(max(round(fraction * len(order)), 1), len(order) - 1)
    return frozenset(order[held_out:]), frozenset(order[:held_out])
