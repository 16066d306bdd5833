"""Fits a scaling law to points: approach 3 or variable projection, which minimise the same and must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtp_jax.analysis.scaling import huber, projection
from mtp_jax.analysis.scaling.identify import at_optimum, identify
from mtp_jax.analysis.scaling.laws import Law, get_law
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.problem import DELTA, make
from mtp_jax.config import check_choice

METHODS = ("huber", "projection")
STARTS = 48


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with the values of its parameters.

    Attributes:
      law: its name.
      values: {parameter: value}, all of them, in plain units: parameters, tokens, nats.
      objective: the sum over points of Huber(ln predicted - ln measured).
      method: "huber" or "projection".
      fixed: {parameter: value} of those that were not fitted.
      points: how many were fitted.
      runs: how many runs these are of.
      delta: of Huber.
      warnings: a line for each group of parameters that the points do not identify, with the reason.
    """

    law: str
    values: Mapping[str, float]
    objective: float
    method: str = "huber"
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    points: int = 0
    runs: int = 0
    delta: float = DELTA
    warnings: tuple[str, ...] = ()

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the parameters that were fitted."""
        return tuple(name for name in self.values if name not in self.fixed)

    def predict(self, points: Points) -> np.ndarray:
        """Returns the loss that the law gives each point, [points], in nats."""
        return get_law(self.law).predict(self.values, points)

    def to_json(self) -> dict[str, Any]:
        """Returns it as what json writes."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Fit:
        """Returns the fit that to_json wrote; keys that are not its own are left aside.

        Raises:
          ValueError: a field or a parameter is missing.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        missing = [name for name in ("law", "values", "objective") if name not in found]
        if missing:
            raise ValueError(f"This is no fit of a scaling law: it lacks {', '.join(missing)}.")
        own = {name: value for name, value in found.items() if name in names}
        get_law(own["law"]).of_values(own["values"])
        return cls(**{**own, "warnings": tuple(own.get("warnings", ()))})


def fit(law: Law | str, points: Points, *, method: str = "huber", fixed: Mapping[str, float] | None = None,
        starts: int = STARTS, seed: int = 0, delta: float = DELTA) -> Fit:
    """Fits a law.

    Args:
      law: it, or its name.
      points: what is fitted; each counts the same.
      method: "huber": L-BFGS over all parameters. "projection": over exponents and offsets alone, with coefficients by
        non-negative least squares. Both minimise the sum of Huber of log loss.
      fixed: {parameter: value} of what is not searched, in plain units.
      starts: from which the search begins; the best end is kept.
      seed: of the starts.
      delta: of Huber: log residuals past it count linearly.

    Returns:
      The fit, with warnings about what the points do not identify.

    Raises:
      ValueError: too few runs or points, a loss that is not finite, a column that is missing, an unknown name.
    """
    law = (get_law(law) if isinstance(law, str) else law).bound(points)
    fixed = {name: float(value) for name, value in (fixed or {}).items()}
    check_choice("method", method, METHODS)
    if starts < 1:
        raise ValueError(f"starts={starts} must be at least 1.")
    problem = make(law, points, fixed, delta=delta)
    warnings = identify(law, points, fixed)
    solve = huber.solve if method == "huber" else projection.solve
    at = solve(problem, starts=starts, seed=seed)
    return Fit(law.name, problem.values(at), float(problem.objective(at[None])[0]), method, fixed, len(points),
               len(points.runs), delta, (*warnings, *at_optimum(problem, at, told=warnings)))


def fit_apart(law: Law | str, points: Points, column: str, **options: Any) -> dict[float, Fit]:
    """Returns {value of a column: fit to the points that have it}: the law of loops for each T, of heads for each n.

    Args:
      law: it, or its name.
      points: of several values of the column.
      column: such as "T" or "n".
      **options: of `fit`.
    """
    return {float(value): fit(law, points.select(points[column] == value), **options)
            for value in np.unique(points[column])}
