"""The chart of a sweep: head-1 loss, acceptance and step time over the number of heads, or another axis."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.decode_plot import COLORS, DASHES, MARKERS
from mtp_jax.files import replace

PLOT_FILE = "sweep.png"
SEEDS = ("config.train.seed", "config.data.seed")  # runs that differ in these alone are one point, their mean
HEADS = "num_heads"
Row = Mapping[str, Any]
Series = Mapping[tuple[Any, ...], Mapping[Any, Sequence[float]]]  # {values of the other fields: {x: values}}


def x_field(fields: Sequence[str]) -> str:
    """Returns the swept field that the chart has on its x axis: the number of heads if swept, else the first."""
    return next((field for field in fields if field.rpartition(".")[2] == HEADS), fields[0])


def series(table: Sequence[Row], fields: Sequence[str], column: str) -> Series:
    """Returns the values of a column as curves over `x_field`, one for each value of the other fields.

    Args:
      table: from `sweep_results.rows`.
      fields: that are swept, "config.PATH".
      column: of the table; cells that lack it are left out.
    """
    x = x_field(fields)
    others = [field for field in fields if field != x and field not in SEEDS]
    found: dict[tuple[Any, ...], dict[Any, list[float]]] = {}
    for row in table:
        curve = found.setdefault(tuple(row[field] for field in others), {})
        if row.get(column) is not None:
            curve.setdefault(row[x], []).append(row[column])
    return found


def plot(table: Sequence[Row], fields: Sequence[str], folder: epath.PathLike, *, title: str) -> epath.Path | None:
    """Draws the chart and saves it in the sweep's folder.

    Args:
      table: from `sweep_results.rows`.
      fields: that are swept, "config.PATH".
      folder: of the sweep.
      title: of the chart.

    Returns:
      The path of sweep.png, or None while no cell has a number to draw.
    """
    if all(row.get("head_loss_1") is None and row.get("step_seconds") is None for row in table):
        return None
    buffer = io.BytesIO()
    _figure(table, fields, title=title).savefig(buffer, format="png", dpi=110)
    return replace(epath.Path(folder) / PLOT_FILE, buffer.getvalue())


def _figure(table: Sequence[Row], fields: Sequence[str], *, title: str):
    """Returns the matplotlib figure of a sweep."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only plots need it
    from matplotlib.figure import Figure

    in_bytes = any(row.get("bits_per_byte_1") is not None for row in table)
    table = [{**row, "step_ms": row["step_seconds"] and 1000 * row["step_seconds"]} for row in table]
    panels = (("bits_per_byte_1" if in_bytes else "head_loss_1", "Held-out loss of head 1",
               "bits per byte" if in_bytes else "nats per token"),
              ("expected_accepted_length", "Acceptance", "tokens that a drafting step would yield"),
              ("step_ms", "Time of a step", "milliseconds, median"))
    x, others = x_field(fields), [field for field in fields if field != x_field(fields) and field not in SEEDS]
    ticks = sorted(dict.fromkeys(row[x] for row in table), key=_order)
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    axes = figure.subplots(1, len(panels))
    for axis, (column, name, unit) in zip(axes, panels):
        if column == "expected_accepted_length" and x.rpartition(".")[2] == HEADS:
            axis.plot(range(len(ticks)), [int(tick) for tick in ticks], color="0.8", linewidth=1.2, label="_all")
            axis.annotate("every draft accepted", (len(ticks) - 1, int(ticks[-1])), xytext=(-6, 0), color="0.55",
                          textcoords="offset points", ha="right", va="top", fontsize=8)
        for number, (key, curve) in enumerate(series(table, fields, column).items()):
            color = COLORS[number % len(COLORS)]
            places = [place for place, tick in enumerate(ticks) if tick in curve]
            axis.plot(places, [statistics.fmean(curve[ticks[place]]) for place in places], color=color, linewidth=1.9,
                      marker=MARKERS[number % len(MARKERS)], linestyle=DASHES[number // len(COLORS) % len(DASHES)],
                      markersize=5.5, zorder=3, label=", ".join(
                          f"{field.rpartition('.')[2]}={value}" for field, value in zip(others, key)) or "_one")
            for place in places:
                if len(curve[ticks[place]]) > 1:  # seeds
                    axis.plot([place] * len(curve[ticks[place]]), curve[ticks[place]], color=color, marker=".",
                              linestyle="", alpha=0.5)
        axis.set_title(name, fontsize=10)
        axis.set_ylabel(unit)
        axis.set_xlabel("n, heads trained" if x.rpartition(".")[2] == HEADS else x)
        axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axis.margins(x=0.08)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    times = [row["step_ms"] for row in table if row["step_ms"] is not None]
    axes[2].set_ylim(0, 1.1 * max(times, default=1.0))  # a time is read against zero
    figure.suptitle(title, fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=min(len(labels), 4),
                      fontsize=8.5)
    return figure


def _order(value: Any) -> tuple[int, float, str]:
    """Returns a key that sorts numbers by size, and texts after them."""
    try:
        return 0, float(value), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(value)
