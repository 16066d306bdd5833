"""Variable projection: at fixed exponents and offsets a law is linear, so only those are searched.

Inside, the coefficients are solved for by non-negative least squares on relative residuals, with weights and residuals
brought up to date until the sum of Huber of log loss no longer falls: the same objective as `huber` minimises, and
both end at the same place. Outside, L-BFGS searches the exponents and offsets; the gradient of what the inside leaves
is that of the objective at its coefficients.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.stats import qmc

from mtp_jax.analysis.scaling.descent import descend
from mtp_jax.analysis.scaling.huber import FINISHED, scaled
from mtp_jax.analysis.scaling.problem import NONE, Problem, huber

POOL = 8  # exponents drawn for each start
SEARCHED = 4  # of so many starts one is searched from: exponents and offsets alone have few valleys
INNER = 300  # solves inside, at most
RELAX = 1.5  # a step of re-weighting is short: 1.5 times it is faster, up to twice it still lowers the objective


def solve(problem: Problem, *, starts: int = 48, seed: int = 0) -> np.ndarray:
    """Returns the search coordinates [P] of the least sum of Huber that was found.

    Args:
      problem: what is fitted.
      starts: POOL times as many exponents are tried, and the search goes on from the best SEARCHED-th part of starts.
      seed: of the draw.
    """
    place = [problem.free.index(name) for name in problem.law.nonlinear if name in problem.free]
    if not place:
        return _coordinates(problem, *_coefficients(problem, np.zeros((1, 0)), rounds=INNER))[0]
    low, high = problem.low[place], problem.high[place]
    drawn = low + (high - low) * qmc.Halton(len(place), seed=seed).random(starts * POOL)
    rough = np.concatenate([_objective(problem, *_coefficients(problem, part, rounds=3))
                            for part in np.array_split(drawn, max(1, drawn.size * len(problem.log_loss) // 2**22))])
    first = drawn[np.argsort(rough)[:max(1, starts // SEARCHED)]]
    values, ends = _search(problem, first, place, tolerance=1e-5, steps=30, rounds=10)
    ends = ends[np.argsort(values)[:FINISHED]]
    values, ends = _search(problem, ends, place, tolerance=1e-14, steps=500, rounds=INNER)
    return _coordinates(problem, *_coefficients(problem, ends[values.argmin()][None], rounds=INNER))[0]


def _search(problem: Problem, start: np.ndarray, place: list[int], *, tolerance: float, steps: int,
            rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scaled objectives [S] and the exponents and offsets [S, Q] where L-BFGS over these ends."""
    known: dict[int, np.ndarray] = {}  # coefficients that each start had last: where the next solve begins

    def objective(which: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = np.stack([known[i] for i in which.tolist()]) if known else None
        at, coefficients = _coefficients(problem, at, rounds=rounds, before=before)
        known.update(zip(which.tolist(), coefficients))
        residuals, slopes = problem.residuals(_coordinates(problem, at, coefficients))
        return scaled(problem, residuals, slopes[:, place])

    return descend(objective, start, problem.low[place], problem.high[place], tolerance=tolerance, steps=steps)


def _coefficients(problem: Problem, at: np.ndarray, *, rounds: int,
                  before: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exponents and offsets as given, [S, Q], and the best coefficients at them, [S, groups, terms].

    Args:
      problem: what is fitted.
      at: free exponents and offsets, in the law's order.
      rounds: solves at most.
      before: coefficients [S, groups, terms] to begin with; None: those of least squares on relative errors.
    """
    names = np.asarray([problem.law.coefficients(term) for term in problem.law.terms]).T  # [groups, terms]
    free = np.isin(names, problem.free)
    held = problem.held_coefficients(_place(problem, at))  # [S, groups, terms], 0 where free
    bases = problem.bases(_place(problem, at))
    members = [np.flatnonzero(problem.group == group) for group in range(len(names))]

    def solved(target: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Returns the non-negative coefficients whose sum is nearest to target [S, M], errors weighted."""
        found = held.copy()
        for group, own in enumerate(members):
            chosen = free[group]
            if chosen.any():
                columns = bases[:, chosen][:, :, own] * weights[:, None, own]
                fixed = (held[:, group, :, None] * bases[:, :, own]).sum(axis=1)
                found[:, group, chosen] = _non_negative(columns, (target[:, own] - fixed) * weights[:, own])
        return found

    def total(coefficients: np.ndarray) -> np.ndarray:
        by_point = coefficients[:, problem.group] if problem.law.group else coefficients
        if not problem.law.group:
            return np.matmul(by_point, bases)[:, 0]
        return (by_point.transpose(0, 2, 1) * bases).sum(axis=1)

    loss = np.exp(problem.log_loss)
    if before is None:
        before = solved(np.broadcast_to(loss, (len(at), len(loss))), np.broadcast_to(1 / loss, (len(at), len(loss))))
    best, least = before, np.full(len(at), np.inf)
    current = before
    relax = np.full(len(at), RELAX)
    for _ in range(rounds):
        sums = np.maximum(total(current), NONE)
        residuals = np.log(sums) - problem.log_loss
        values = huber(residuals, problem.delta).sum(axis=1)
        lower = values < least
        gain = np.where(np.isfinite(least), least - values, np.inf)
        best = np.where(lower[:, None, None], current, best)
        least = np.minimum(values, least)
        relax = np.where(lower, relax, 1.0)
        if np.all(gain <= 1e-13 * np.maximum(least, 1e-300)):
            break
        weights = np.sqrt(np.minimum(1.0, problem.delta / np.maximum(np.abs(residuals), 1e-300))) / sums
        exact = solved(sums * (1 - residuals), weights)
        current = np.maximum(current + relax[:, None, None] * (exact - current), 0.0)
    return at, best


def _non_negative(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the least-squares coefficients [S, J] that are not negative, by trying which of them are 0.

    Args:
      columns: [S, J, M], with J at most 4.
      target: [S, M].
    """
    norms = np.sqrt((columns**2).sum(axis=2)).clip(min=1e-300)
    columns = columns / norms[:, :, None]
    gram = columns @ columns.transpose(0, 2, 1)
    right = (columns * target[:, None]).sum(axis=2)
    size = gram.shape[1]
    best, least = np.zeros_like(right), np.zeros(len(right))
    open_ = np.arange(len(right))
    for kept in sorted(itertools.product((True, False), repeat=size), key=sum, reverse=True)[:-1]:
        mask = np.asarray(kept, float)
        matrix = gram[open_] * np.outer(mask, mask) + np.diag(1 - mask + 1e-13)
        found = np.linalg.solve(matrix, (right[open_] * mask)[:, :, None])[:, :, 0]
        value = -(found * right[open_]).sum(axis=1)
        better = (found >= 0).all(axis=1) & (value < least[open_])
        best[open_[better]], least[open_[better]] = found[better], value[better]
        if all(kept):
            open_ = open_[~better]  # where all are positive, this is the answer
        if not len(open_):
            break
    return best / norms


def _place(problem: Problem, at: np.ndarray) -> np.ndarray:
    """Returns search coordinates [S, P] with these exponents and offsets, and coefficients of 1."""
    place = [problem.free.index(name) for name in problem.law.nonlinear if name in problem.free]
    found = np.zeros((len(at), len(problem.free)))
    found[:, place] = at
    return found


def _coordinates(problem: Problem, at: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Returns search coordinates [S, P] of exponents and offsets with coefficients [S, groups, terms]."""
    found = _place(problem, at)
    for term_place, term in enumerate(problem.law.terms):
        for group, name in enumerate(problem.law.coefficients(term)):
            if name in problem.free:
                found[:, problem.free.index(name)] = np.log(np.maximum(coefficients[:, group, term_place], 1e-300))
    return np.clip(found, problem.low, problem.high)


def _objective(problem: Problem, at: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Returns the sum of Huber [S]."""
    return problem.objective(_coordinates(problem, at, coefficients))
