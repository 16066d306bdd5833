"""Fits every law to a grid of runs over N, n and T, draws the panels, and writes what holds as Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from mtp_jax.analysis.loss_plot import METRICS_FILE, read_metrics
from mtp_jax.analysis.scaling import figure, result
from mtp_jax.analysis.scaling.laws import get_law, rebuild_heads, rebuild_total
from mtp_jax.analysis.scaling.points import Points, held_out
from mtp_jax.analysis.scaling.workdirs import read_run_config, read_workdirs

HOLD_OUTS = {"largest_N": "the largest N", "last_half": "the last half of D"}
IMAGES = "img"  # folder of the pictures as the page names it


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A law on a part of the grid.

    Attributes:
      name: of its JSON file.
      law: of LAWS.
      loss: of `read_workdirs`.
      keep: whether a point of (n, T) belongs to it.
      what: the part in words, for the tables.
      fixed: parameters that the grid cannot tell.
    """

    name: str
    law: str
    loss: str
    keep: Callable[[float, float], bool]
    what: str
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)


# Three T_m are two degrees of freedom for C, t3 and gamma beside E: t3 is held. A run's points start at a D where
# nothing explodes, and so t1 and t2 are not needed either. With two loops gamma cannot be told from C.
OFFSETS = {"t1": 0.0, "t2": 0.0, "t3": 0.0}
PARTS = (
    Part("chinchilla", "chinchilla", "head_1", lambda n, T: n == 1 and T == 1, "n = 1, T = 1"),
    Part("looped_total", "looped_total", "total", lambda n, T: n == 1, "n = 1, the objective", OFFSETS),
    Part("looped_task", "looped_total", "task", lambda n, T: n == 1, "n = 1, without the entropy term", OFFSETS),
    Part("looped_last", "looped_total", "head_1", lambda n, T: n == 1, "n = 1, the last loop", OFFSETS),
    Part("looped_step_2", "looped_step", "loop", lambda n, T: n == 1 and T == 2, "n = 1, T = 2, each loop",
         {**OFFSETS, "gamma": 1.0}),
    Part("looped_step_4", "looped_step", "loop", lambda n, T: n == 1 and T == 4, "n = 1, T = 4, each loop", OFFSETS),
    Part("iso_depth", "iso_depth", "head_1", lambda n, T: n == 1, "n = 1, the last loop"),
    *(Part(f"per_head_{count}", "per_head", "head_k", lambda n, T, count=count: n == count and T == 1,
           f"n = {count}, T = 1, each head") for count in (2, 4, 8)),
    Part("head_one", "head_one", "head_1", lambda n, T: T == 1, "T = 1"),
)
PICTURES = {"head_one": "scaling_heads.png", "looped_total": "scaling_loops.png"}


def report(folders: Sequence[epath.PathLike], out_folder: epath.PathLike, *, draws: int = 200, seed: int = 0) -> str:
    """Fits every law that a grid of runs allows, writes JSON files and panels, and returns the Markdown.

    Args:
      folders: of the runs; those without a validation line yet are left out and told.
      out_folder: gets a JSON file a law, as `python -m mtp_jax.scaling fit` writes, and the pictures.
      draws: resamples of the runs for each interval.
      seed: of starts and resamples.

    Returns:
      The section of the page, from its second sentence on.

    Raises:
      ValueError: no folder has a point.
    """
    out = epath.Path(out_folder)
    ready = [str(folder) for folder in folders if _begun(folder)]
    if not ready:
        raise ValueError(f"None of {len(folders)} folders has a validation line: wait for the first runs.")
    shapes = {folder: (config.model.num_heads, config.model.loops) for folder in ready
              for config in [read_run_config(folder)]}
    text, fits, missed = [_what_was_run(ready, len(folders))], {}, []
    for part in PARTS:
        own = [folder for folder in ready if part.keep(*shapes[folder])]
        try:
            fits[part] = _fit(part, own, out, draws, seed)
        except ValueError as error:
            missed.append(f"- {part.name} ({part.what}): {error}")
    found = {part.name: whole for part, (whole, _) in fits.items()}
    text += _quality(fits) + _parameters(fits)
    for name, file in PICTURES.items():
        if name in found:
            _draw(found[name], out / file)
            text += ["", f"![{found[name].fit.law}: measured and predicted loss over tokens]({IMAGES}/{file})"]
    text += ["", "What holds, and what does not:", "", *_sentences(found, ready, shapes)]
    if missed:
        text += ["", "Not fitted, for lack of runs:", "", *missed]
    return "\n".join(text) + "\n"


def _begun(folder: epath.PathLike) -> bool:
    """Tells whether a run has a validation line."""
    path = epath.Path(folder) / METRICS_FILE
    return path.exists() and '"split": "validation"' in path.read_text()


def _what_was_run(folders: Sequence[str], asked: int) -> str:
    """Returns what the grid is."""
    points = read_workdirs(folders)
    ends = points.select(points["phase"] == "stable")["loss"] if (points["phase"] == "stable").any() else points["loss"]
    values = {name: ", ".join(figure.short(value) for value in sorted(set(points[name].tolist())))
              for name in ("N", "n", "T")}
    missing = "" if len(folders) == asked else f" {asked - len(folders)} more had no validation line yet."
    return (f"{len(points.runs)} runs: N = {values['N']}; n = {values['n']}; T = {values['T']}; D up to "
            f"{figure.short(points['D'].max())} tokens.{missing} Fitted are the {len(ends)} validation losses of the "
            "stable phase of the learning rate, along D: warm-up and decay are left out, for there the loss follows "
            "the schedule. Intervals are over runs.")


def _fit(part: Part, folders: Sequence[str], out: epath.Path, draws: int,
         seed: int) -> tuple[result.Result, dict[str, result.Result]]:
    """Returns a law fitted to all points of a part, and by hold-out."""
    if not folders:
        raise ValueError("no run yet.")
    points = read_workdirs(folders, loss=part.loss)
    points = points.select(points["phase"] == "stable")
    law, source = get_law(part.law), {"law": part.law, "loss": part.loss, "keep": f"{part.what}, stable phase"}
    whole = result.analyse(law, points, fixed=part.fixed, draws=draws, seed=seed, source=source)
    result.write(whole, out / f"{part.name}.json")
    without = {}
    for selector in HOLD_OUTS:
        try:
            mask = held_out(points, selector)
            without[selector] = result.analyse(law, points, held_out=mask, fixed=part.fixed, draws=0, seed=seed,
                                               source={**source, "hold_out": selector}, methods=("huber",))
        except ValueError:  # too few sizes are left; the table says so by a dash
            continue
        result.write(without[selector], out / f"{part.name}-{selector}.json")
    return whole, without


Fits = Mapping[Part, tuple[result.Result, dict[str, result.Result]]]


def _quality(fits: Fits) -> list[str]:
    """Returns the table of R^2 and RMSE on points that were fitted and that were not."""
    lines = ["", "| law | points of | points | R² | RMSE | worst, last half | "
             + " | ".join(f"R² / RMSE without {name}: fitted | on them" for name in HOLD_OUTS.values()) + " |",
             "| --- " * (6 + 2 * len(HOLD_OUTS)) + "|"]
    for part, (whole, without) in fits.items():
        own = whole.quality()["fitted"]
        cells = [part.law, part.what, str(len(whole.points)), f"{own['r2']:.3f}", f"{own['rmse']:.3f}",
                 f"{own['worst_last_half']:.3f}"]
        for selector in HOLD_OUTS:
            both = without[selector].quality() if selector in without else {}
            cells += [f"{both[name]['r2']:.3f} / {both[name]['rmse']:.3f}" if both else "–"
                      for name in ("fitted", "held out")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parameters(fits: Fits) -> list[str]:
    """Returns the table of parameters with intervals, and the warnings."""
    lines = ["", "| law | points of | parameters, 95 % intervals over runs in brackets |", "| --- | --- | --- |"]
    warnings = []
    for part, (whole, _) in fits.items():
        values = [_value(whole, name) for name in whole.fit.values]
        lines.append(f"| {part.law} | {part.what} | {', '.join(values)} |")
        warnings += [f"- {part.name} ({part.what}): {text}" for text in whole.fit.warnings]
        difference = whole.disagreement()
        if difference is not None and difference > result.AGREE:
            warnings.append(f"- {part.name} ({part.what}): the two methods disagree by up to {difference:.2%} of the "
                            "loss.")
    if warnings:
        lines += ["", "Warnings of the fits:", "", *warnings]
    return lines


def _value(whole: result.Result, name: str) -> str:
    """Returns NAME VALUE [LOW, HIGH]."""
    value = f"{name} {whole.fit.values[name]:.3g}"
    if name in whole.fit.fixed:
        return f"{value} (held)"
    ends = _interval(whole, name)
    return value + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else "")


def _interval(whole: result.Result, name: str) -> tuple[float, float] | None:
    return whole.interval(np.asarray(whole.draws[name])) if name in whole.draws else None


def _draw(whole: result.Result, path: epath.Path) -> None:
    """Draws the panels of a law, or all points where there are too many."""
    draw = figure.plot_grid if figure.fits_a_grid(whole.points) else figure.plot_points
    draw(whole.points, whole.predict(whole.points), path, held_out=whole.held_out,
         title=f"{whole.fit.law}: {whole.law.formula}")


def _sentences(found: Mapping[str, result.Result], folders: Sequence[str],
               shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Returns what the fits say, as a list."""
    lines = []
    for name, sign, zero, plus, minus in (
            ("iso_depth:phi", 0.0, "a loop is not shown to be worth anything in parameters",
             "a loop is worth some parameters", "a loop costs"),
            ("head_one:kappa", 0.0, "no capacity tax of heads is shown", "heads cost capacity (a tax)",
             "heads save capacity"),
            ("head_one:psi", 0.0, "heads are not shown to be worth any tokens", "heads are worth some tokens",
             "heads cost tokens: with more of them the same loss takes more data")):
        law, _, parameter = name.partition(":")
        if law in found:
            lines.append(_sign(found[law], parameter, sign, zero, plus, minus))
    for name, whole in found.items():
        if name.startswith("per_head"):
            lines.append(_order(name, whole))
            lines += _heads_rebuilt(name, whole, [f for f in folders if shapes[f] == (int(name[9:]), 1)])
    if "looped_step_4" in found:
        lines += _loops_rebuilt(found["looped_step_4"], [f for f in folders if shapes[f] == (1, 4)])
    return lines


def _sign(whole: result.Result, name: str, middle: float, zero: str, plus: str, minus: str) -> str:
    """Returns what the interval of a parameter says."""
    ends = _interval(whole, name)
    if ends is None or ends[0] <= middle <= ends[1]:
        verdict = f"the interval holds {middle:g}: {zero}"
    else:
        verdict = plus if ends[0] > middle else minus
    return f"- {_value(whole, name)}: {verdict}."


def _order(name: str, whole: result.Result) -> str:
    """Returns whether E_1 <= E_2 <= ..., as theory has it."""
    values = [value for key, value in whole.fit.values.items() if key.startswith("E_")]
    broken = [f"E_{k} > E_{k + 1}" for k, (one, two) in enumerate(zip(values, values[1:]), 1) if one > two]
    listed = ", ".join(f"{value:.3g}" for value in values)
    return (f"- {name}: E_1 to E_{len(values)} are {listed}: "
            + (f"not in the order of theory ({', '.join(broken)}), so these points do not hold them." if broken else
               "in the order of theory, which has the entropy of later tokens no lower."))


def _heads_rebuilt(name: str, whole: result.Result, folders: Sequence[str]) -> list[str]:
    """Returns how well the objective follows from the laws of its heads."""
    points = read_workdirs(folders, loss="total")
    points = points.select(points["phase"] == "stable")
    weights = {k: 1.0 for k in range(1, int(points["n"][0]) + 1)}
    return [f"- {name}: the objective rebuilt as the sum of the heads' laws has "
            f"{_r2(points, rebuild_heads(whole.fit.values, points, weights))} on the objective itself."]


def _loops_rebuilt(whole: result.Result, folders: Sequence[str]) -> list[str]:
    """Returns how well the task's loss follows from the laws of the loops and the mean gate."""
    shares = [record["exit_share"] for folder in folders for record in read_metrics(folder)
              if record["split"] == "validation" and "exit_share" in record]
    if not shares:
        return []
    gate = np.mean(shares, axis=0)
    points = read_workdirs(folders, loss="task")
    points = points.select(points["phase"] == "stable")
    told = ", ".join(f"{share:.3f}" for share in gate)
    return [f"- looped_step_4: the task's loss rebuilt from the loops' law with the mean gate ({told}) has "
            f"{_r2(points, rebuild_total(whole.fit.values, points, gate.tolist()))} on that loss itself."]


def _r2(points: Points, predicted: np.ndarray) -> str:
    """Returns R^2 and RMSE as text."""
    real = points["loss"]
    error = float(np.sum((real - predicted) ** 2))
    return (f"R² {1 - error / float(np.sum((real - real.mean()) ** 2)):.3f} and RMSE "
            f"{math.sqrt(error / len(points)):.3f} nats")
