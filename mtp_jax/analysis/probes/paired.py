"""Statistics of the same problems under two conditions: McNemar's test, Holm's correction, bootstrap of a ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.intervals import bootstrap

CONFIDENCE = 0.95


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> tuple[int, int, float]:
    """Returns McNemar's test, exact and two-sided, of whether two conditions have the same accuracy.

    Args:
      first: whether each problem was solved under one condition.
      second: whether it was under the other.

    Returns:
      How many only the first solved, how many only the second, and p: how likely a split at least as uneven is where
      either is as likely. 1 where they solved the same.

    Raises:
      ValueError: the two differ in number, or there is none.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"{first.size} problems cannot be paired with {second.size}.")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    number, less = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(number, count) for count in range(less + 1))
    return only_first, only_second, min(1.0, float(2 * tail / 2**number))  # of whole numbers: exact until here


def holm(p: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p, in the order given: below 0.05 in at most 5 % of families without any effect."""
    found, worst = [0.0] * len(p), 0.0
    for rank, number in enumerate(sorted(range(len(p)), key=lambda number: p[number])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[number]))
        found[number] = worst
    return found


def add_holm(cells: Sequence[Mapping[str, Any]]) -> None:
    """Writes Holm's adjusted p beside p, as "p_holm", into the differences of accuracy of all cells of a file."""
    for rule in ("accuracy", "lenient_accuracy"):
        tested = [cell[rule]["difference"] for cell in cells if "difference" in cell.get(rule, {})]
        for difference, adjusted in zip(tested, holm([difference["p"] for difference in tested])):
            difference["p_holm"] = adjusted


def mean_over(total: np.ndarray, count: np.ndarray, *, seed: int = 0) -> dict[str, Any] | None:
    """Returns a mean over tokens, with its bootstrap interval over problems; None where there is no token.

    Args:
      total: of each problem, summed over its tokens.
      count: tokens of each problem.
      seed: of the bootstrap.
    """
    there = count > 0
    if not there.any():
        return None
    return {"mean": float(total[there].sum() / count[there].sum()),
            "interval": list(bootstrap(total[there] / count[there], weights=count[there], confidence=CONFIDENCE,
                                       seed=seed))}
