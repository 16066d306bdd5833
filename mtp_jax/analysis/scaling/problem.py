"""What a fit minimises: sum over points of Huber(ln predicted - ln measured), in coordinates that condition it well.

The free parameters are searched as: logarithms of the coefficients and plain exponents, with N in units of the points'
geometric mean of N, and D of D. Everything takes a batch of parameters at once, so that many starts or resamples are
one array operation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mtp_jax.analysis.scaling.laws import Law, Term
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.config import check_choice

DELTA = 1e-3  # of Huber, on log loss: as in the Chinchilla paper
NONE = 1e-7  # a coefficient below this share of the least loss is none: reported as 0
_UNITS = {"N": "N", "N_once": "N", "N_rec": "N", "D": "D"}  # {column: whose geometric mean it is measured in}


def huber(residuals: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """Returns Huber's loss of residuals: r^2 / 2 up to delta, delta (|r| - delta / 2) past it."""
    inside = np.clip(residuals, -delta, delta)
    return inside * (residuals - inside / 2)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A law on points, with some parameters fixed.

    Attributes:
      law: bound to the points.
      x: the columns that it reads, scaled.
      log_loss: of the points.
      group: place of each point's group in the law's.
      units: {"N": ..., "D": ..., "": 1}.
      free: names of the parameters that are searched, in the law's order.
      fixed: {name: value} of the others, in plain units.
      low: least value of each free parameter, in search coordinates.
      high: greatest.
      delta: of Huber.
    """

    law: Law
    x: Mapping[str, np.ndarray]
    log_loss: np.ndarray
    group: np.ndarray
    units: Mapping[str, float]
    free: tuple[str, ...]
    fixed: Mapping[str, float]
    low: np.ndarray
    high: np.ndarray
    delta: float = DELTA

    def values(self, at: np.ndarray) -> dict[str, float]:
        """Returns {parameter: value} of all parameters in plain units, from search coordinates [P]."""
        return {name: float(many[0]) for name, many in self.columns(at[None]).items()}

    def columns(self, at: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {parameter: values [S]} in plain units, from search coordinates [S, P]."""
        powers = self._powers(at)
        found: dict[str, np.ndarray] = {}
        for term in self.law.terms:
            for name in self.law.coefficients(term):
                if name in self.free:
                    logs = at[:, self.free.index(name)]
                    plain = np.exp(logs + self._shift(term, powers)[:, 0])
                    found[name] = np.where(logs <= np.log(NONE) + self.log_loss.min(), 0.0, plain)
                else:
                    found[name] = np.full(len(at), float(self.fixed[name]))
            found |= {name: powers[name][:, 0] * self.unit(term, name) for name in term.parameters}
        return {name: found[name] for name in self.law.parameters}

    def search(self, values: Mapping[str, float]) -> np.ndarray:
        """Returns the search coordinates [P] of values in plain units, brought inside the ranges."""
        at = np.zeros(len(self.free))
        for term in self.law.terms:
            for name in (*self.law.coefficients(term), *term.parameters):
                if name not in self.free:
                    continue
                if name in term.parameters:
                    found = values[name] / self.unit(term, name)
                else:
                    shift = values[term.exponent] * np.log(self.units[term.base.unit]) if term.base else 0.0
                    found = np.log(max(values[name], 1e-300)) - shift
                at[self.free.index(name)] = found
        return np.clip(at, self.low, self.high)

    def residuals(self, at: np.ndarray, slopes: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln predicted - ln measured [S, points], and its derivatives [S, P, points] (empty without slopes).

        Args:
          at: search coordinates, [S, P].
          slopes: whether to compute the derivatives.
        """
        powers = self._powers(at)
        terms = [term.log(powers, self.x) for term in self.law.terms]
        logs = np.empty((len(terms), len(at), len(self.log_loss)))
        for place, (term, (value, _)) in enumerate(zip(self.law.terms, terms)):
            coefficients = self._logs(term, at, powers)
            logs[place] = (coefficients[:, self.group] if self.law.group else coefficients) + value
        top = logs.max(axis=0)
        total = top + np.log(np.exp(logs - top).sum(axis=0))
        if not slopes:
            return total - self.log_loss, np.zeros((len(at), 0, 0))
        jacobian = np.zeros((len(at), len(self.free), len(self.log_loss)))
        for term, share, (_, found) in zip(self.law.terms, np.exp(logs - total), terms):
            for place, name in enumerate(self.law.coefficients(term)):
                own = share * (self.group == place) if self.law.group else share
                if name in self.free:
                    jacobian[:, self.free.index(name)] = own
                elif term.base and term.exponent in self.free:  # in scaled units it moves with its exponent
                    jacobian[:, self.free.index(term.exponent)] -= own * np.log(self.units[term.base.unit])
            for name, slope in found.items():
                if name in self.free:
                    jacobian[:, self.free.index(name)] += share * slope
        return total - self.log_loss, jacobian

    def objective(self, at: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
        """Returns the sum of Huber [S] at search coordinates [S, P], with weights [S, points] of the points."""
        return (huber(self.residuals(at, slopes=False)[0], self.delta) * weights).sum(axis=-1)

    def bases(self, at: np.ndarray) -> np.ndarray:
        """Returns the terms without their coefficients, [S, terms, points], at search coordinates [S, P]."""
        powers = self._powers(at)
        found = np.empty((len(at), len(self.law.terms), len(self.log_loss)))
        for place, term in enumerate(self.law.terms):
            found[:, place] = np.exp(term.log(powers, self.x)[0])
        return found

    def held_coefficients(self, at: np.ndarray) -> np.ndarray:
        """Returns the fixed coefficients in scaled units, [S, groups, terms]; 0 for those that are free."""
        powers = self._powers(at)
        found = np.stack([np.exp(self._logs(term, at, powers)) for term in self.law.terms], axis=-1)
        names = np.asarray([self.law.coefficients(term) for term in self.law.terms]).T
        return np.where(np.isin(names, self.free), 0.0, found)

    def unit(self, term: Term, name: str) -> float:
        """Returns what a parameter of a term is measured in: an offset in its base's unit, a power in 1."""
        offset = term.base is not None and getattr(term.base, "offset", "") == name
        return self.units[term.base.unit] if term.base is not None and offset else 1.0

    def _powers(self, at: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {name: [S, 1]} of what does not enter linearly, offsets in scaled units."""
        return {name: (at[:, [self.free.index(name)]] if name in self.free
                       else np.full((len(at), 1), self.fixed[name] / self.unit(term, name)))
                for term in self.law.terms for name in term.parameters}

    def _shift(self, term: Term, powers: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns ln(coefficient in plain units) - ln(that in scaled ones), [S, 1] or [1, 1]."""
        return powers[term.exponent] * np.log(self.units[term.base.unit]) if term.base else np.zeros((1, 1))

    def _logs(self, term: Term, at: np.ndarray, powers: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the logarithms of a term's coefficients in scaled units, [S, groups]."""
        shift = self._shift(term, powers)
        names = self.law.coefficients(term)
        found = np.empty((len(at), len(names)))
        for place, name in enumerate(names):
            found[:, [place]] = (at[:, [self.free.index(name)]] if name in self.free
                                 else np.log(max(float(self.fixed[name]), 1e-300)) - shift)
        return found


def make(law: Law, points: Points, fixed: Mapping[str, float] | None = None, *, delta: float = DELTA) -> Problem:
    """Returns the problem of fitting a law to points.

    Args:
      law: any; it is bound to the points here.
      points: at least one.
      fixed: {parameter: value} in plain units, of what is not searched.
      delta: of Huber, in log loss.

    Raises:
      ValueError: a column is missing, a loss is not finite, or a fixed name is no parameter or out of range.
    """
    if not len(points):
        raise ValueError(f"{law.name}: there are no points to fit.")
    law, fixed = law.bound(points), dict(fixed or {})
    _check_losses(points)
    units = {"N": _middle(points["N"]), "D": _middle(points["D"]), "": 1.0}
    x = {name: points[name] / units[_UNITS.get(name, "")] for name in law.columns}
    problem = Problem(law, x, np.log(points["loss"]), law.group_of(points), units, (), fixed, np.zeros(0), np.zeros(0),
                      delta)
    ranges: dict[str, tuple[float, float]] = {}
    low, high = problem.log_loss.min(), problem.log_loss.max()
    for term in law.terms:
        ranges |= dict.fromkeys(law.coefficients(term), (low + np.log(NONE) - 1, high + 12.0))
    ranges |= law.nonlinear
    for name, value in fixed.items():
        check_choice(f"fixed parameter of {law.name}", name, law.parameters)
        least = -np.inf if ranges[name][0] < 0 and name in law.nonlinear else 0.0
        if not least <= value < np.inf:
            raise ValueError(f"{law.name}: {name}={value} is fixed, and must be finite and at least {least:g}.")
    free = tuple(name for name in law.parameters if name not in fixed)
    if not free:
        raise ValueError(f"{law.name}: every parameter is fixed, so that nothing is left to fit.")
    return dataclasses.replace(problem, free=free, low=np.asarray([ranges[name][0] for name in free]),
                               high=np.asarray([ranges[name][1] for name in free]))


def _middle(values: np.ndarray) -> float:
    """Returns the geometric mean."""
    return float(np.exp(np.log(values).mean()))


def _check_losses(points: Points) -> None:
    """Raises ValueError where a loss is not finite or not positive."""
    wrong = ~(np.isfinite(points["loss"]) & (points["loss"] > 0))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(f"Point {place + 1}, of run {points['run'][place]}, has the loss {points['loss'][place]}: "
                         "leave it out, for a law is fitted to the logarithms of finite losses above 0.")
