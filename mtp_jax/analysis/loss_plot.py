"""The loss of each head over steps, from a workdir's metrics.jsonl to plots/loss.png."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "plots/loss.png"
SMOOTH_POINTS = 25  # a longer training curve is averaged down to about this many points


class DamagedError(ValueError):
    """A line of metrics.jsonl cannot be read."""


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a workdir's metrics.jsonl; a last line that is still being written is left out.

    Raises:
      ValueError: there is no such file, or it holds no line yet.
      DamagedError: a line cannot be read.
    """
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: is workdir={str(workdir)!r} the folder of a run?")
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
    if not lines:
        raise ValueError(f"{path} holds no line yet: plot the run after its first logged step.")
    return [_record(line, number, path) for number, line in enumerate(lines, 1)]


def _record(line: str, number: int, path: epath.Path) -> dict[str, Any]:
    """Returns what a line of a metrics.jsonl holds."""
    try:
        record = json.loads(line)
        if not {"step", "split"} <= record.keys():
            raise ValueError("no step or no split")
    except (ValueError, AttributeError) as error:  # AttributeError: JSON, but not an object
        raise DamagedError(f"{path} is damaged in line {number} ({error}): delete the line, or start the run again, "
                           "which removes it.") from error
    return record


def in_bytes(workdir: epath.PathLike) -> bool:
    """Tells whether a run's tokens are bytes, by its config.json."""
    path = epath.Path(workdir) / "config.json"
    return path.exists() and json.loads(path.read_text()).get("data", {}).get("tokenizer") == "bytes"


def curve(records: Sequence[dict[str, Any]], *, split: str, head: int) -> tuple[list[int], list[float]]:
    """Returns the steps and losses (nats per token) of a head, from 1; lines where it is inactive are left out."""
    points = [(record["step"], record["head_loss"][head - 1]) for record in records if record["split"] == split]
    points = [(step, loss) for step, loss in points if loss is not None]
    return [step for step, _ in points], [loss for _, loss in points]


def curve_of_source(records: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Returns the steps and validation losses (nats per token) of head 1 on one source of a mixture."""
    parts = [{"step": record["step"], "split": "validation", **record["sources"][name]} for record in records
             if name in record.get("sources", {})]
    return curve(parts, split="validation", head=1)


def smooth(values: Sequence[float], *, points: int = SMOOTH_POINTS) -> list[float]:
    """Returns running means over a window that leaves about `points` independent values; short series are unchanged."""
    half = len(values) // points // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for i in range(len(values)):
        start = max(i - half, 0)
        end = min(i + half, 2 * i, len(values) - 1)  # even at the start, where the loss falls fast
        means.append((sums[end + 1] - sums[start]) / (end + 1 - start))
    return means


def plot_loss(workdir: epath.PathLike, *, title: str = "") -> epath.Path:
    """Draws one curve a head, training thin and validation with markers, and saves it in the workdir.

    Of a mixture, the validation loss of head 1 on each source is drawn, too, in grey.

    Args:
      workdir: folder of a run, local or in a bucket.
      title: of the plot; empty: the name of the workdir and what is shown.

    Returns:
      The path of the picture, plots/loss.png.

    Raises:
      ValueError: the workdir has no metrics.
    """
    records = read_metrics(workdir)
    target = epath.Path(workdir) / PLOT_FILE
    buffer = io.BytesIO()
    figure = _figure(records, bytes_=in_bytes(workdir), title=title or f"{epath.Path(workdir).name}: loss of each head")
    figure.savefig(buffer, format="png", dpi=110)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(buffer.getvalue())
    return target


def _figure(records: Sequence[dict[str, Any]], *, bytes_: bool, title: str):
    """Returns the matplotlib figure of a run's losses."""
    import matplotlib  # slow to import, and only plots need it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unit = math.log(2) if bytes_ else 1.0
    num_heads = max(len(record["head_loss"]) for record in records)
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["viridis"]
    shown: list[float] = []
    for head in range(1, num_heads + 1):
        color = colors(0.87 * (head - 1) / max(num_heads - 1, 1))
        steps, losses = curve(records, split="train", head=head)
        losses = [loss / unit for loss in smooth(losses)]
        axes.plot(steps, losses, color=color, linewidth=1.0, alpha=0.55)
        tested, validation = curve(records, split="validation", head=head)
        validation = [loss / unit for loss in validation]
        last = f"{validation[-1]:.2f}" if validation else "none"
        axes.plot(tested, validation, color=color, linewidth=2.0, marker="o", markersize=4.5, zorder=3,
                  label=f"head {head}: {last}")
        shown += losses[len(losses) // 20:] + validation
    for number, name in enumerate(dict.fromkeys(name for record in records for name in record.get("sources", {}))):
        tested, losses = curve_of_source(records, name)
        losses = [loss / unit for loss in losses]
        axes.plot(tested, losses, color="0.3", linewidth=1.0, linestyle=("--", ":", "-.")[number % 3],
                  label=f"{name}, head 1: {losses[-1]:.2f}" if losses else f"{name}, head 1: none")
        shown += losses
    axes.plot([], [], color="0.4", linewidth=1.0, alpha=0.55, label="training")
    axes.plot([], [], color="0.4", linewidth=2.0, marker="o", markersize=4.5, label="validation")
    _frame(axes, shown)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte" if bytes_ else "nats per token")
    figure.legend(frameon=False, loc="outside right upper", title="last validation", alignment="left")
    return figure


def _frame(axes: Any, values: Sequence[float]) -> None:
    """Fits the y axis to `values`, which leave out the first steps, and draws a light grid."""
    if values:
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    axes.margins(x=0.02)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
