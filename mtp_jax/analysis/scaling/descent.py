"""L-BFGS within ranges, from many starts at once: each step is one array operation over all that are not done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MEMORY = 12  # pairs of steps and changes of the gradient
HALVINGS = 20

# (places of the starts, coordinates [S, P]) -> (objectives [S], gradients [S, P])
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def descend(objective: Objective, start: np.ndarray, low: np.ndarray, high: np.ndarray, *, tolerance: float,
            steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where L-BFGS ends from each start.

    A coordinate at the end of its range whose gradient points outward is held. A start is done when a step lowers its
    objective by no more than `tolerance` times max(objective, 1), or no step lowers it.

    Args:
      objective: takes the places [S] of the starts that are not done, and their coordinates [S, P].
      start: coordinates, [S, P], inside the ranges.
      low: least coordinates, [P].
      high: greatest.
      tolerance: relative, below which a start is done.
      steps: at most.

    Returns:
      Objectives [S] and coordinates [S, P].
    """
    at = start.copy()
    values, slopes = objective(np.arange(len(at)), at)
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    open_ = np.arange(len(at))
    for _ in range(steps):
        if not len(open_):
            break
        x, value, slope = at[open_], values[open_], slopes[open_]
        held = ((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0))
        downhill = np.where(held, 0.0, slope)
        direction = np.where(held, 0.0, -_two_loops(downhill, [(s[open_], y[open_], r[open_]) for s, y, r in pairs]))
        uphill = (direction * downhill).sum(axis=1) >= 0
        direction[uphill] = -downhill[uphill]
        length = np.ones(len(open_))
        if not pairs or uphill.any():
            size = np.sqrt((downhill**2).sum(axis=1))
            first = np.minimum(1.0, 1 / np.maximum(size, 1e-300))
            length = np.where(uphill | (not pairs), first, 1.0)
        new, new_value, new_slope = x.copy(), value.copy(), slope.copy()
        trying = np.arange(len(open_))
        for _ in range(HALVINGS):
            tried = np.clip(x[trying] + length[trying, None] * direction[trying], low, high)
            found, found_slope = objective(open_[trying], tried)
            lower = found <= value[trying] + 1e-4 * (slope[trying] * (tried - x[trying])).sum(axis=1)
            taken = trying[lower]
            new[taken], new_value[taken], new_slope[taken] = tried[lower], found[lower], found_slope[lower]
            trying = trying[~lower]
            if not len(trying):
                break
            length[trying] /= 2
        step, change = np.zeros_like(at), np.zeros_like(at)
        step[open_], change[open_] = new - x, np.where(held, 0.0, new_slope - slope)
        curvature = (step * change).sum(axis=1)
        kept = curvature > 1e-12 * np.sqrt((step**2).sum(axis=1) * (change**2).sum(axis=1))
        pairs = [*pairs, (step, change, np.where(kept, 1 / np.where(kept, curvature, 1.0), 0.0))][-MEMORY:]
        at[open_], values[open_], slopes[open_] = new, new_value, new_slope
        open_ = open_[value - new_value > tolerance * np.maximum(np.abs(value), 1.0)]
    return values, at


def _two_loops(slope: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns the inverse Hessian that the pairs tell, times the gradient; a pair with factor 0 is left out."""
    found, shares = slope.copy(), []
    for step, change, factor in reversed(pairs):
        shares.append(factor * (step * found).sum(axis=1))
        found -= shares[-1][:, None] * change
    scale = np.ones(len(slope))
    for step, change, factor in pairs:  # the latest pair that counts says how long a step is
        scale = np.where(factor > 0, (step * change).sum(axis=1) / np.maximum((change**2).sum(axis=1), 1e-300), scale)
    found *= scale[:, None]
    for (step, change, factor), share in zip(pairs, reversed(shares)):
        found += (share - factor * (change * found).sum(axis=1))[:, None] * step
    return found
