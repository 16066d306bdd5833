"""The picture of the redistribution probe: near-zero activations by class, and what each setting does to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from mtp_jax.analysis.probes.arm_activations import CLASSES
from mtp_jax.analysis.study_plot import Picture

Pick = Callable[[Mapping[str, Any]], float | None]


def draw(result: Mapping[str, Any], path: epath.PathLike) -> epath.Path:
    """Draws near-zero shares by token class, and accuracy, losses and tokens a forward over the settings.

    Args:
      result: as the probe's file holds it.
      path: of the PNG.
    """
    off, *on = result["cells"]
    heads = sorted(map(int, next(iter(filter(None, (off["loss"]["answer"], off["loss"]["question"]))))))
    part = "answer" if off["loss"]["answer"] else "question"

    def loss(head: int) -> Pick:
        return lambda cell: cell["loss"][part][str(head)]["mean"]

    panels: list[tuple[str, Pick]] = []
    if "accuracy" in off:
        panels.append(("accuracy", lambda cell: cell["accuracy"]["mean"]))
    panels += [(f"loss of head {head} on the {part} (nats)", loss(head))
               for head in dict.fromkeys((heads[0], heads[-1])) if str(head) in off["loss"][part]]
    if off.get("tokens_per_forward") and len(heads) > 1:
        panels.append(("tokens a forward", lambda cell: cell["tokens_per_forward"]["mean"]))
    count = 1 + len(panels)
    picture = Picture(count, title=f"{result['task']}, {result['problems']} problems: redistributed activations",
                      rows=1 + (count > 3))
    _classes(picture, on[0], result["amount"])
    for number, (name, pick) in enumerate(panels, 1):
        series: dict[str, dict[float, list[float]]] = {}
        for cell in on:
            value = pick(cell)
            if value is not None:
                series.setdefault(f"p1 {cell['p1']:g}", {}).setdefault(cell[result["amount"]], []).append(value)
        axis = picture.lines(number, series, x=result["amount"], y=name)
        axis.axhline(pick(off), color="0.3", linewidth=1.2, linestyle="--", label="off")
        axis.legend(frameon=False, fontsize=8.5)
    return picture.save(path)


def _classes(picture: Picture, cell: Mapping[str, Any], amount: str) -> None:
    """Draws the near-zero share before and after, by class of token."""
    found = cell["activations"]["near_zero_by_class"]
    names = [name for name in CLASSES if name in found]
    groups = {side: {name: [found[name][side]] for name in names} for side in ("before", "after")}
    picture.bars(0, groups, x="token", y="share near zero",
                 title=f"{amount} {cell[amount]:g}, p1 {cell['p1']:g}")
