"""Pictures of what the evaluation task `information` found of the next two tokens X and Y."""

from __future__ import annotations

import json
from collections.abc import Sequence

from etils import epath

from mtp_jax.analysis.study import Row
from mtp_jax.analysis.study_plot import Picture, points

RESULT_FILE, PLOT_FILE = "eval/information.json", "plots/information.png"
PARTS = {"loss_x_given_y": "H(X|Y)", "relative_information": "I(X;Y)", "loss_y_given_x": "H(Y|X)"}


def plot_run(workdir: epath.PathLike) -> epath.Path:
    """Draws the parts of one run's two-token loss into its plots/information.png, and returns the path.

    The bar of n = 1 has H(X) + H(Y|X), that of n = 2 has H(X) + H(Y), as in the paper's account: X's loss is H(X|Y) and
    I(X;Y), so that the second has I(X;Y) twice.

    Raises:
      ValueError: the evaluation was not run, or its file is damaged.
    """
    folder = epath.Path(workdir)
    try:
        metrics = json.loads((folder / RESULT_FILE).read_text())["metrics"]
        x_given_y, shared, y_given_x = (metrics[name] for name in PARTS)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / RESULT_FILE} cannot be read ({error}): run python -m mtp_jax.evaluate "
                         f"--workdir={folder} --task=information.") from error
    picture = Picture(1, title="What the losses on two tokens are made of")
    axis = picture.axes[0]
    for place, counts in enumerate(((1, 1, 1), (1, 2, 1))):
        bottom = 0.0
        for (label, color), value, count in zip(zip(PARTS.values(), ("tab:blue", "tab:orange", "tab:green")),
                                                (x_given_y, shared, y_given_x), counts):
            axis.bar(place, value * count, bottom=bottom, color=color, label=label if place == 0 else None, width=0.6)
            bottom += value * count
    axis.set_xticks((0, 1), ("next token, twice\nH(X) + H(Y|X)", "two tokens ahead\nH(X) + H(Y)"))
    axis.set_ylabel("nats, on the text")
    axis.legend(frameon=False, fontsize=8.5)
    return picture.save(folder / PLOT_FILE)


def plot_study(rows: Sequence[Row], folder: epath.Path) -> list[epath.Path]:
    """Draws mutual information over n, and head 2 beside what head 1 implies; rows have num_heads and the metrics."""
    picture = Picture(2)
    picture.lines(0, {label: points(rows, "num_heads", name) for name, label in (
        ("mutual_information", "I(X;Y) of the model's own joint"),
        ("relative_information", "on the text: I_p||q(X;Y)"))}, x="n, heads trained", y="nats")
    picture.lines(1, {label: points(rows, "num_heads", name) for name, label in (
        ("loss_y_given_x", "head 1, given the token between"), ("loss_y", "head 1, summed over it"),
        ("head_2_loss", "head 2"))}, x="n, heads trained", y="loss on the token after the next (nats)")
    return [picture.save(folder / "information.png")]
