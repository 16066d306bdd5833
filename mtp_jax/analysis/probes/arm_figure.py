"""The picture of the redistribution probe: near-zero activations, and how each setting differs from the module off."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from mtp_jax.analysis.decode_plot import COLORS, MARKERS
from mtp_jax.analysis.probes.arm_activations import CLASSES
from mtp_jax.analysis.study_plot import Picture

Pick = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]  # cell -> {"mean", "interval"}


def draw(result: Mapping[str, Any], path: epath.PathLike) -> epath.Path:
    """Draws near-zero shares by token class and by setting, then differences of accuracy, losses and tokens a forward.

    Args:
      result: as the probe's file holds it.
      path: of the PNG.
    """
    off, *on = result["cells"]
    part = "answer" if off["loss"]["answer"] else "question"
    heads = sorted(map(int, off["loss"][part]))
    panels: list[tuple[str, Pick]] = [
        ("share near zero, after", lambda cell: cell["activations"]["near_zero"]["after"])]
    if "accuracy" in off:
        panels.append(("accuracy - off", lambda cell: cell["accuracy"]["difference"]))
    panels += [(f"loss of head {head}, {part}, - off (nats)", _loss(part, head))
               for head in dict.fromkeys(heads[:1] + heads[-1:])]
    if off.get("tokens_per_forward") and len(heads) > 1:
        panels.append(("tokens a forward - off", lambda cell: cell["tokens_per_forward"]["difference"]))
    count = 1 + len(panels)
    picture = Picture(count, title=f"{result['task']}, {result['problems']} problems: redistributed activations",
                      rows=1 + (count > 3))
    _classes(picture, on[0], result["amount"])
    for number, (name, pick) in enumerate(panels, 1):
        _settings(picture, number, on, pick, x=result["amount"], y=name, zero=number > 1)
    return picture.save(path)


def _loss(part: str, head: int) -> Pick:
    return lambda cell: cell["loss"][part][str(head)]["difference"]


def _settings(picture: Picture, panel: int, cells: list[Mapping[str, Any]], pick: Pick, *, x: str, y: str, zero: bool
              ) -> None:
    """Draws a value with its interval over the amounts, a line a percentile through the means over noise seeds."""
    axis = picture.frame(panel, x, y, "")
    amounts, tops = (sorted({cell[name] for cell in cells}) for name in (x, "p1"))
    for number, p1 in enumerate(tops):
        places, means = [], []
        for tick, amount in enumerate(amounts):
            found = [value for cell in cells if (cell[x], cell["p1"]) == (amount, p1)
                     for value in [pick(cell)] if value is not None]
            place = tick + 0.12 * (number - (len(tops) - 1) / 2)
            for value in found:
                low, high = value["interval"]
                axis.errorbar(place, value["mean"], [[value["mean"] - low], [high - value["mean"]]], capsize=2.5,
                              color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)], markersize=4.5)
            if found:
                places.append(place)
                means.append(statistics.fmean(value["mean"] for value in found))
        axis.plot(places, means, color=COLORS[number % len(COLORS)], linewidth=1.6, label=f"p1 {p1:g}")
    if zero:
        axis.axhline(0, color="0.3", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
    axis.legend(frameon=False, fontsize=8.5)


def _classes(picture: Picture, cell: Mapping[str, Any], amount: str) -> None:
    """Draws the near-zero share before and after, by class of token."""
    found = cell["activations"]["near_zero_by_class"]
    names = [name for name in CLASSES if name in found]
    groups = {side: {name: [found[name][side]] for name in names} for side in ("before", "after")}
    axis = picture.bars(0, groups, x="token", y="share near zero",
                        title=f"{amount} {cell[amount]:g}, p1 {cell['p1']:g}")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # the legend stands above the bars
