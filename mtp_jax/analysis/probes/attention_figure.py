"""The picture of the attention probe: the original tokens in line above, the whole prompts below."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.analysis.decode_plot import COLORS
from mtp_jax.analysis.probes.conditions import MEANINGFUL, MEANINGLESS, NONE, RANDOM
from mtp_jax.files import replace

LOOKS = {NONE: ("0.1", "-"), MEANINGLESS: (COLORS[0], "-"), MEANINGFUL: (COLORS[1], "--"), RANDOM: (COLORS[2], ":")}


def draw(found: Mapping[str, Mapping[str, Any]], path: epath.PathLike, *, title: str, leave_out_first: bool = False
         ) -> epath.Path:
    """Draws average attention over the token's index, a curve a condition, and saves it.

    Args:
      found: {condition: "average", "average_kept", "filler_start", "filler_end", "question_start", "inserted"}; none is
        among them.
      path: of the picture, a PNG.
      title: above it.
      leave_out_first: do not draw the first token.

    Returns:
      The path.
    """
    buffer = io.BytesIO()
    _figure(found, title, int(leave_out_first)).savefig(buffer, format="png", dpi=110)
    return replace(path, buffer.getvalue())


def _figure(found: Mapping[str, Mapping[str, Any]], title: str, first: int) -> Any:
    """Returns the matplotlib figure; curves begin at the token `first`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only plots need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.4), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    figure.suptitle(title, fontsize=11)
    top, bottom = figure.subplots(2, 1)
    for name, one in found.items():
        color, dashes = LOOKS[name]
        label = name if name == NONE else f"{name}: {one['inserted'].partition(' (')[0]}"
        for panel, curve in ((top, one["average_kept"]), (bottom, one["average"])):
            x = np.arange(len(curve))[first:]
            panel.plot(x, np.asarray(curve)[first:], color=color, linestyle=dashes, linewidth=1.3, label=label)
        if one["filler_end"] > one["filler_start"]:
            bottom.axvspan(one["filler_start"] - 0.5, one["filler_end"] - 0.5, color=color, alpha=0.07, linewidth=0)
    top.axvline(found[NONE]["question_start"] - 0.5, color="0.6", linewidth=0.9, linestyle=(0, (1, 2)))
    skipped = ", the first left out" if first else ""
    for panel, text in ((top, f"Original tokens only, inserted ones removed{skipped}; dotted: the question begins"),
                        (bottom, f"Whole prompts{skipped}; shaded: the inserted runs")):
        panel.set_title(text, fontsize=9.5)
        panel.set_xlabel("token")
        panel.set_ylabel("mean attention received")
        panel.set_ylim(bottom=0)
        panel.margins(x=0.01)
        panel.grid(alpha=0.25)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    top.legend(frameon=False, fontsize=8.5)
    return figure
