"""How well a fit predicts points: those it was fitted to, or others that were held out."""

from __future__ import annotations

import numpy as np

from mtp_jax.analysis.scaling.fit import Fit
from mtp_jax.analysis.scaling.points import Points, last_half
from mtp_jax.analysis.scaling.problem import huber


def measures(fit: Fit, points: Points) -> dict[str, float]:
    """Returns how far predictions lie from measured losses; residuals are measured minus predicted, in nats.

    Args:
      fit: of any law.
      points: fitted or held out; each kind belongs in a call of its own, for R^2 over both hides the second.

    Returns:
      points, runs: how many.
      r2: 1 - residual over total sum of squares of the loss, around these points' own mean; nan where all are equal.
      r2_log: the same of log loss.
      rmse, mean_residual, worst: of the residuals; worst is the greatest size.
      rmse_last_half, worst_last_half: of the points past half of their run's D; nan where each run has one point, for
        then they are those of all points.
      objective: the sum of Huber of log loss.

    Raises:
      ValueError: there is no point, or a column that the law reads is missing.
    """
    if not len(points):
        raise ValueError("Measures need at least one point.")
    predicted, loss = fit.predict(points), points["loss"]
    residuals = loss - predicted
    late = residuals[last_half(points)] if points.along_runs() else np.full(1, np.nan)
    logs = np.log(loss) - np.log(predicted)
    return {"points": len(points), "runs": len(points.runs),
            "r2": r_squared(loss, predicted), "r2_log": r_squared(np.log(loss), np.log(predicted)),
            "rmse": _rms(residuals), "mean_residual": float(residuals.mean()), "worst": float(np.abs(residuals).max()),
            "rmse_last_half": _rms(late), "worst_last_half": float(np.abs(late).max()),
            "objective": float(huber(logs, fit.delta).sum())}


def r_squared(real: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None) -> float:
    """Returns 1 - residual over total sum of squares; nan where all values are equal.

    Args:
      real: what was measured, [points].
      predicted: the same, predicted.
      group: the place of each point's group, from 0 on; the total is around each group's mean. None: all are one.
    """
    group = np.zeros(len(real), int) if group is None else group
    mean = np.bincount(group, real) / np.maximum(np.bincount(group), 1)
    total = ((real - mean[group])**2).sum()
    return float(1 - ((real - predicted)**2).sum() / total) if total > 0 else float("nan")


def _rms(residuals: np.ndarray) -> float:
    """Returns the root of the mean square."""
    return float(np.sqrt((residuals**2).mean()))
