"""A fitted law with all that is said of it: intervals, quality on points that it saw and did not, predictions."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.analysis.scaling.bootstrap import doubts, interval, resample
from mtp_jax.analysis.scaling.figure import short
from mtp_jax.analysis.scaling.fit import Fit, fit
from mtp_jax.analysis.scaling.identify import flat
from mtp_jax.analysis.scaling.laws import Law, get_law
from mtp_jax.analysis.scaling.measures import measures
from mtp_jax.analysis.scaling.optimal import optimal
from mtp_jax.analysis.scaling.points import COLUMNS, TEXT, Points
from mtp_jax.analysis.scaling.problem import make
from mtp_jax.config import check_choice
from mtp_jax.files import replace

FORMAT = "mtp_jax scaling law 1"  # of the file
SAME = 1e-4  # share by which the objectives of two methods may differ and still be the same optimum
AGREE = 1e-3  # share of the loss by which the predictions of two methods may differ on the fitted points


@dataclasses.dataclass(frozen=True)
class Result:
    """A law fitted to points.

    Attributes:
      fit: the values that are told; of two methods, which minimise the same, those of the lower objective.
      other: by the other method; None: it was not asked for.
      points: those that were fitted and those held out.
      held_out: mask of the latter.
      draws: {parameter: values [resamples]} of fits to resampled runs; empty: there are no intervals.
      confidence: share of the draws that an interval holds.
      source: what was asked for, to be told.
    """

    fit: Fit
    other: Fit | None
    points: Points
    held_out: np.ndarray
    draws: Mapping[str, np.ndarray]
    confidence: float
    source: Mapping[str, Any]

    @property
    def law(self) -> Law:
        return get_law(self.fit.law)

    @property
    def fitted(self) -> Points:
        """The points that the fit saw."""
        return self.points.select(~self.held_out)

    def predict(self, points: Points) -> np.ndarray:
        """Returns the law's loss of each point, nats."""
        return self.law.predict(self.fit.values, points)

    def predict_draws(self, points: Points) -> np.ndarray:
        """Returns the losses that each resample's fit gives the points, [resamples, points]."""
        found = [self.law.predict(values, points) for values in self.draw_values()]
        return np.stack(found) if found else np.zeros((0, len(points)))

    def draw_values(self) -> list[dict[str, float]]:
        """Returns {parameter: value} of each resample's fit."""
        count = len(next(iter(self.draws.values()), ()))
        return [{name: float(values[i]) for name, values in self.draws.items()} for i in range(count)]

    def interval(self, draws: np.ndarray) -> tuple[float, float] | None:
        """Returns the ends between which `confidence` of the draws lie; None where there are none."""
        return interval(draws, self.confidence) if len(draws) else None

    def quality(self) -> dict[str, dict[str, float]]:
        """Returns {"fitted": measures, "held out": measures}; the latter only where points were held out."""
        found = {"fitted": measures(self.fit, self.fitted)}
        if self.held_out.any():
            found["held out"] = measures(self.fit, self.points.select(self.held_out))
        return found

    def disagreement(self) -> float | None:
        """Returns the largest share of the loss by which the methods differ on the fitted points; None: one method."""
        if self.other is None:
            return None
        first, second = (self.law.predict(each.values, self.fitted) for each in (self.fit, self.other))
        return float(np.max(np.abs(first / second - 1)))


def analyse(law: Law, points: Points, *, held_out: np.ndarray | None = None,
            fixed: Mapping[str, float] | None = None, methods: Sequence[str] = ("huber", "projection"),
            draws: int = 200, confidence: float = 0.95, seed: int = 0,
            source: Mapping[str, Any] | None = None, warnings: Sequence[str] = ()) -> Result:
    """Fits a law by one or two methods, with intervals over runs.

    Args:
      law: any of LAWS.
      points: all of them.
      held_out: mask of those that the fit is not to see.
      fixed: {parameter: value} that is not fitted.
      methods: of `fit`; of two, the one that finds the lower objective is told, the first where they agree.
      draws: resamples of the runs; 0: no intervals.
      confidence: share of the draws that an interval holds.
      seed: of starts and resamples.
      source: kept in the result.
      warnings: told before the fit's own.

    Raises:
      ValueError: the points do not suffice for the law.
    """
    mask = np.zeros(len(points), bool) if held_out is None else held_out
    seen = points.select(~mask)
    fits = [fit(law, seen, method=method, fixed=dict(fixed or {}), seed=seed) for method in methods]
    least = min(one.objective for one in fits)
    fits.sort(key=lambda one: one.objective > (1 + SAME) * least)
    found = resample(fits[0], seen, draws=draws, seed=seed) if draws else {}
    fits[0] = dataclasses.replace(fits[0], warnings=(*warnings, *fits[0].warnings))
    if draws:
        more = (*flat(make(law, seen, fixed), found), *doubts(fits[0], seen, draws=draws, seed=seed))
        fits[0] = dataclasses.replace(fits[0], warnings=(*fits[0].warnings, *more))
    return Result(fits[0], fits[1] if len(fits) > 1 else None, points, mask, found, confidence, dict(source or {}))


def write(result: Result, path: epath.PathLike) -> epath.Path:
    """Writes a result as JSON, points and draws included, and returns the path."""
    intervals = {name: result.interval(values) for name, values in result.draws.items()}
    values = {"format": FORMAT, "law": result.fit.law, "formula": result.law.formula, "source": dict(result.source),
              "fit": result.fit.to_json(), "other": result.other.to_json() if result.other else None,
              "disagreement": result.disagreement(), "confidence": result.confidence, "intervals": intervals,
              "quality": result.quality(), "draws": {name: list(map(float, own)) for name, own in result.draws.items()},
              "points": {name: own.tolist() for name, own in result.points.columns.items()},
              "held_out": result.held_out.tolist()}
    return replace(epath.Path(path), (json.dumps(_plain(values), allow_nan=False) + "\n").encode())


def _plain(values: Any) -> Any:
    """Returns values with null for numbers that are not finite, which JSON does not have (R^2 of one point)."""
    if isinstance(values, Mapping):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def read(path: epath.PathLike) -> Result:
    """Returns what `write` wrote.

    Raises:
      ValueError: the file is missing, or is not such a file.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(f"--fit={path} is not a file: write it with python -m mtp_jax.scaling fit --out={path}.")
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}")
        return Result(Fit.from_json(values["fit"]), Fit.from_json(values["other"]) if values["other"] else None,
                      Points({name: np.asarray(own) for name, own in values["points"].items()}),
                      np.asarray(values["held_out"], bool),
                      {name: np.asarray(own, np.float64) for name, own in values["draws"].items()},
                      values["confidence"], values["source"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--fit={path} cannot be read ({error}): write it anew with python -m mtp_jax.scaling fit "
                         f"--out={path}.") from error


def lines(result: Result) -> list[str]:
    """Returns what is printed of a result: the law, its parameters, how good it is, warnings."""
    fitted = result.fitted
    along = ", along runs" if fitted.along_runs() else ""
    held = f"; {result.held_out.sum()} points held out" if result.held_out.any() else ""
    found = [f"{result.fit.law}: loss = {result.law.formula}",
             f"Fitted to {len(fitted)} points of {len(fitted.runs)} runs{along}{held}. N {_range(fitted['N'])}, "
             f"D {_range(fitted['D'])}, loss {fitted['loss'].min():.3f} to {fitted['loss'].max():.3f} nats.", ""]
    found += table(result) + [""] + quality_table(result) + [""]
    difference = result.disagreement()
    if result.other is not None and difference is not None:
        verb = "predict the same" if difference <= AGREE else "DISAGREE"
        found.append(f"The methods {verb}: {result.fit.method} (objective {result.fit.objective:.6g}) and "
                     f"{result.other.method} ({result.other.objective:.6g}) predict losses that differ by "
                     f"{f'at most {difference:.2%}' if difference >= 1e-4 else 'less than 0.01%'}.")
        if differing(result):
            found.append(f"Yet they differ in {', '.join(differing(result))}, by more than a tenth or beyond the "
                         "interval: other values predict these points as well.")
    else:
        found.append(f"Method: {result.fit.method}, objective {result.fit.objective:.6g}.")
    return found + [f"warning: {text}" for text in result.fit.warnings]


def differing(result: Result) -> list[str]:
    """Returns the names of the parameters that the other method finds outside of the interval, or a tenth away."""
    names = []
    for name in result.fit.free if result.other else ():
        one, two = result.fit.values[name], result.other.values[name]  # type: ignore[union-attr]
        ends = result.interval(np.asarray(result.draws[name])) if name in result.draws else None
        outside = ends is not None and not ends[0] <= two <= ends[1] and abs(one - two) > AGREE * abs(one)
        if outside or abs(one - two) > 0.1 * max(abs(one), abs(two)):
            names.append(name)
    return names


def table(result: Result) -> list[str]:
    """Returns the parameters as a table: value, interval, the other method's value."""
    rows = [["parameter", "value", *([f"{result.confidence:.0%} interval"] if result.draws else []),
             *([result.other.method] if result.other else [])]]
    for name, value in result.fit.values.items():
        row = [name, f"{value:.5g}" + (" (fixed)" if name in result.fit.fixed else "")]
        if result.draws:
            ends = None if name in result.fit.fixed else result.interval(np.asarray(result.draws[name]))
            row.append(f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "")
        rows.append(row + ([f"{result.other.values[name]:.5g}"] if result.other else []))
    return _align(rows)


def quality_table(result: Result) -> list[str]:
    """Returns how good the law is on fitted and on held-out points, as a table."""
    rows = [["points", "", "R^2", "RMSE, nats", "worst error, last half"]]
    counts = {"fitted": len(result.fitted), "held out": int(result.held_out.sum())}
    for name, found in result.quality().items():
        # Of one point there is no R^2, and of runs with one point no last half.
        r2, rmse, worst = ("-" if np.isnan(found[key]) else f"{found[key]:.4f}"
                           for key in ("r2", "rmse", "worst_last_half"))
        rows.append([name, str(counts[name]), r2, rmse, worst])
    return _align(rows)


def prediction_lines(result: Result, at: Mapping[str, float]) -> list[str]:
    """Returns what is printed of one prediction.

    Args:
      result: of `read`.
      at: {column: value} of what is to be predicted.

    Raises:
      ValueError: a column is unknown, or the law reads one that is not given.
    """
    point = one_point(result.law, at)
    told = ", ".join(f"{name} = {short(value)}" for name, value in at.items())
    return [f"{told}: {_loss(result, point)}", *_beyond(result, point, at)]


def optimal_lines(result: Result, flops: float, at: Mapping[str, float]) -> list[str]:
    """Returns what is printed of the best N and D for a budget.

    Args:
      result: of `read`.
      flops: the budget of training.
      at: n, T and head, where the law reads them.

    Raises:
      ValueError: another column is given, or the law gains nothing from N or from D.
    """
    for name, value in at.items():
        check_choice("--at", name, ("n", "T", "head"))
        if value != int(value):
            raise ValueError(f"--at={name}={value:g} must be a whole number.")
    options: dict[str, Any] = {name: int(value) for name, value in at.items()}
    looped, note = {"T", "loop"} & set(result.law.columns), []
    if looped and "N_rec" in result.fitted.columns:  # iso_depth knows no other parameters than these two
        whole = (result.fitted["N_rec"] + result.fitted["N_once"] if "N_once" in result.law.columns
                 else result.fitted["N"])
        options["recurrent"] = float(np.median(np.minimum(result.fitted["N_rec"] / whole, 1.0)))
    elif looped and at.get("T", 1) > 1:
        note = ["note: the points have no N_rec: all of N is taken to be run T times."]
    N, D = optimal(result.fit, flops, **options)
    share, drawn = options.get("recurrent", 1.0), []
    point = one_point(result.law, {**at, "N": N, "D": D, "N_rec": share * N, "N_once": (1 - share) * N})
    for values in result.draw_values():
        try:
            drawn.append(optimal(dataclasses.replace(result.fit, values=values), flops, **options))
        except ValueError:  # a resample that gains nothing from N or D; how many is told
            continue
    sides = []
    for place, (name, value) in enumerate((("N", N), ("D", D))):
        ends = result.interval(np.asarray([pair[place] for pair in drawn]))
        sides.append(f"{name} = {short(value)}" + (f" ({short(ends[0])} to {short(ends[1])})" if ends else ""))
    told = "".join(f", {name} = {value:g}" for name, value in at.items())
    lost = len(result.draw_values()) - len(drawn)
    note += [f"note: in {lost} of {lost + len(drawn)} resamples the law gains nothing from N or from D; the intervals "
            "are of the others."] if lost else []
    return [f"{flops:.3g} FLOPs{told}: {', '.join(sides)}, {D / N:.3g} tokens a parameter; {_loss(result, point)}",
            *note, *_beyond(result, point, at)]


def one_point(law: Law, at: Mapping[str, float]) -> Points:
    """Returns a point to be predicted; n, head and T are 1 and N is N_once + N_rec where they are not given."""
    for name in at:
        check_choice("--at", name, [column for column in COLUMNS if column not in (*TEXT, "loss")])
    values = {**{name: 1.0 for name in ("n", "head", "T")}, **at}
    if {"N_rec", "N_once"} <= at.keys():
        values.setdefault("N", at["N_rec"] + at["N_once"])
    values.setdefault("loop", values["T"])
    missing = [name for name in dict.fromkeys((*law.columns, "N", "D")) if name not in values]
    if missing:
        raise ValueError(f"{law.name} reads {', '.join(law.columns)}, and {', '.join(missing)} is not given: add it, "
                         f"such as --at={missing[0]}=1e9.")
    return Points({"run": np.array(["asked"]), "loss": np.ones(1), **{name: np.array([value])
                                                                     for name, value in values.items()}})


def _loss(result: Result, point: Points) -> str:
    """Returns the loss of a point with its interval."""
    text = f"loss {result.predict(point)[0]:.4f}"
    ends = result.interval(result.predict_draws(point)[:, 0])
    return text + (f" ({ends[0]:.4f} to {ends[1]:.4f}, {result.confidence:.0%} over runs)" if ends else "") + " nats"


def _beyond(result: Result, point: Points, at: Mapping[str, float]) -> list[str]:
    """Returns a note where a size, or what the law reads or was asked for, lies outside of what was measured."""
    names = [name for name in ("N", "D", "n", "T", "loop", "head")
             if name in ("N", "D", *result.law.columns) or name in at]
    beyond = [f"{name} = {short(value)} (fitted: {_range(result.fitted[name])})" for name in names
              for value in [point[name][0]] if not result.fitted[name].min() <= value <= result.fitted[name].max()]
    return [f"note: outside of what was fitted: {', '.join(beyond)}. The interval does not tell whether the law still "
            "holds there."] if beyond else []


def _range(values: np.ndarray) -> str:
    """Returns from where to where values go."""
    low, high = short(values.min()), short(values.max())
    return low if low == high else f"{low} to {high}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines with columns of one width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
