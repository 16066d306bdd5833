"""Pictures of a scaling law over what was measured: a panel for each (T_m or n, N), or all points at once."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.analysis.decode_plot import COLORS, MARKERS
from mtp_jax.analysis.scaling.measures import r_squared
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.files import replace

MOST_ROWS, MOST_COLUMNS = 12, 8  # of panels that can still be read
LOG_FROM = 30.0  # an axis whose largest value is this many times its smallest is logarithmic


def fits_a_grid(points: Points) -> bool:
    """Tells whether points can be drawn as panels: curves over D, of few N, n and T."""
    return points.along_runs() and len(_columns(points)) <= MOST_COLUMNS and len(_rows(points)) <= MOST_ROWS


def plot_grid(points: Points, predicted: np.ndarray, path: epath.PathLike, *, held_out: np.ndarray | None = None,
              title: str = "") -> epath.Path:
    """Draws real and predicted loss over tokens: a row each T_m or n, a column each N, all with the same axes.

    Measured losses are points, hollow where the fit did not see them; predicted ones are lines. Where a panel has
    several heads or loops, each has a colour. Above each panel stand R^2, within these, and RMSE of all its points.

    Args:
      points: what was measured.
      predicted: the law's loss at each of them, nats.
      path: of the picture, a PNG.
      held_out: mask of the points that the fit did not see; None: it saw all.
      title: above the picture.

    Returns:
      The path.

    Raises:
      ValueError: there are too many panels to be read.
    """
    return _save(_grid(points, predicted, _mask(points, held_out), title), path)


def plot_points(points: Points, predicted: np.ndarray, path: epath.PathLike, *, held_out: np.ndarray | None = None,
                title: str = "") -> epath.Path:
    """Draws predicted over real loss, and the error over the training FLOPs 6 N D; arguments as `plot_grid`."""
    return _save(_plain(points, predicted, _mask(points, held_out), title), path)


def short(value: float) -> str:
    """Returns a count in few characters, such as 4.8M or 70B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _columns(points: Points) -> list[float]:
    """Returns the sizes, a column of panels each."""
    return sorted(set(points["N"].tolist()))


def _rows(points: Points) -> list[tuple[float, float]]:
    """Returns the (n, T) of the points, a row of panels each."""
    return sorted(set(zip(points["n"].tolist(), points["T"].tolist())))


def _mask(points: Points, held_out: np.ndarray | None) -> np.ndarray:
    return np.zeros(len(points), bool) if held_out is None else held_out


def _label(row: tuple[float, float], rows: list[tuple[float, float]]) -> str:
    """Returns what a row is of: of n and T the ones that differ between rows."""
    (n, loops), several = row, [len(set(values)) > 1 for values in zip(*rows)]
    parts = [f"n = {n:g}"] if several[0] else []
    return ", ".join([*parts, *([f"$T_m$ = {loops:g}"] if several[1] else [])])


def _quality(points: Points, predicted: np.ndarray, *, within: tuple[str, ...] = ()) -> str:
    """Returns R^2 and RMSE as text.

    The spread that R^2 compares with is that within the values of some columns, so that of a panel with several heads
    the distance between heads, which any law has right, does not count. R^2 of equal losses is not defined.
    """
    real = points["loss"]
    _, group = np.unique(np.stack([points[name] for name in within] or [np.zeros(len(points))]), axis=1,
                         return_inverse=True)
    r2 = r_squared(real, predicted, group.reshape(-1))
    told = "" if math.isnan(r2) else f"$R^2$ {r2:.3f}, "
    return f"{told}RMSE {math.sqrt(np.mean((real - predicted) ** 2)):.3g}"


def _grid(points: Points, predicted: np.ndarray, held_out: np.ndarray, title: str) -> Any:
    """Returns matplotlib's figure of the panels."""
    sizes, rows = _columns(points), _rows(points)
    if len(sizes) > MOST_COLUMNS or len(rows) > MOST_ROWS:
        raise ValueError(f"{len(rows)} x {len(sizes)} panels cannot be read: at most {MOST_ROWS} values of n and T "
                         f"and {MOST_COLUMNS} of N can be drawn; leave some out with --keep, or draw --kind=points.")
    figure = _figure(1.3 + 2.3 * len(sizes), 1.2 + 1.9 * len(rows), title)
    panels = figure.subplots(len(rows), len(sizes), sharex=True, sharey=True, squeeze=False)
    series = sorted(set(zip(points["head"].tolist(), points["loop"].tolist())))
    heads, loops = (len({pair[place] for pair in series}) for place in (0, 1))
    colored = list(dict.fromkeys(pair[0] if heads > 1 else pair[1] for pair in series)) if _split(points) else []
    for i, row in enumerate(rows):
        for j, size in enumerate(sizes):
            panel = panels[i, j]
            _light(panel)
            inside = (points["N"] == size) & (points["n"] == row[0]) & (points["T"] == row[1])
            if inside.any():
                panel.set_title(_quality(points.select(inside), predicted[inside], within=("head", "loop")), fontsize=8)
            else:
                panel.text(0.5, 0.5, "not run", transform=panel.transAxes, ha="center", fontsize=8, color="0.5")
            for head, loop in series:
                mine = inside & (points["head"] == head) & (points["loop"] == loop)
                place = colored.index(head if heads > 1 else loop) if colored else 0
                if mine.any():
                    _curves(panel, points, predicted, held_out, mine, place)
            if i == 0:
                panel.annotate(f"N = {short(size)}", (0.5, 1.22), xycoords="axes fraction", ha="center", fontsize=10)
            if j == len(sizes) - 1 and len(rows) > 1:
                panel.annotate(_label(row, rows), (1.04, 0.5), xycoords="axes fraction", va="center", rotation=270,
                               fontsize=10)
    if points["D"].max() > LOG_FROM * points["D"].min():
        panels[0, 0].set_xscale("log")
    else:
        panels[0, 0].xaxis.set_major_formatter(lambda value, _: short(value) if value else "0")
    _legend(figure, colored, "head" if heads > 1 else "loop", bool(held_out.any()))
    for panel in panels[-1]:  # the legend would lie over a label of the whole figure
        panel.set_xlabel("tokens trained on", fontsize=9)
    figure.supylabel("loss, nats per token", fontsize=10)
    return figure


def _split(points: Points) -> bool:
    """Tells whether a run has losses of several heads or loops."""
    keys = set(zip(points["run"].tolist(), points["head"].tolist(), points["loop"].tolist()))
    return len(keys) > len(points.runs)


def _curves(panel: Any, points: Points, predicted: np.ndarray, held_out: np.ndarray, mine: np.ndarray,
            place: int) -> None:
    """Draws the points of one head and loop in a panel, and the law's line through the same D."""
    color = COLORS[place % len(COLORS)]
    for fill, chosen in ((color, mine & ~held_out), ("white", mine & held_out)):
        panel.plot(points["D"][chosen], points["loss"][chosen], linestyle="", markersize=3.6, markerfacecolor=fill,
                   marker=MARKERS[place // len(COLORS) % len(MARKERS)], markeredgecolor=color, markeredgewidth=0.8,
                   alpha=0.75)
    order = np.flatnonzero(mine)[np.argsort(points["D"][mine], kind="stable")]
    panel.plot(points["D"][order], predicted[order], color="0.1", linewidth=1.2, zorder=3)


def _legend(figure: Any, colored: list[float], what: str, hollow: bool) -> None:
    """Says what points, lines and colours are."""
    from matplotlib.lines import Line2D

    def dot(color: str, label: str, fill: str | None = None, marker: str = "o") -> Any:
        return Line2D([], [], linestyle="", marker=marker, markersize=4.5, markerfacecolor=fill or color,
                      markeredgecolor=color, label=label)

    handles = [dot("0.35" if colored else COLORS[0], "measured")]
    if hollow:
        handles.append(dot("0.35" if colored else COLORS[0], "measured, held out", fill="white"))
    handles.append(Line2D([], [], color="0.1", linewidth=1.2, label="predicted"))
    for place, value in enumerate(colored):
        marker = MARKERS[place // len(COLORS) % len(MARKERS)]
        handles.append(dot(COLORS[place % len(COLORS)], f"{what} {value:g}", marker=marker))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=9)


def _plain(points: Points, predicted: np.ndarray, held_out: np.ndarray, title: str) -> Any:
    """Returns matplotlib's figure of all points at once."""
    figure = _figure(9.6, 4.2, title)
    left, right = figure.subplots(1, 2)
    for axis in (left, right):
        _light(axis)
    real, flops = points["loss"], 6 * points["N"] * points["D"]
    low, high = min(real.min(), predicted.min()), max(real.max(), predicted.max())
    left.plot([low, high], [low, high], color="0.5", linewidth=1, zorder=1)
    for color, fill, chosen, label in ((COLORS[0], COLORS[0], ~held_out, "fitted"),
                                       (COLORS[1], "white", held_out, "held out")):
        if not chosen.any():
            continue
        look = {"linestyle": "", "marker": "o", "markersize": 4.2, "markerfacecolor": fill, "markeredgecolor": color,
                "alpha": 0.8}
        left.plot(real[chosen], predicted[chosen], **look,
                  label=f"{label}, {chosen.sum()}: {_quality(points.select(chosen), predicted[chosen])}")
        right.plot(flops[chosen], predicted[chosen] - real[chosen], **look)
    left.set_xlabel("measured loss, nats per token")
    left.set_ylabel("predicted loss, nats per token")
    left.legend(frameon=False, fontsize=8.5)
    right.axhline(0, color="0.5", linewidth=1)
    right.set_xlabel("training FLOPs, 6 N D")
    right.set_ylabel("predicted minus measured, nats per token")
    if flops.max() > LOG_FROM * flops.min():
        right.set_xscale("log")
    return figure


def _figure(width: float, height: float, title: str) -> Any:
    """Returns an empty figure without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only plots need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _light(axis: Any) -> None:
    """Draws a light grid and no box."""
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _save(figure: Any, path: epath.PathLike) -> epath.Path:
    """Writes a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return replace(epath.Path(path), buffer.getvalue())
