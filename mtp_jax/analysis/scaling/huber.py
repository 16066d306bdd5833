"""Approach 3: L-BFGS from many starts over all parameters at once, with coefficients as logarithms.

The objective is the sum over points, times 1e5: with the mean, or without the factor, L-BFGS stops far from the
optimum at its usual tolerances, which is how the printed Chinchilla coefficients came about.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import qmc

from mtp_jax.analysis.scaling.descent import descend
from mtp_jax.analysis.scaling.problem import Problem, huber

SCALE = 1e5
POOL = 16  # drawn for each start, which is the best of them
FINISHED = 4  # of the ends, the best, which are carried on to the last digit


def starts_of(problem: Problem, count: int, *, seed: int = 0) -> np.ndarray:
    """Returns search coordinates to start from, [count, P]: of POOL quasi-random ones each, the best.

    Coefficients are drawn between e^-6 of the least loss and e^2 of the greatest: at the points' middle a term is no
    larger than the loss.

    Args:
      problem: what is fitted.
      count: starts.
      seed: of the draw.
    """
    linear = np.isin(problem.free, problem.law.linear)
    low = np.where(linear, problem.log_loss.min() - 6.0, problem.low)
    high = np.where(linear, problem.log_loss.max() + 2.0, problem.high)
    drawn = low + (high - low) * qmc.Halton(len(low), seed=seed).random(count * POOL)
    at_once = max(1, 2**22 // len(problem.log_loss))
    objectives = np.concatenate([problem.objective(drawn[i:i + at_once]) for i in range(0, len(drawn), at_once)])
    best = objectives.reshape(count, POOL).argmin(axis=1)
    return drawn.reshape(count, POOL, -1)[np.arange(count), best]


def solve(problem: Problem, *, starts: int = 48, seed: int = 0, extra: np.ndarray | None = None) -> np.ndarray:
    """Returns the search coordinates [P] of the least sum of Huber that was found.

    Args:
      problem: what is fitted.
      starts: of L-BFGS.
      seed: of the starts.
      extra: search coordinates [any, P] to start from as well.
    """
    first = starts_of(problem, starts, seed=seed)
    if extra is not None:
        first = np.concatenate([extra, first])
    values, ends = _descend(problem, first, tolerance=1e-6, steps=200)
    values, ends = _descend(problem, ends[np.argsort(values)[:FINISHED]], tolerance=1e-14, steps=5000)
    return ends[values.argmin()]


def scaled(problem: Problem, residuals: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum of Huber times SCALE [S] and its gradient [S, P], from residuals and slopes [S, P, points]."""
    inside = np.clip(residuals, -problem.delta, problem.delta)
    return SCALE * huber(residuals, problem.delta).sum(axis=1), SCALE * (slopes * inside[:, None]).sum(axis=2)


def _descend(problem: Problem, start: np.ndarray, *, tolerance: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scaled objectives [S] and the coordinates [S, P] where L-BFGS ends."""
    def objective(_: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return scaled(problem, *problem.residuals(at))

    return descend(objective, start, problem.low, problem.high, tolerance=tolerance, steps=steps)
