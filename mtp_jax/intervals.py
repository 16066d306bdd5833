"""Intervals around means: over problems by the bootstrap, over seeds by Student's t."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
      mean: of the values.
      low: lower end of the interval; nan where one value leaves none.
      high: upper end.
      n: values.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(values: Sequence[float] | np.ndarray, *, weights: Sequence[float] | np.ndarray | None = None,
              confidence: float = 0.9, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean.

    Args:
      values: independent ones, such as a score a problem.
      weights: of the values in the mean, drawn along with them; None: all the same.
      confidence: share of the bootstrap's means that the interval holds; the paper draws 0.9.
      draws: resamples.
      seed: of the resampling.

    Raises:
      ValueError: there is no value.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("An interval needs at least one value.")
    weights = np.ones(values.size) if weights is None else np.asarray(weights, np.float64)
    random = np.random.default_rng(seed)
    at_once = max(1, 2**22 // values.size)  # resamples: memory stays below 64 MB, however many problems there are
    means = np.concatenate([
        (values[drawn] * weights[drawn]).sum(axis=1) / weights[drawn].sum(axis=1)
        for start in range(0, draws, at_once)
        for drawn in [random.integers(0, values.size, (min(at_once, draws - start), values.size))]])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_estimate(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Returns the mean of a few values, such as one a seed, with Student's t interval.

    Args:
      values: independent, about normally distributed.
      confidence: of the interval.

    Raises:
      ValueError: there is no value.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("An interval needs at least one value.")
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))
    return Estimate(mean, mean - half, mean + half, values.size)


def paired_difference(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *,
                      confidence: float = 0.95) -> Estimate:
    """Returns the mean of a - b, pair by pair, with Student's t interval.

    Args:
      a: a value a pair, such as one a seed.
      b: the other value of each pair, in the same order.
      confidence: of the interval.

    Raises:
      ValueError: there is no pair, or the two differ in number.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} values cannot be paired with {b.size}.")
    return mean_estimate(a - b, confidence=confidence)
