"""Which parameters of a law its points identify: by counting (see `counting`), by the optimum's slopes, and by
resamples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtp_jax.analysis.scaling.counting import SIZES, needs
from mtp_jax.analysis.scaling.laws import EXPONENT, OFFSET, SIGNED, Law
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.problem import Problem

RANK = 1e-6  # singular values of the slopes below this share of the greatest are none
LOOSE = 1.0  # standard error of a coefficient's logarithm, or of a signed power, past which it is not identified
AT_END = 0.1  # share of resamples that end at the end of a range


def identify(law: Law, points: Points, fixed: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """Returns a line for each group of parameters that the points cannot identify, whatever the losses are.

    Args:
      law: any.
      points: to be fitted.
      fixed: {parameter: value} of what is not fitted.

    Raises:
      ValueError: there are too few runs for the law: fewer places than free parameters, or fewer runs that differ, N or
        D than fix the parameters of their terms; or points are not of the head that it is a law of.
    """
    law, fixed = law.bound(points), fixed or {}
    _check_heads(law, points)
    short = [need for need in needs(law, points, fixed) if not need.met]
    terms = [need for need in short if need.kind == "term"]
    for need in short:
        names, column = _listed(need.names), need.columns[0]
        open_ = [name for one in terms for name in one.names if name in need.names] or need.names
        blame = f"Not identified: {', '.join(dict.fromkeys(open_))}."
        if need.kind == "points":
            unit = "runs" if len(points.runs) == len(points) else "points"
            raise ValueError(f"Too few {unit} for {law.name}: its {need.needed} free parameters "
                             f"({', '.join(need.names)}) need at least {need.needed} {unit} that differ in "
                             f"{_listed(need.columns, 'or')}, and there are {need.there}. {blame}")
        if need.kind == "runs":
            beside = " beside E" if need.needed > len(need.names) else ""
            raise ValueError(f"Too few runs for {law.name}: {names} need at least {need.each} runs that differ in "
                             f"{_listed(need.columns, 'or')}{beside}, and there are "
                             f"{need.there // max(1, len(law.groups))}. {blame} Add runs, or fix these parameters.")
        if column in SIZES:
            raise ValueError(f"Too few runs for {law.name}: {_told(column, need.values)}{need.of}, and {names} "
                             f"{_are(need.names)} not identified with fewer than {need.each}. Add runs of other "
                             f"{column}, or fix these parameters.")
    lines = [f"{_listed(need.names)} {_are(need.names)} not identified: {_told(need.columns[0], need.values)}"
             f"{need.of}, and {need.each} are needed. Fix {need.each - len(need.values)} of them, or add runs of other "
             f"{need.columns[0]}." for need in terms]
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


def flat(problem: Problem, draws: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns a line for each parameter that many resamples leave at the end of its range.

    Args:
      problem: what was fitted.
      draws: of `resample`, in plain units. The low end of an offset, 0, is as good a value as any.
    """
    lines = []
    for term in problem.law.terms:
        for name in (*problem.law.coefficients(term), *term.parameters):
            if name not in problem.free or name not in draws:
                continue
            values, box = draws[name] / problem.unit(term, name), problem.law.nonlinear.get(name)
            if box is None:
                at_end, told = values <= 0, "at 0"
            elif box == OFFSET:
                high = box[1] * problem.unit(term, name)
                at_end, told = values >= box[1] * (1 - 1e-9), f"at {high:.4g}, the greatest that is searched"
            else:
                at_end, told = (values <= box[0]) | (values >= box[1]), f"at an end of {box[0]:g} to {box[1]:g}"
            if np.mean(at_end) > AT_END:
                lines.append(f"{name} is not identified: {np.mean(at_end):.0%} of the resamples leave it {told}.")
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
