"""How well a fit predicts points: those it was fitted to, or others that were held out."""

from __future__ import annotations

import numpy as np

from mtp_jax.analysis.scaling.fit import Fit
from mtp_jax.analysis.scaling.points import Points


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
      rmse_last_half, worst_last_half: of the points past half of their run's D; a run's only point counts.
      objective: the sum of Huber of log loss.

    Raises:
      ValueError: there is no point, or a column that the law reads is missing.
    """
    if not len(points):
        raise ValueError("Measures need at least one point.")
    predicted, loss = fit.predict(points), points["loss"]
    residuals = loss - predicted
    late = residuals[last_half(points)]
    logs = np.log(loss) - np.log(predicted)
    inside = np.clip(logs, -fit.delta, fit.delta)
    return {"points": len(points), "runs": len(points.runs),
            "r2": _r2(residuals, loss), "r2_log": _r2(logs, np.log(loss)),
            "rmse": _rms(residuals), "mean_residual": float(residuals.mean()), "worst": float(np.abs(residuals).max()),
            "rmse_last_half": _rms(late), "worst_last_half": float(np.abs(late).max()),
            "objective": float((inside * (logs - inside / 2)).sum())}


def last_half(points: Points) -> np.ndarray:
    """Returns the mask of the points past half of the greatest D that their run has among these points."""
    _, run = np.unique(points["run"], return_inverse=True)
    end = np.zeros(run.max() + 1)
    np.maximum.at(end, run, points["D"])
    return points["D"] > end[run] / 2


def _r2(residuals: np.ndarray, values: np.ndarray) -> float:
    """Returns the share of the variance that is explained; nan where there is none."""
    total = ((values - values.mean())**2).sum()
    return float(1 - (residuals**2).sum() / total) if total > 0 else float("nan")


def _rms(residuals: np.ndarray) -> float:
    """Returns the root of the mean square."""
    return float(np.sqrt((residuals**2).mean()))
