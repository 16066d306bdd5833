"""Which parameters of a law its points identify: by counting, by the optimum's slopes, and by resamples.

Counting. A term of N is a curve over the values of N that the points have: L values are L numbers, of which one is
told from the other terms only as part of the constant E. So L - 1 numbers must fix the term's free parameters: three
values of T cannot fix C, t3 and gamma. A power of n or T (kappa, psi, phi) needs two values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtp_jax.analysis.scaling.laws import EXPONENT, OFFSET, SIGNED, Column, Law, Term
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.problem import Problem

RANK = 1e-6  # singular values of the slopes below this share of the greatest are none
LOOSE = 1.0  # standard error of a coefficient's logarithm, or of a signed power, past which it is not identified
AT_END = 0.1  # share of resamples that end at the end of a range
_SIZES = {"N": "N", "N_once": "N", "N_rec": "N", "D": "D"}
_POWERS = {"phi": "T", "kappa": "n", "psi": "n"}  # {a power: the column whose values tell it}


def identify(law: Law, points: Points, fixed: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """Returns a line for each group of parameters that the points cannot identify, whatever the losses are.

    Args:
      law: any.
      points: to be fitted.
      fixed: {parameter: value} of what is not fitted.

    Raises:
      ValueError: there are too few runs for the law: fewer places than free parameters, or a single N or D; or points
        are not of the head that it is a law of.
    """
    law, fixed = law.bound(points), fixed or {}
    _check_heads(law, points)
    free = [name for name in law.parameters if name not in fixed]
    short = list(_short_terms(law, points, fixed))
    places = np.unique(np.stack([points[name] for name in law.columns]), axis=1).shape[1]
    unit = "runs" if len(points.runs) == len(points) else "points"
    if places < len(free):
        blame = [name for names, *_ in short for name in names] or free
        raise ValueError(f"Too few {unit} for {law.name}: its {len(free)} free parameters ({', '.join(free)}) need at "
                         f"least {len(free)} {unit} that differ in {_listed(law.columns, 'or')}, and there are "
                         f"{places}. Not identified: {', '.join(dict.fromkeys(blame))}.")
    for names, column, values, needed, of in short:
        if _SIZES.get(column) and len(values) == 1:
            raise ValueError(f"Too few runs for {law.name}: {_told(column, values)}{of}, and {_listed(names)} "
                             f"{_are(names)} not identified with fewer than {needed}. Add runs of other {column}, or "
                             "fix these parameters.")
    lines = [f"{_listed(names)} {_are(names)} not identified: {_told(column, values)}{of}, and {needed} are needed. "
             f"Fix {needed - len(values)} of them, or add runs of other {column}."
             for names, column, values, needed, of in short]
    return (*lines, *_unread(law, points))


def at_optimum(problem: Problem, at: np.ndarray, told: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns a line for each parameter that the optimum shows not to be identified.

    Args:
      problem: what was fitted.
      at: search coordinates of the optimum, [P].
      told: lines of `identify`; a parameter that one begins with is not told again.
    """
    known = {name for line in told for name in line.split(" not identified")[0].replace(",", " ").split()}
    values = problem.values(at)
    lines, dead = [], set(known)
    for term in problem.law.terms:
        names = [name for name in problem.law.coefficients(term) if name in problem.free]
        none = [name for name in names if values[name] == 0]
        dead |= set(none)
        if none and len(none) == len(problem.law.coefficients(term)) and term.parameters:
            others = [name for name in term.parameters if name in problem.free]
            dead |= set(others)
            if others:
                lines.append(f"{_listed(others)} {_are(others)} not identified: {_listed(none)} "
                             f"{_are(none)} 0, so that the term does nothing.")
        elif none:
            lines.append(f"{_listed(none)} {_are(none)} 0, the end of the range that is searched.")
        for name, (low, high) in term.parameters.items():
            place = problem.free.index(name) if name in problem.free and name not in dead else None
            if place is not None and (at[place] >= high or at[place] <= low and (low, high) != OFFSET):
                dead.add(name)
                lines.append(f"{name} is not identified: it ends at {values[name]:g}, the end of the range that is "
                             "searched.")
    kept = [place for place, name in enumerate(problem.free) if name not in dead
            and not (at[place] <= problem.low[place])]
    return (*lines, *_loose(problem, at, kept)) if kept else tuple(lines)


def flat(law: Law, draws: Mapping[str, np.ndarray], fixed: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """Returns a line for each parameter that many resamples leave at the end of its range.

    Args:
      law: any.
      draws: of `resample`.
      fixed: {parameter: value} of what was not fitted.
    """
    lines = []
    for name, values in draws.items():
        box = law.nonlinear.get(name)
        if name in (fixed or {}) or box == OFFSET:
            continue
        ends, told = ((0.0,), "at 0") if box is None else (box, f"at an end of {box[0]:g} to {box[1]:g}")
        share = float(np.mean((values <= ends[0]) | (values >= ends[-1]) & (box is not None)))
        if share > AT_END:
            lines.append(f"{name} is not identified: {share:.0%} of the resamples leave it {told}.")
    return tuple(lines)


def _loose(problem: Problem, at: np.ndarray, kept: list[int]) -> Iterator[str]:
    """Yields a line for what the slopes at the optimum do not tell apart, or hold so loosely that it means nothing."""
    residuals, slopes = problem.residuals(at[None])
    slopes = slopes[0][kept]
    norms = np.sqrt((slopes**2).sum(axis=1))
    directions, sizes, _ = np.linalg.svd(slopes / np.maximum(norms, 1e-300)[:, None], full_matrices=False)
    names = [problem.free[place] for place in kept]
    none = sizes < RANK * sizes[0]
    if none.any():
        blame = np.abs(directions[:, none]).max(axis=1)
        told = [name for name, share in zip(names, blame) if share > 0.1]
        yield (f"{_listed(told)} {_are(told)} not identified: at the optimum they can be moved together without a "
               "change of the predictions.")
        return
    noise = 1.4826 * np.median(np.abs(residuals[0]))
    errors = noise * np.sqrt((directions**2 / sizes**2).sum(axis=1)) / norms
    for name, place, error in zip(names, kept, errors):
        box = problem.law.nonlinear.get(name)
        limit = LOOSE if box in (None, SIGNED) else max(float(at[place]), 0.05 if box == EXPONENT else LOOSE)
        if error > limit:
            what = f"the logarithm of {name}" if box is None else name
            yield (f"{name} is not identified: at the optimum the standard error of {what} is about "
                   f"{error * (1 if box is None else _unit(problem, name)):.2g}.")


def _short_terms(law: Law, points: Points, fixed: Mapping[str, float]
                 ) -> Iterator[tuple[list[str], str, np.ndarray, int, str]]:
    """Yields what counting shows not to be identified.

    Yields:
      (parameters, the column that should tell them, the values that it has, how many are needed, a note).
    """
    constant = 0 if all(name in fixed for name in law.coefficients(law.terms[0])) else 1
    for term in law.terms[1:]:
        column = _column(term)
        shared = [name for name in term.parameters if name not in fixed and name not in _POWERS]
        own = [name for name in law.coefficients(term) if name not in fixed]
        counts = [_values(points, law, column, group) for group in (law.groups or (None,))]
        # Heads share the exponent: each has as many numbers as values, less its own constant.
        if sum(len(values) - constant for values in counts) < len(own) + len(shared) and (own or shared):
            worst = min(counts, key=len)
            yield [*own, *shared], column, worst, _needed(len(own), len(shared), len(counts), constant), ""
        else:
            for name, group, values in zip(law.coefficients(term), law.groups, counts):
                if name not in fixed and len(values) - constant < 1:
                    yield [name], column, values, 1 + constant, f" of {law.group} {group}"
        for name in term.parameters:
            if name in _POWERS and name not in fixed and len(np.unique(points[_POWERS[name]])) < 2:
                yield [name], _POWERS[name], np.unique(points[_POWERS[name]]), 2, ""


def _needed(own: int, shared: int, groups: int, constant: int) -> int:
    """Returns how many values each group must have to fix its coefficients and the shared parameters."""
    return -(-(own + shared) // groups) + constant


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


def _unread(law: Law, points: Points) -> Iterator[str]:
    """Yields a line for each column that the law does not read although the points differ in it."""
    for name in ("n", "head", "T", "loop"):
        values = np.unique(points[name])
        along = name == "loop" and np.array_equal(points["loop"], points["T"])
        if name not in law.columns and len(values) > 1 and not along:
            yield (f"{law.name} does not read {name}, and the points have {_told(name, values)}: their losses are "
                   f"taken as if {name} did not matter. Fit each {name} apart, or take a law that reads it.")


def _check_heads(law: Law, points: Points) -> None:
    """Raises ValueError where a law is of head 1 and points are of others."""
    other = ~np.isin(points["head"], law.heads) if law.heads else np.zeros(len(points), bool)
    if other.any():
        place = int(np.argmax(other))
        raise ValueError(f"{law.name} is a law of head {_listed(list(map(str, law.heads)))}, and point {place + 1}, of "
                         f"run {points['run'][place]}, is of head {points['head'][place]:g}: leave the others out.")


def _unit(problem: Problem, name: str) -> float:
    """Returns what a parameter's search coordinate is measured in."""
    return next(problem.unit(term, name) for term in problem.law.terms if name in term.parameters)


def _told(column: str, values: np.ndarray) -> str:
    """Returns "3 values of T (2, 4, 8)"."""
    many = f"{len(values)} value{'' if len(values) == 1 else 's'} of {column}"
    shown = ", ".join(f"{value:.4g}" for value in values[:6])
    return f"{many} ({shown}{', ...' if len(values) > 6 else ''})"


def _listed(names: Sequence[str], last: str = "and") -> str:
    """Returns "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
