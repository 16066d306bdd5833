"""How many different sizes, tokens, heads and loops a law needs for its parameters, whatever the losses are.

A term of N is a curve over the values of N that the points have: L values are L numbers, of which one is told from the
other terms only as part of the constant E. So L - 1 numbers must fix the term's free parameters: three values of T
cannot fix C, t3 and gamma. A power of n or T (kappa, psi, phi) needs two values. What is the same all along each run,
such as N, is told by the runs that differ in it alone: without E, as many of them as the terms of it have parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from mtp_jax.analysis.scaling.laws import Column, Law, Term
from mtp_jax.analysis.scaling.points import Points

SIZES = ("N", "N_rec", "D")  # too few of them are refused; too few n, T or loops are told
_POWERS = {"phi": "T", "kappa": "n", "psi": "n"}  # {a power: the column whose values tell it}


@dataclasses.dataclass(frozen=True, eq=False)
class Need:
    """Parameters, and the different values that must be there to tell them.

    Attributes:
      names: of the parameters.
      columns: whose values tell them.
      keys: the place of each point's value among the different ones, [points]; -1: the point is of another group.
      needed: how many different ones are needed.
      kind: "points" (all that the law reads), "runs" (what is the same along runs), "term" (a term's own column).
      each: values that each group of a law with groups must have; without groups as `needed`.
      values: those of the column, of the group that has fewest; empty for points and runs.
      of: the group, as text.
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    keys: np.ndarray
    needed: int
    kind: str = "term"
    each: int = 0
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    of: str = ""

    @property
    def there(self) -> int:
        """How many different values there are."""
        return int(self.keys.max()) + 1

    @property
    def met(self) -> bool:
        """Tells whether there are enough."""
        return self.there >= self.needed


def needs(law: Law, points: Points, fixed: Mapping[str, float]) -> list[Need]:
    """Returns all that a law, bound to the points, needs; of a term's groups only where all together have enough."""
    free = tuple(name for name in law.parameters if name not in fixed)
    terms = list(_of_terms(law, points, fixed))
    told = {name for need in terms if not need.met and need.columns[0] not in SIZES for name in need.names}
    return [Need(free, law.columns, _places([points[name] for name in law.columns]), len(free), "points"),
            *_of_runs(law, points, fixed, told), *terms]


def enough(law: Law, points: Points, fixed: Mapping[str, float], counts: np.ndarray) -> np.ndarray:
    """Tells of each draw of the runs whether it meets what all points meet, [draws].

    Args:
      law: any.
      points: of which runs are drawn.
      fixed: {parameter: value} of what is not fitted.
      counts: how often each run is drawn, [draws, runs], runs as np.unique sorts them.
    """
    _, run = np.unique(points["run"], return_inverse=True)
    drawn, good = (counts > 0).astype(np.float64), np.ones(len(counts), bool)
    for need in needs(law.bound(points), points, fixed):
        if need.met:
            has = np.zeros((counts.shape[1], need.there))
            has[run[need.keys >= 0], need.keys[need.keys >= 0]] = 1
            good &= ((drawn @ has) > 0).sum(axis=1) >= need.needed
    return good


def _of_runs(law: Law, points: Points, fixed: Mapping[str, float], told: Collection[str]) -> Iterator[Need]:
    """Yields what the runs that differ must tell: terms of columns that are the same along each run.

    Parameters that too few n or T leave open anyhow (`told`) do not count.
    """
    _, first, run = np.unique(points["run"], return_index=True, return_inverse=True)
    same = {name for name in law.columns if np.array_equal(points[name][first][run], points[name])}
    terms = [term for term in law.terms[1:] if set(term.columns) <= same]
    names = tuple(name for term in terms for name in (*law.coefficients(term), *term.parameters)
                  if name not in fixed and name not in told)
    columns = tuple(dict.fromkeys(name for term in terms for name in term.columns))
    constants = _free(fixed, *law.coefficients(law.terms[0]))
    if names:
        groups = [points[law.group]] if law.group and law.group not in columns else []
        keys = _places([points[name] for name in columns] + groups)
        each = -(-(len(names) + len(constants)) // max(1, len(law.groups)))
        yield Need(names, columns, keys, len(names) + len(constants), "runs", each)


def _of_terms(law: Law, points: Points, fixed: Mapping[str, float]) -> Iterator[Need]:
    """Yields what each term needs of its own column, and a power of its own."""
    constant = len(_free(fixed, *law.coefficients(law.terms[0]))) > 0
    for term in law.terms[1:]:
        column = _column(term)
        own = _free(fixed, *law.coefficients(term))
        shared = tuple(name for name in _free(fixed, *term.parameters) if name not in _POWERS)
        groups = law.groups or (None,)
        values = [_values(points, law, column, group) for group in groups]
        if own or shared:  # groups share the exponent: each has as many numbers as values, less its own constant
            sizes = [points[name] for name in (("N_once", "N_rec") if column == "N_rec" else (column,))]
            total = Need((*own, *shared), (column,), _places(sizes + ([points[law.group]] if law.group else [])),
                         len(own) + len(shared) + constant * len(groups), "term",
                         -(-len((*own, *shared)) // len(groups)) + constant, min(values, key=len))
            yield total
            if total.met:
                for name, group, there in zip(law.coefficients(term), law.groups, values):
                    if name not in fixed:
                        keys = np.full(len(points), -1)
                        mask = points[law.group] == group
                        keys[mask] = _places([size[mask] for size in sizes])
                        yield Need((name,), (column,), keys, 1 + constant, "term", 1 + constant, there,
                                   f" of {law.group} {group}")
        for name in _free(fixed, *term.parameters):
            if name in _POWERS:
                found = points[_POWERS[name]]
                yield Need((name,), (_POWERS[name],), _places([found]), 2, "term", 2, np.unique(found))


def _free(fixed: Mapping[str, float], *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in fixed)


def _places(columns: list[np.ndarray]) -> np.ndarray:
    """Returns the place of each row of columns among the different rows."""
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].reshape(-1)


def _column(term: Term) -> str:
    """Returns the column over whose values a term is a curve; of a looped size, its parameters."""
    if isinstance(term.base, Column):
        return term.base.column
    return "D" if term.base is not None and term.base.unit == "D" else "N_rec"


def _values(points: Points, law: Law, column: str, group: int | None) -> np.ndarray:
    """Returns the different values of a column, in a group; of N_rec, those of sizes (N_once, N_rec)."""
    mask = np.ones(len(points), bool) if group is None else points[law.group] == group
    values = points[column][mask]
    if column == "N_rec":  # the size is both, and one of them may stay the same
        both = np.unique(np.stack([points["N_once"][mask], values]), axis=1)
        return both.sum(axis=0)
    return np.unique(values)
