"""Fits every law to a grid of runs over N, n and T, draws the panels, and writes what holds as Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from mtp_jax.analysis.loss_plot import read_metrics
from mtp_jax.analysis.scaling import figure, result
from mtp_jax.analysis.scaling.laws import get_law, rebuild_heads, rebuild_total
from mtp_jax.analysis.scaling.measures import r_squared
from mtp_jax.analysis.scaling.points import Points, held_out, last_half
from mtp_jax.analysis.scaling.workdirs import begun, check_totals, phase, read_run_config, read_workdirs

HOLD_OUTS = {"largest_N": "the largest N", "last_half": "the last half of D"}
STEEPER = 0.05  # nats more than twice; noise from point to point is less
IMAGES = "img"  # folder of the pictures beside the page


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A law on a part of the grid.

    Attributes:
      name: of its JSON file.
      law: of LAWS.
      loss: of `read_workdirs`.
      what: the part in words, for the tables.
      n: numbers of heads that belong to it; empty: all.
      T: numbers of loops; empty: all.
      fixed: parameters that the grid cannot tell.
      late: take the second half of each run alone.
    """

    name: str
    law: str
    loss: str
    what: str
    n: tuple[int, ...] = ()
    T: tuple[int, ...] = ()
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    late: bool = False

    def holds(self, n: int, T: int) -> bool:
        """Tells whether runs with so many heads and loops belong to it."""
        return (not self.n or n in self.n) and (not self.T or T in self.T)


# Three T are two degrees of freedom for C, t3 and gamma beside E: t3 is held. A run's points start at a D where nothing
# explodes, and so t1 and t2 are not needed either. With two loops gamma cannot be told from C.
OFFSETS = {"t1": 0.0, "t2": 0.0, "t3": 0.0}
PARTS = (
    Part("chinchilla", "chinchilla", "head_1", "n = 1, T = 1", (1,), (1,)),
    Part("looped_total", "looped_total", "total", "n = 1, the objective", (1,), fixed=OFFSETS),
    Part("looped_task", "looped_total", "task", "n = 1, the objective without entropy", (1,), fixed=OFFSETS),
    Part("looped_last", "looped_total", "head_1", "n = 1, the last loop", (1,), fixed=OFFSETS),
    Part("looped_step_2", "looped_step", "loop", "n = 1, T = 2, each loop", (1,), (2,), {**OFFSETS, "gamma": 1.0}),
    Part("looped_step_4", "looped_step", "loop", "n = 1, T = 4, each loop", (1,), (4,), OFFSETS),
    Part("iso_depth", "iso_depth", "head_1", "n = 1, the last loop", (1,)),
    *(Part(f"per_head_{n}", "per_head", "head_k", f"n = {n}, T = 1, each head", (n,), (1,)) for n in (2, 4, 8)),
    Part("head_one", "head_one", "head_1", "T = 1", (), (1,)),
    Part("head_one_late", "head_one", "head_1", "T = 1, second half of each run", (), (1,), late=True),
)
PICTURES = (("head_one", "", "scaling_heads.png"), ("head_one", "largest_N", "scaling_heads_held_out.png"),
            ("looped_total", "", "scaling_loops.png"), ("iso_depth", "largest_N", "scaling_loops_held_out.png"),
            ("per_head_4", "", "scaling_per_head.png"))  # part, hold-out, file


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
    ready = [str(folder) for folder in folders if begun(folder)]
    if not ready:
        raise ValueError(f"None of {len(folders)} folders has a validation line: wait for the first runs.")
    shapes = {folder: (config.model.num_heads, config.model.loops) for folder in ready
              for config in [read_run_config(folder)]}
    text, fits, missed = _what_was_run(ready, len(folders)), {}, []
    for part in PARTS:
        own = [folder for folder in ready if part.holds(*shapes[folder])]
        try:
            whole, without, short = _fit(part, own, out, draws, seed)
            fits[part] = whole, without
            missed += [f"- {part.name} ({part.what}), {reason}" for reason in short]
        except ValueError as error:
            missed.append(f"- {part.name} ({part.what}): {error}")
    found = {part.name: whole for part, (whole, _) in fits.items()}
    text += _quality(fits) + _parameters(fits)
    for part, (whole, without) in fits.items():
        for _, selector, file in (picture for picture in PICTURES if picture[0] == part.name):
            shown = without.get(selector) if selector else whole
            if shown is not None:
                _draw(shown, out / IMAGES / file)
                told = f", fitted without {HOLD_OUTS[selector]}" if selector else ""
                text += ["", f"![{part.law}, {part.what}: measured and predicted loss over tokens{told}]"
                         f"({IMAGES}/{file})"]
    text += ["", "What holds, and what does not:", "", *_sentences(found, ready, shapes), *_extrapolated(fits)]
    if missed:
        text += ["", "Not fitted:", "", *missed]
    return "\n".join(text) + "\n"


def _what_was_run(folders: Sequence[str], asked: int) -> list[str]:
    """Returns what the grid is, and the last losses of its runs as a table."""
    points = read_workdirs(folders)
    stable = int(np.sum(points["phase"] == "stable"))
    values = {name: ", ".join(figure.short(value) for value in sorted(set(points[name].tolist())))
              for name in ("N", "n", "T")}
    missing = "" if len(folders) == asked else f" {asked - len(folders)} more had no validation line yet."
    lines = [f"{len(points.runs)} runs: N = {values['N']}; n = {values['n']}; T = {values['T']}; D up to "
             f"{figure.short(points['D'].max())} tokens.{missing} Fitted are the {stable} validation losses of the "
             "stable phase of the learning rate, along D: warm-up and decay are left out, for there the loss follows "
             "the schedule. Every run has one seed; intervals are over runs.", "",
             "Head 1's last loss, nats, after the decay (of a looped trunk after its last loop); – where a run has not "
             "ended:", ""]
    sizes, rows = sorted(set(points["N"].tolist())), sorted(set(zip(points["n"].tolist(), points["T"].tolist())))
    lines += [f"| n, T | {' | '.join(f'N = {figure.short(size)}' for size in sizes)} |",
              "| --- " * (1 + len(sizes)) + "|"]
    for n, loops in rows:
        cells = []
        for size in sizes:
            own = (points["N"] == size) & (points["n"] == n) & (points["T"] == loops)
            ended = own & (points["D"] == points["D"].max())
            cells.append(f"{points['loss'][ended].mean():.3f}" if ended.any() else "–")
        lines.append(f"| {n:g}, {loops:g} | {' | '.join(cells)} |")
    return lines


def _fit(part: Part, folders: Sequence[str], out: epath.Path, draws: int,
         seed: int) -> tuple[result.Result, dict[str, result.Result], list[str]]:
    """Returns a law fitted to all points of a part, and by hold-out, and why a hold-out has no fit."""
    if not folders:
        raise ValueError("no run yet.")
    points = read_workdirs(folders, loss=part.loss)
    points = points.select(points["phase"] == "stable")
    if part.late:
        points = points.select(last_half(points))
    law, source = get_law(part.law), {"law": part.law, "loss": part.loss, "keep": f"{part.what}, stable phase"}
    for column in {"n", "T", "loop"} & set(law.columns):
        if len(set(points[column].tolist())) == 1:
            raise ValueError(f"all of its runs have {column} = {points[column][0]:g}, so nothing is known of others.")
    whole = result.analyse(law, points, fixed=part.fixed, draws=draws, seed=seed, source=source,
                           warnings=check_totals(part.loss, law, points))
    result.write(whole, out / f"{part.name}.json")
    without, short = {}, []
    for selector in HOLD_OUTS:
        if part.late and selector == "last_half":  # it is the last half
            continue
        try:
            mask = held_out(points, selector)
            without[selector] = result.analyse(law, points, held_out=mask, fixed=part.fixed, draws=0, seed=seed,
                                               source={**source, "hold_out": selector}, methods=("huber",))
        except ValueError as error:  # too few sizes are left; the table has a dash
            short.append(f"without {HOLD_OUTS[selector]}: {error}")
            continue
        result.write(without[selector], out / f"{part.name}-{selector}.json")
    return whole, without, short


Fits = Mapping[Part, tuple[result.Result, dict[str, result.Result]]]


def _quality(fits: Fits) -> list[str]:
    """Returns the table of R^2 and RMSE on points that were fitted and that were not."""
    lines = ["", "R² (RMSE, nats), and where points were held out, on the fitted → on those held out:", "",
             f"| law | points of | points | all fitted | worst, last half | without "
             f"{' | without '.join(HOLD_OUTS.values())} |",
             "| --- " * (5 + len(HOLD_OUTS)) + "|"]
    for part, (whole, without) in fits.items():
        own = whole.quality()["fitted"]
        cells = [part.law, part.what, str(len(whole.points)), _pair(own),
                 "–" if math.isnan(own["worst_last_half"]) else f"{own['worst_last_half']:.3f}"]
        for selector in HOLD_OUTS:
            both = without[selector].quality() if selector in without else {}
            cells.append(f"{_pair(both['fitted'])} → {_pair(both['held out'])}" if both else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pair(found: Mapping[str, float]) -> str:
    """Returns R^2 and RMSE of measures."""
    return f"{found['r2']:.3f} ({found['rmse']:.3f})"


def _parameters(fits: Fits) -> list[str]:
    """Returns the table of parameters with intervals, and the warnings."""
    lines = ["", "Exponents are searched between 0.01 and 3, powers of n and T between -3 and 3: an interval that ends "
             "there has no end.", "",
             "| law | points of | parameters, 95 % intervals over runs in brackets |", "| --- | --- | --- |"]
    warnings = []
    for part, (whole, _) in fits.items():
        values = [_value(whole, name) for name in whole.fit.values]
        lines.append(f"| {part.law} | {part.what} | {', '.join(values)} |")
        warnings += [f"- {part.name} ({part.what}): {text}" for text in whole.fit.warnings]
        difference = whole.disagreement()
        if difference is not None and difference > result.AGREE:
            warnings.append(f"- {part.name} ({part.what}): the predictions of the two methods differ by up to "
                            f"{difference:.2%} of the loss.")
        if whole.other is not None and result.differing(whole):
            warnings.append(f"- {part.name} ({part.what}): the two methods find other values of "
                            f"{', '.join(result.differing(whole))}.")
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
            ("head_one:kappa", 0.0, "no capacity tax of heads is shown", "heads cost capacity (a tax; at equal N "
             "they also take layers from the trunk)", "heads save capacity"),
            ("head_one:psi", 0.0, "heads are not shown to be worth any tokens", "heads are worth some tokens",
             "heads cost tokens: with more of them the same loss takes more data")):
        law, _, parameter = name.partition(":")
        if law in found:
            lines.append(_sign(found[law], parameter, sign, zero, plus, minus))
    if "head_one" in found:
        lines += _plateaus(found["head_one"].points)
    for name, whole in found.items():
        if name.startswith("per_head"):
            lines.append(_order(name, whole))
            lines += _heads_rebuilt(name, whole, [f for f in folders if shapes[f] == (int(name[9:]), 1)])
    if "looped_step_4" in found:
        lines += _loops_rebuilt(found["looped_step_4"], [f for f in folders if shapes[f] == (1, 4)])
    return lines


def _extrapolated(fits: Fits) -> list[str]:
    """Returns how much larger errors are on held-out points than on fitted ones."""
    lines = []
    for selector, name in HOLD_OUTS.items():
        ratios = {part.name: both["held out"]["rmse"] / both["fitted"]["rmse"] for part, (_, without) in fits.items()
                  if selector in without for both in [without[selector].quality()]}
        if ratios:
            best, worst = (choose(ratios, key=lambda one: ratios[one]) for choose in (min, max))
            lines.append(f"- With {name} held out the RMSE on it is {ratios[best]:.1f} ({best}) to {ratios[worst]:.1f} "
                         f"({worst}) times that on the fitted points.")
    none = [part.name for part, (whole, _) in fits.items()
            if not whole.fit.values.get("E", whole.fit.values.get("E_1"))]
    if none:
        lines.append(f"- E (of heads: E_1) is 0 in {', '.join(none)}: these runs are too short to see where the loss "
                     "ends, and what the law says of much larger N and D means nothing.")
    return lines


def _sign(whole: result.Result, name: str, middle: float, zero: str, plus: str, minus: str) -> str:
    """Returns what the interval of a parameter says."""
    ends = _interval(whole, name)
    if ends is None or ends[0] <= middle <= ends[1]:
        verdict = f"the interval holds {middle:g}: {zero}"
    else:
        verdict = plus if ends[0] > middle else minus
    return f"- {_value(whole, name)}: {verdict}."


def _plateaus(points: Points) -> list[str]:
    """Returns how many runs fall faster later than before, by n: no sum of falling powers does."""
    told, some = [], False
    for n in sorted(set(points["n"].tolist())):
        runs = points.select(points["n"] == n)
        count = sum(map(_steps, (runs.select(runs["run"] == name) for name in runs.runs)))
        told.append(f"{count} of {len(runs.runs)} with n = {n:g}")
        some = some or count > 0
    text = f"- Runs in which the loss of head 1 first stands nearly still and then falls: {', '.join(told)}."
    if some:
        text += (" No sum of falling powers has such a step: there head_one describes two phases by one law. "
                 "head_one_late leaves most of the first out.")
    return [text]


def _steps(run: Points) -> bool:
    """Tells whether a run's loss falls, from one point to the next, more than twice as much as it did earlier."""
    falls = -np.diff(run["loss"][np.argsort(run["D"])])
    return any(falls[i:].max() > 2 * max(falls[i - 1], 0.0) + STEEPER for i in range(1, len(falls)))


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
    objectives = {read_run_config(folder).objective for folder in folders}
    if len(objectives) > 1 or any(one.schedule != "constant" for one in objectives):
        return [f"- {name}: the objective is not rebuilt, for the weights of the heads differ between runs or steps."]
    (objective,), n = objectives, int(points["n"][0])
    weights = dict(enumerate(objective.head_weights or (1.0,) * n, start=1))
    if objective.reduction == "mean":
        weights = {k: weight / sum(weights.values()) for k, weight in weights.items()}
    return [f"- {name}: the objective rebuilt as the weighted sum of the heads' laws has "
            f"{_r2(points, rebuild_heads(whole.fit.values, points, weights))} on the objective itself."]


def _loops_rebuilt(whole: result.Result, folders: Sequence[str]) -> list[str]:
    """Returns how well the task's loss follows from the laws of the loops and the mean gate."""
    shares = [record["exit_share"] for folder in folders for config in [read_run_config(folder)]
              for record in read_metrics(folder) if record["split"] == "validation" and "exit_share" in record
              and phase(config, record["step"]) == "stable"]
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
    error = math.sqrt(np.mean((points["loss"] - predicted) ** 2))
    return f"R² {r_squared(points['loss'], predicted):.3f} and RMSE {error:.3f} nats"
