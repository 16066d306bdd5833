"""Pictures of studies: means over seeds with every seed as a point, as lines over an axis, bars or dashes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.decode_plot import COLORS, MARKERS
from mtp_jax.analysis.study import Row
from mtp_jax.files import replace

MOST_TICKS = 12  # of an axis that names each of its values
Points = Mapping[Any, Sequence[float]]  # {x: a value a seed}


def points(rows: Sequence[Row], x: str, y: str, **group: Any) -> dict[Any, list[float]]:
    """Returns {value of x: values of y} of the rows of a group that have y."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        if row.get(y) is not None and all(row.get(key) == value for key, value in group.items()):
            found.setdefault(row[x], []).append(row[y])
    return found


class Picture:
    """A picture of one or several panels side by side.

    Args:
      panels: how many.
      title: above them.
      rows: that they stand in.
    """

    def __init__(self, panels: int = 1, *, title: str = "", rows: int = 1):
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only plots need it
        from matplotlib.figure import Figure

        columns = -(-panels // rows)
        self._figure = Figure(figsize=(1.5 + 4.2 * columns, 3.9 * rows), layout="constrained")
        FigureCanvasAgg(self._figure)  # no display, and no global state of pyplot
        places = list(self._figure.subplots(rows, columns, squeeze=False).flat)
        self.axes: list[Any] = places[:panels]
        for place in places[panels:]:
            place.set_axis_off()
        if title:
            self._figure.suptitle(title, fontsize=11)

    def lines(self, panel: int, series: Mapping[str, Points], *, x: str, y: str, title: str = "") -> Any:
        """Draws a curve of means a series, the seeds as points; returns matplotlib's axes.

        Args:
          panel: its number from 0.
          series: {label: points}.
          x: what the x axis is; numbers lie where they belong, other values are evenly spaced, in order.
          y: what the y axis is.
          title: of the panel.
        """
        axis = self.frame(panel, x, y, title)
        ticks = sorted({place for values in series.values() for place in values})
        place_of = {tick: tick if isinstance(tick, (int, float)) else ticks.index(tick) for tick in ticks}
        for number, (label, values) in enumerate(series.items()):
            color, own = COLORS[number % len(COLORS)], [tick for tick in ticks if tick in values]
            places = [place_of[tick] for tick in own]
            axis.plot(places, [statistics.fmean(values[tick]) for tick in own], color=color, linewidth=1.9, zorder=3,
                      marker=MARKERS[number % len(MARKERS)], markersize=5, label=label)
            for place, tick in zip(places, own):
                axis.plot([place] * len(values[tick]), values[tick], color=color, marker=".", linestyle="", alpha=0.5)
        if len(ticks) <= MOST_TICKS:
            axis.set_xticks(list(place_of.values()), [str(tick) for tick in ticks])
        if len(series) > 1:
            axis.legend(frameon=False, fontsize=8.5)
        return axis

    def bars(self, panel: int, groups: Mapping[str, Points], *, x: str, y: str, title: str = "") -> Any:
        """Draws a group of bars a value of x, one bar a label, the seeds as points; returns matplotlib's axes.

        Args:
          panel: its number from 0.
          groups: {label: points}.
          x: what the x axis is.
          y: what the y axis is.
          title: of the panel.
        """
        axis = self.frame(panel, x, y, title)
        ticks = list(dict.fromkeys(place for values in groups.values() for place in values))
        width = 0.8 / max(len(groups), 1)
        for number, (label, values) in enumerate(groups.items()):
            for tick, own in values.items():
                place = ticks.index(tick) + (number - (len(groups) - 1) / 2) * width
                axis.bar(place, statistics.fmean(own), width * 0.92, color=COLORS[number % len(COLORS)], zorder=2,
                         label=label if tick == next(iter(values)) else None)
                axis.plot([place] * len(own), own, color="0.15", marker=".", linestyle="", markersize=4, zorder=3)
        axis.axhline(0, color="0.3", linewidth=0.8)
        axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        if len(groups) > 1:
            axis.legend(frameon=False, fontsize=8.5)
        return axis

    def dots(self, panel: int, values: Points, *, x: str, y: str, title: str = "") -> Any:
        """Draws the seeds of each value of x as points and their mean as a dash, for numbers that do not start at 0.

        Args:
          panel: its number from 0.
          values: a list a value of x.
          x: what the x axis is.
          y: what the y axis is.
          title: of the panel.

        Returns:
          matplotlib's axes.
        """
        axis = self.frame(panel, x, y, title)
        for place, own in enumerate(values.values()):
            axis.plot(place, statistics.fmean(own), color=COLORS[0], marker="_", markersize=28, markeredgewidth=2.5)
            axis.plot([place] * len(own), own, color="0.15", marker=".", linestyle="", markersize=5, zorder=3)
        axis.set_xlim(-0.6, len(values) - 0.4)
        axis.set_xticks(range(len(values)), [str(tick) for tick in values])
        return axis

    def save(self, path: epath.PathLike) -> epath.Path:
        """Writes the picture as PNG and returns its path."""
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png", dpi=110)
        return replace(epath.Path(path), buffer.getvalue())

    def frame(self, panel: int, x: str, y: str, title: str) -> Any:
        """Labels a panel that is still empty and returns matplotlib's axes, for what has no method here."""
        axis = self.axes[panel]
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        return axis
