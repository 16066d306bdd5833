"""Intervals of a fit's parameters: runs are drawn with replacement, and the law is fitted again to each draw.

A run is drawn whole: points along one run are no independent measurements. Draws whose runs are too few to tell the
parameters are kept, for without them intervals hold the truth less often (docs/scaling.md), and counted. Each refit
begins at the fit and minimises the same objective by damped Gauss-Newton steps on re-weighted squares, all draws at
once.
"""

from __future__ import annotations

import numpy as np

from mtp_jax.analysis.scaling.counting import enough
from mtp_jax.analysis.scaling.fit import Fit
from mtp_jax.analysis.scaling.laws import get_law
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.problem import Problem, huber, make

STEPS = 80
DONE = 1e-7  # share of the objective by which a step must lower it
RELAX = 1.5  # re-weighting takes steps that are too short; up to twice as long they still lower the objective
FEW = 10  # runs; with fewer the intervals are too narrow
HELD = "27 to 37"  # of benchmarks.scaling_coverage --four_runs, by parameter
_AT_ONCE = 2**22  # slopes held at once: 32 MB


def resample(fit: Fit, points: Points, *, draws: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns {parameter: values [draws]} of refits to runs drawn with replacement; a fixed parameter keeps its value.

    Args:
      fit: of these points; refits begin there.
      points: that were fitted.
      draws: refits.
      seed: of the draws.

    Raises:
      ValueError: there are fewer than two runs, or no draws.
    """
    counts, run = _drawn(points, draws, seed)
    problem = make(get_law(fit.law), points, fit.fixed, delta=fit.delta)
    at_once = max(1, _AT_ONCE // (len(points) * len(problem.free)))
    start = problem.search(fit.values)
    ends = np.concatenate([refit(problem, start, counts[i:i + at_once, run].astype(float))
                           for i in range(0, draws, at_once)])
    return problem.columns(ends)


def doubts(fit: Fit, points: Points, *, draws: int = 200, seed: int = 0) -> tuple[str, ...]:
    """Returns what is to be said against the intervals that `resample` gives with the same arguments.

    Args:
      fit: of these points.
      points: that were fitted.
      draws: refits.
      seed: of the draws.

    Raises:
      ValueError: as `resample`.
    """
    counts, _ = _drawn(points, draws, seed)
    runs, lines = counts.shape[1], []
    if runs < FEW:
        lines.append(f"{runs} runs: the intervals are too narrow; on synthetic grids of 4 runs those of 95 % held the "
                     f"truth in {HELD} of 40 draws.")
    short = 1 - float(enough(get_law(fit.law), points, fit.fixed, counts).mean())
    if short > 0:
        lines.append(f"{short:.1%} of the resamples have too few different runs to tell all parameters: there the "
                     "intervals say little.")
    return tuple(lines)


def _drawn(points: Points, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each draw has each run, [draws, runs], and the place of each point's run."""
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1.")
    runs, run = np.unique(points["run"], return_inverse=True)
    if len(runs) < 2:
        raise ValueError(f"Intervals resample runs, and the points are of {len(runs)}, {runs[0]}: add runs, or do "
                         "without intervals (draws of 0).")
    random = np.random.default_rng(seed)
    return random.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=draws), run


def bootstrap(fit: Fit, points: Points, *, draws: int = 200, confidence: float = 0.95,
              seed: int = 0) -> dict[str, tuple[float, float]]:
    """Returns {parameter: (low, high)} of the free parameters: percentile intervals over runs.

    Args:
      fit: of these points.
      points: that were fitted.
      draws: refits; the ends of an interval of 0.95 need some hundreds.
      confidence: share of the refits that an interval holds.
      seed: of the draws.

    Raises:
      ValueError: as `resample`, or the confidence is no share.
    """
    found = resample(fit, points, draws=draws, seed=seed)
    return {name: interval(found[name], confidence) for name in fit.free}


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the ends between which `confidence` of the values lie, as much on each side.

    Raises:
      ValueError: the confidence is no share.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1.")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def refit(problem: Problem, start: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the search coordinates [S, P] of the least weighted sum of Huber that is reached from one start.

    Args:
      problem: what is fitted.
      start: search coordinates, [P].
      weights: of the points in each refit, [S, points].
    """
    at = np.tile(start, (len(weights), 1))
    damping = np.full(len(at), 1e-3)
    residuals, slopes = problem.residuals(at)
    values = (weights * huber(residuals, problem.delta)).sum(axis=1)
    open_ = np.arange(len(at))
    for _ in range(STEPS):
        weight = weights[open_] * np.minimum(1.0, problem.delta / np.maximum(np.abs(residuals), 1e-300))
        slope = (slopes * (weight * residuals)[:, None]).sum(axis=2)
        matrix = (slopes * weight[:, None]) @ slopes.transpose(0, 2, 1)
        step = _step(matrix, slope, at[open_], problem, damping[open_])
        tried = np.clip(at[open_] + RELAX * step, problem.low, problem.high)
        new_residuals, new_slopes = problem.residuals(tried)
        new = (weights[open_] * huber(new_residuals, problem.delta)).sum(axis=1)
        lower = new < values[open_]
        gain = np.where(lower, values[open_] - new, 0.0)
        at[open_[lower]] = tried[lower]
        residuals = np.where(lower[:, None], new_residuals, residuals)
        slopes = np.where(lower[:, None, None], new_slopes, slopes)
        values[open_] = np.minimum(values[open_], new)
        damping[open_] = np.where(lower, np.maximum(damping[open_] / 5, 1e-9), damping[open_] * 10)
        going = np.where(lower, gain > DONE * values[open_], damping[open_] < 1e6)
        open_, residuals, slopes = open_[going], residuals[going], slopes[going]
        if not len(open_):
            break
    return at


def _step(matrix: np.ndarray, slope: np.ndarray, at: np.ndarray, problem: Problem, damping: np.ndarray) -> np.ndarray:
    """Returns the damped Gauss-Newton step [S, P]; a coordinate pushed out of its range stays."""
    held = ((at <= problem.low) & (slope > 0)) | ((at >= problem.high) & (slope < 0))
    free = ~held
    size = np.maximum(np.einsum("spp->sp", matrix), 1e-14 * np.einsum("spp->s", matrix)[:, None] + 1e-300)
    scale = np.where(free, 1 / np.sqrt(size), 0.0)
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    diagonal = np.where(free, damping[:, None] + 1e-12, 1.0)
    solved = np.linalg.solve(scaled + diagonal[:, :, None] * np.eye(at.shape[1]), (-slope * scale)[:, :, None])
    return solved[:, :, 0] * scale

