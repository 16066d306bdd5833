"""The best sizes for a budget: N and D that give the least loss with 6 N D FLOPs, or 6 (N_once + T N_rec) D if looped.

At given heads and loops, a law without offsets is E + A' / N^alpha + B' / D^beta, and has a closed form; one with
offsets is searched over N.
"""

from __future__ import annotations

import math

import numpy as np

from mtp_jax.analysis.scaling.fit import Fit
from mtp_jax.analysis.scaling.laws import Law, get_law
from mtp_jax.analysis.scaling.points import Points

FLOPS = 6.0  # a parameter and token, forward and backward
_FINER, _GRID = 8, 129  # rounds and places of the search over ln N


def optimal(fit: Fit, flops: float, *, n: int = 1, T: int = 1, head: int = 1,
            recurrent: float = 1.0) -> tuple[float, float]:
    """Returns the N (parameters) and D (tokens) of least loss for a budget.

    Closed form: N = G (c / f)^a and D = (c / f)^b / G, with c the budget, f the FLOPs a parameter and token,
    a = beta / (alpha + beta), b = 1 - a, and G = (alpha A' / (beta B'))^(1 / (alpha + beta)).

    Args:
      fit: of any law.
      flops: the budget of training.
      n: prediction heads, where the law reads n.
      T: times that the trunk is run, where the law reads T or loop; it multiplies the FLOPs, and the loss is that of
        the last loop.
      head: whose loss it is, where the law reads head.
      recurrent: share of N that is run T times.

    Raises:
      ValueError: the budget or a setting is out of range, or the law gains nothing from N or from D.
    """
    if not 0 < flops < math.inf:
        raise ValueError(f"flops={flops} must be a budget above 0.")
    if n < 1 or T < 1 or not 0 <= recurrent <= 1:
        raise ValueError(f"n={n} and T={T} must be at least 1, and recurrent={recurrent} must lie between 0 and 1.")
    law, values = get_law(fit.law).of_values(fit.values), fit.values
    looped = {"T", "loop"} & set(law.columns)
    spend = flops / (FLOPS * (1 - recurrent + T * recurrent if looped else 1.0))  # N times D
    one = _points(np.ones(1), np.ones(1), n, T, head, recurrent)
    law.group_of(one)
    scaled = {name: _at_one(fit, law, one, name) for name in ("A", "B")}
    alpha, beta = values["alpha"], values["beta"]
    for name, power, what in (("A", alpha, "N"), ("B", beta, "D")):
        if scaled[name] <= 0 or power <= 0:
            raise ValueError(f"This fit of {fit.law} has {name}={_coefficient(law, fit, name, head):g} and the "
                             f"exponent {power:g}: it gains nothing from {what}, so no budget has a best N and D.")
    if any(values.get(name, 0.0) for name in ("t1", "t2")):
        size = _searched(fit, spend, (n, T, head, recurrent))
    else:
        log_g = math.log(alpha * scaled["A"] / (beta * scaled["B"])) / (alpha + beta)
        size = math.exp(log_g + beta / (alpha + beta) * math.log(spend))
    return size, spend / size


def _searched(fit: Fit, spend: float, setting: tuple[int, int, int, float]) -> float:
    """Returns the N of least loss with N D = spend, on a grid of ln N that closes in."""
    low, high = 0.0, math.log(spend)
    if high <= 0:
        raise ValueError(f"The budget allows {spend:g} parameters times tokens, less than one of each.")
    for _ in range(_FINER):
        logs = np.linspace(low, high, _GRID)
        losses = fit.predict(_points(np.exp(logs), spend / np.exp(logs), *setting))
        best = int(losses.argmin())
        low, high = logs[max(best - 1, 0)], logs[min(best + 1, _GRID - 1)]
    return float(np.exp((low + high) / 2))


def _points(size: np.ndarray, tokens: np.ndarray, n: int, T: int, head: int, recurrent: float) -> Points:
    """Returns points of these sizes; their losses, which nothing reads, are 1."""
    ones = np.ones(len(size))
    return Points({"run": np.full(len(size), "wanted"), "N": size, "D": tokens, "loss": ones, "n": n * ones,
                   "head": head * ones, "T": T * ones, "loop": T * ones,
                   "N_rec": recurrent * size, "N_once": (1 - recurrent) * size})


def _at_one(fit: Fit, law: Law, one: Points, name: str) -> float:
    """Returns the term of A or B at N = D = 1, without offsets: A' or B'."""
    term = next(term for term in law.terms if term.coefficient == name)
    at = {key: np.asarray(0.0 if key in ("t1", "t2") else fit.values[key]) for key in term.parameters}
    return _coefficient(law, fit, name, int(one["head"][0])) * float(np.exp(term.log(at, one.columns)[0])[0])


def _coefficient(law: Law, fit: Fit, name: str, head: int) -> float:
    """Returns the value of a coefficient, of a law with groups that of the head."""
    return fit.values[f"{name}_{head}" if law.group else name]
