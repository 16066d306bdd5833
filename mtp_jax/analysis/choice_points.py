"""Pictures of what the evaluation task `choice_points` found: emphasis by kind of step, and one text, step by step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.study import Row
from mtp_jax.analysis.study_plot import Picture, points

RESULT_FILE, PLOT_FILE = "eval/choice_points.json", "plots/choice_points.png"
KINDS = {"first": "1st of a word", "second": "2nd", "third": "3rd", "later": "later", "space": "space", "sign": "sign"}
LINE = 50  # tokens a line of the example


def plot_run(workdir: epath.PathLike) -> epath.Path:
    """Draws what was found of one run into its plots/choice_points.png, and returns the path.

    Raises:
      ValueError: the evaluation was not run, or its file is damaged.
    """
    folder = epath.Path(workdir)
    try:
        found = json.loads((folder / RESULT_FILE).read_text())
        n, metrics, example = found["settings"]["n"], found["metrics"], found["example"]
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / RESULT_FILE} cannot be read ({error}): run python -m mtp_jax.evaluate "
                         f"--workdir={folder} --task=choice_points.") from error
    picture = Picture(2, title=f"Weight of a step in the {n}-token loss, over n times its next-token loss")
    axis = picture.bars(0, {"": {name: [metrics[f"emphasis_{kind}"]] for kind, name in KINDS.items()
                                 if metrics.get(f"emphasis_{kind}") is not None}}, x="step", y="emphasis")
    _bounds(axis, n)
    axis.tick_params(axis="x", labelsize=8)
    _example(picture.axes[1], example)
    return picture.save(folder / PLOT_FILE)


def plot_study(rows: Sequence[Row], folder: epath.Path) -> list[epath.Path]:
    """Draws emphasis by kind of step for each number of heads; rows have num_heads and the task's metrics."""
    heads = sorted({row["num_heads"] for row in rows})
    picture = Picture(len(heads))
    for panel, n in enumerate(heads):
        found = {name: points(rows, "num_heads", f"emphasis_{kind}").get(n) for kind, name in KINDS.items()}
        bars = {name: values for name, values in found.items() if values}
        axis = picture.bars(panel, {"": bars}, x="step", y="weight / (n x next-token loss)", title=f"n = {n}")
        _bounds(axis, n)
        axis.tick_params(axis="x", labelsize=7)
    return [picture.save(folder / "choice_points.png")]


def _bounds(axis: Any, n: int) -> None:
    """Draws what a step without consequence has, and a choice that decides the next n - 1 tokens alone."""
    for value, text in ((1.0, "no consequence"), ((n + 1) / 2, "decides all n")):
        axis.axhline(value, color="0.3", linewidth=0.9, linestyle="--")
        axis.text(0.99, value, text, fontsize=7.5, ha="right", va="bottom", transform=axis.get_yaxis_transform(),
                  bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1})
    axis.set_ylim(min(0.9, axis.get_ylim()[0] or 0.9), (n + 1) / 2 * 1.06)


def _example(axis: Any, example: dict[str, list[Any]]) -> None:
    """Shows each token on the colour of what the n-token loss adds to its next-token loss, or takes from it."""
    import matplotlib

    texts, own, weight = example["text"], example["next_token"], example["weight_over_n"]
    lines = -(-len(texts) // LINE)
    colors, largest = matplotlib.colormaps["coolwarm"], 2.0
    for place, (text, before, after) in enumerate(zip(texts, own, weight)):
        x, y = place % LINE, lines - 1 - place // LINE
        shade = min(max((after - before) / largest, -1), 1)
        axis.add_patch(matplotlib.patches.Rectangle((x, y), 1, 1, color=colors(0.5 + shade / 2), linewidth=0))
        shown = {"\n": "\u21b5", "\t": "\u21e5"}.get(text, text if text.isprintable() else "\u00b7")
        axis.text(x + 0.5, y + 0.5, shown[:2], fontsize=6, family="monospace", ha="center", va="center")
    axis.set_xlim(0, LINE)
    axis.set_ylim(-1, lines + 1)
    axis.set_axis_off()
    axis.set_title("red: weight / n above the next-token loss; blue: below (2 nats: full)", fontsize=8)
