"""Which parameters of a law its points identify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtp_jax.analysis.scaling.laws import Law
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.problem import Problem


def identify(law: Law, points: Points, fixed: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """Returns a line for each group of parameters that the points do not identify."""
    law, fixed = law.bound(points), fixed or {}
    free = [name for name in law.parameters if name not in fixed]
    rows = np.unique(np.stack([points[name] for name in law.columns]), axis=1).shape[1]
    if rows < len(free):
        raise ValueError(f"{law.name} has {len(free)} free parameters, {', '.join(free)}, and the points differ in "
                         f"{rows} places of {', '.join(law.columns)}: at least {len(free)} are needed.")
    return ()


def at_optimum(problem: Problem, at: np.ndarray, told: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns a line for each parameter that the optimum shows not to be identified."""
    return ()
