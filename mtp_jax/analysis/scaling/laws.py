"""Scaling laws: a loss as a sum of terms, each a coefficient over a power of sizes, tokens, loops or heads.

    chinchilla     E + A / N^alpha + B / D^beta
    looped_total   E + A / (N + t1)^alpha + B / (D + t2)^beta + C / (T + t3)^gamma
    looped_step    the same in the number of the loop whose loss it is; for each T apart
    iso_depth      E + A / (N_once + T^phi N_rec)^alpha + B / D^beta
    per_head       E_k + A_k / N^alpha + B_k / D^beta for head k; for each n apart
    head_one       E + A n^kappa / N^alpha + B / (D n^psi)^beta; head 1's loss

N in parameters, D in tokens, losses in nats. Coefficients are never negative; at fixed exponents and offsets every law
is linear in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mtp_jax.analysis.scaling.points import Points
from mtp_jax.config import check_choice

Slopes = dict[str, np.ndarray]  # {parameter: derivative}

# Where parameters are searched. Offsets are in units of the points' geometric mean (of T and loop: in loops).
EXPONENT, OFFSET, SIGNED = (0.01, 3.0), (0.0, 10.0), (-3.0, 3.0)


# What a term has a power of: the columns that it reads, its own parameters with the ranges in which they are searched,
# its unit ("N", "D" or none), and its logarithm [..., points] with the derivatives of that.
@dataclasses.dataclass(frozen=True)
class Column:
    """A column, plus an offset if one is named: N, or N + t1."""

    column: str
    unit: str = ""
    offset: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        return {self.offset: OFFSET} if self.offset else {}

    def log(self, at: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Slopes]:
        shifted = x[self.column] + (at[self.offset] if self.offset else 0.0)
        return np.log(shifted), ({self.offset: 1 / shifted} if self.offset else {})


@dataclasses.dataclass(frozen=True)
class LoopedSize:
    """N_once + T^phi N_rec: what a trunk that runs T times is worth in parameters of one that runs once."""

    columns: tuple[str, ...] = ("N_once", "N_rec", "T")
    unit: str = "N"

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        return {"phi": SIGNED}

    def log(self, at: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Slopes]:
        looped = x["T"] ** at["phi"] * x["N_rec"]
        size = x["N_once"] + looped
        return np.log(size), {"phi": looped * np.log(x["T"]) / size}


@dataclasses.dataclass(frozen=True)
class RepeatedData:
    """D n^psi: what tokens with n targets each are worth in tokens with one."""

    columns: tuple[str, ...] = ("D", "n")
    unit: str = "D"

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        return {"psi": SIGNED}

    def log(self, at: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Slopes]:
        log_n = np.log(x["n"])
        return np.log(x["D"]) + at["psi"] * log_n, {"psi": log_n}


Base = Column | LoopedSize | RepeatedData


@dataclasses.dataclass(frozen=True)
class Term:
    """coefficient n^tax / base^exponent.

    Attributes:
      coefficient: its name; of a law with groups, of the family that has one a group.
      exponent: name of the power; empty: the term is a constant.
      base: what is raised to it.
      tax: name of the power of n; empty: none.
    """

    coefficient: str
    exponent: str = ""
    base: Base | None = None
    tax: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(self.base.columns if self.base else ()), *(("n",) if self.tax else ()))

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """{name: range in which it is searched} of what does not enter linearly."""
        return {**({self.exponent: EXPONENT} if self.exponent else {}), **(self.base.parameters if self.base else {}),
                **({self.tax: SIGNED} if self.tax else {})}

    def log(self, at: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray]) -> tuple[np.ndarray | float, Slopes]:
        """Returns the logarithm of the term without its coefficient, and its derivatives."""
        if self.base is None:
            return 0.0, {}
        power = at[self.exponent]
        log_base, slopes = self.base.log(at, x)
        value = -power * log_base
        found = {self.exponent: -log_base, **{name: -power * slope for name, slope in slopes.items()}}
        if self.tax:
            value, found[self.tax] = value + at[self.tax] * np.log(x["n"]), np.log(x["n"])
        return value, found


@dataclasses.dataclass(frozen=True)
class Law:
    """A loss as a sum of terms.

    Attributes:
      name: as in LAWS.
      formula: as text.
      terms: the summands.
      group: a column, each of whose values has coefficients of its own (E_1, E_2, ...); empty: none.
      groups: the values of that column; empty until the law is `bound` to points.
      heads: the only values of the column head that it is a law of; empty: any.
    """

    name: str
    formula: str
    terms: tuple[Term, ...]
    group: str = ""
    groups: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the points that it reads, without the loss."""
        names = [name for term in self.terms for name in term.columns]
        return tuple(dict.fromkeys([*names, *([self.group] if self.group else [])]))

    @property
    def linear(self) -> tuple[str, ...]:
        """Names of the coefficients, term by term, and within a term group by group."""
        return tuple(name for term in self.terms for name in self.coefficients(term))

    @property
    def nonlinear(self) -> dict[str, tuple[float, float]]:
        """{name: range in which it is searched} of exponents, offsets and powers."""
        return {name: box for term in self.terms for name, box in term.parameters.items()}

    @property
    def parameters(self) -> tuple[str, ...]:
        """All names: coefficients, then the others."""
        return (*self.linear, *self.nonlinear)

    def coefficients(self, term: Term) -> tuple[str, ...]:
        """Returns the names of a term's coefficients, one a group."""
        if not self.group:
            return (term.coefficient,)
        return tuple(f"{term.coefficient}_{group}" for group in self.groups)

    def bound(self, points: Points) -> Law:
        """Returns the law with the groups that the points have; of a law without groups, the law."""
        if not self.group:
            return self
        return dataclasses.replace(self, groups=tuple(int(k) for k in np.unique(points[self.group])))

    def of_values(self, values: Mapping[str, float]) -> Law:
        """Returns the law with the groups that the names of values tell.

        Raises:
          ValueError: a parameter is missing or unknown.
        """
        law = self
        if self.group:
            first = self.terms[0].coefficient + "_"
            groups = sorted(int(name.removeprefix(first)) for name in values
                            if name.startswith(first) and name.removeprefix(first).isdigit())
            law = dataclasses.replace(self, groups=tuple(groups))
        for name in values:
            check_choice(f"parameter of {self.name}", name, law.parameters)
        missing = [name for name in law.parameters if name not in values]
        if missing or not law.parameters or self.group and not law.groups:
            raise ValueError(f"{self.name} has no value for {', '.join(missing) or self.terms[0].coefficient}: it "
                             f"needs {', '.join(law.parameters)}.")
        return law

    def group_of(self, points: Points) -> np.ndarray:
        """Returns the place of each point's group in `groups`; zeros where the law has none.

        Raises:
          ValueError: a point's group is none of the law's.
        """
        if not self.group:
            return np.zeros(len(points), int)
        place = np.searchsorted(self.groups, points[self.group]).clip(max=len(self.groups) - 1)
        other = np.asarray(self.groups)[place] != points[self.group]
        if other.any():
            raise ValueError(f"The fit of {self.name} has no coefficients for {self.group} "
                             f"{points[self.group][other][0]:g}; it has {', '.join(map(str, self.groups))}.")
        return place

    def predict(self, values: Mapping[str, float], points: Points) -> np.ndarray:
        """Returns the loss that the law gives each point, [points], in nats.

        Args:
          values: {parameter: value}, all of them, in plain units.
          points: what the law's columns are read from.

        Raises:
          ValueError: a parameter is missing or unknown, a column is missing, or a head has no coefficients.
        """
        law = self.of_values(values)
        group = law.group_of(points)
        at = {name: np.asarray(values[name], np.float64) for name in law.nonlinear}
        x = {name: points[name] for name in law.columns}
        total = np.zeros(len(points))
        for term in law.terms:
            coefficients = np.asarray([values[name] for name in law.coefficients(term)])
            total += coefficients[group] * np.exp(term.log(at, x)[0])
        return total


_CONSTANT = Term("E")
_LOOPED = (_CONSTANT, Term("A", "alpha", Column("N", "N", "t1")), Term("B", "beta", Column("D", "D", "t2")))
_CHINCHILLA = (_CONSTANT, Term("A", "alpha", Column("N", "N")), Term("B", "beta", Column("D", "D")))

LAWS: dict[str, Law] = {law.name: law for law in (
    Law("chinchilla", "E + A / N^alpha + B / D^beta", _CHINCHILLA),
    Law("looped_total", "E + A / (N + t1)^alpha + B / (D + t2)^beta + C / (T + t3)^gamma",
        (*_LOOPED, Term("C", "gamma", Column("T", "", "t3")))),
    Law("looped_step", "E + A / (N + t1)^alpha + B / (D + t2)^beta + C / (loop + t3)^gamma",
        (*_LOOPED, Term("C", "gamma", Column("loop", "", "t3")))),
    Law("iso_depth", "E + A / (N_once + T^phi N_rec)^alpha + B / D^beta",
        (_CONSTANT, Term("A", "alpha", LoopedSize()), Term("B", "beta", Column("D", "D")))),
    Law("per_head", "E_k + A_k / N^alpha + B_k / D^beta", _CHINCHILLA, group="head"),
    Law("head_one", "E + A n^kappa / N^alpha + B / (D n^psi)^beta",
        (_CONSTANT, Term("A", "alpha", Column("N", "N"), tax="kappa"), Term("B", "beta", RepeatedData())),
        heads=(1,)),
)}


def get_law(name: str) -> Law:
    """Returns the law of a name.

    Raises:
      ValueError: there is none; the nearest name is suggested.
    """
    check_choice("law", name, LAWS)
    return LAWS[name]


def rebuild_total(values: Mapping[str, float], points: Points, gate: Sequence[float]) -> np.ndarray:
    """Returns sum_t q(t) L_step(N, D, t): the expected loss of a looped model from the law of its loops, [points].

    The entropy of the gate is left out, as in the source. With a fixed gate the loops' term is one constant.

    Args:
      values: of a fit of looped_step.
      points: N and D are read.
      gate: q, the mean share of tokens that exit at each loop; sums to 1.

    Raises:
      ValueError: the shares are negative or do not sum to 1.
    """
    return _mixture(get_law("looped_step"), values, points, "loop", dict(enumerate(_shares("gate", gate), start=1)))


def rebuild_heads(values: Mapping[str, float], points: Points, weights: Mapping[int, float]) -> np.ndarray:
    """Returns sum_k w_k L_k(N, D): the training loss of all heads from the law of each, [points].

    Args:
      values: of a fit of per_head.
      points: N and D are read.
      weights: {head k: its weight in the loss}.

    Raises:
      ValueError: a head has no coefficients.
    """
    return _mixture(get_law("per_head"), values, points, "head", weights)


def _mixture(law: Law, values: Mapping[str, float], points: Points, column: str,
             weights: Mapping[int, float]) -> np.ndarray:
    """Returns the weighted sum of a law's losses over values of one column."""
    total = np.zeros(len(points))
    for place, weight in weights.items():
        at = dataclasses.replace(points, columns={**points.columns, column: np.full(len(points), float(place))})
        total += weight * law.predict(values, at)
    return total


def _shares(name: str, shares: Sequence[float]) -> np.ndarray:
    """Returns shares that sum to 1, checked; printed ones are rounded, so they are brought to exactly 1."""
    found = np.asarray(shares, np.float64)
    if found.ndim != 1 or not found.size or not (found >= 0).all() or abs(found.sum() - 1) > 0.01:
        raise ValueError(f"{name}={list(shares)} must be shares of at least 0 that sum to 1, one a loop.")
    return found / found.sum()
