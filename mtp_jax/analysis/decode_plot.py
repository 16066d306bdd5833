"""Speedup and tokens per forward over the heads in use: ours, from benchmarks/decode.py, beside the paper's."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PaperCurve:
    """One column of the paper's tables on self-speculative decoding.

    Attributes:
      table: of Gloeckle et al. 2024, arXiv 2404.19737.
      model: what was decoded.
      num_heads: n.
      text: what the prompts were.
      unit: of `tokens_per_forward`, "tokens" or "bytes".
      speedup: {k: ratio of throughput to k = 1}.
      tokens_per_forward: {k: tokens}.
    """

    table: str
    model: str
    num_heads: int
    text: str
    unit: str
    speedup: Mapping[int, float]
    tokens_per_forward: Mapping[int, float]


PAPER = (
    PaperCurve("S2", "7B", 4, "code", "tokens", {1: 1.0, 2: 1.85, 3: 2.54, 4: 3.05},
               {1: 1.0, 2: 1.94, 3: 2.78, 4: 3.50}),
    PaperCurve("S2", "7B", 4, "Wikipedia", "tokens", {1: 1.0, 2: 1.79, 3: 2.35, 4: 2.74},
               {1: 1.0, 2: 1.88, 3: 2.57, 4: 3.12}),
    PaperCurve("S2", "7B", 4, "books", "tokens", {1: 1.0, 2: 1.77, 3: 2.32, 4: 2.67},
               {1: 1.0, 2: 1.87, 3: 2.56, 4: 3.09}),
    PaperCurve("S3", "7B", 8, "code", "bytes", {1: 1.0, 2: 1.94, 4: 3.67, 8: 6.39},
               {1: 1.0, 2: 1.98, 4: 3.84, 8: 7.04}),
)
PANELS = (("speedup", "Speedup", "times the tokens per second of k = 1"),
          ("tokens_per_forward", "Tokens per forward", "tokens (of a byte model: bytes)"))
TICKS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
# Okabe and Ito's colours, which differ for the colour-blind too; black and grey are the paper's.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS, DASHES = ("o", "s", "D", "^"), ("-", "--", "-.", ":")
PAPER_LOOKS = (("0.0", "v"), ("0.35", "<"), ("0.55", ">"), ("0.0", "X"))


def paper_figures(num_heads: int, k: int) -> list[dict[str, Any]]:
    """Returns what the paper measured with k of `num_heads` heads, one entry a kind of text; none where it did not."""
    return [{"table": curve.table, "model": curve.model, "text": curve.text, "speedup": curve.speedup[k],
             "tokens_per_forward": curve.tokens_per_forward[k]}
            for curve in PAPER if curve.num_heads == num_heads and k in curve.speedup]


def plot(records: Sequence[Record], path: epath.PathLike, *, batch: int = 1) -> epath.Path:
    """Draws two panels over k, speedup and tokens per forward, one curve a model and kind of text, and saves them.

    Args:
      records: lines of `benchmarks.decode`; those of chains with "benchmark" "decode" and this batch are drawn.
      path: of the picture, a PNG.
      batch: rows decoded at a time.

    Returns:
      The path.

    Raises:
      ValueError: no record fits, or one lacks a field.
    """
    buffer = io.BytesIO()
    _figure(curves(records, batch=batch), batch=batch).savefig(buffer, format="png", dpi=110)
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(buffer.getvalue())
    return target


def curves(records: Sequence[Record], *, batch: int) -> dict[tuple[int, str], list[Record]]:
    """Returns {(heads of the model, kind of text): chains in the order of k}; a later record replaces an earlier one.

    Raises:
      ValueError: no record fits, or one lacks a field.
    """
    found: dict[tuple[int, str], dict[int, Record]] = {}
    for record in records:
        if record.get("benchmark") != "decode" or record.get("batch") != batch or record.get("tree"):
            continue
        missing = [name for name in ("num_heads", "text", "k", "speedup", "tokens_per_forward") if name not in record]
        if missing:
            raise ValueError(f"A line of the results lacks {', '.join(missing)}: run benchmarks.decode again.")
        found.setdefault((record["num_heads"], record["text"]), {})[record["k"]] = record
    if not found:
        raise ValueError(f"The results hold no chain decoded at batch {batch}: name a file that benchmarks.decode "
                         "wrote with --output.")
    return {key: [by_k[k] for k in sorted(by_k)] for key, by_k in sorted(found.items())}


def _figure(ours: Mapping[tuple[int, str], Sequence[Record]], *, batch: int):
    """Returns the matplotlib figure of `curves`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only plots need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    models, texts = list(dict.fromkeys(n for n, _ in ours)), list(dict.fromkeys(text for _, text in ours))
    most = max(max(models), max(curve.num_heads for curve in PAPER))
    axes = figure.subplots(1, len(PANELS))
    for panel, (field, title, unit) in zip(axes, PANELS):
        panel.plot(range(1, most + 1), range(1, most + 1), color="0.85", linewidth=1.2,
                   label="k: every draft accepted, at no cost")
        for (num_heads, text), line in ours.items():
            model, color = models.index(num_heads), COLORS[texts.index(text) % len(COLORS)]
            panel.plot([record["k"] for record in line], [record[field] for record in line], linewidth=1.9, zorder=3,
                       markersize=5.5, color=color, marker=MARKERS[model % len(MARKERS)],
                       linestyle=DASHES[model % len(DASHES)],
                       label=f"{num_heads} heads, {text}")
            for record in line:  # the 90 % interval
                if field == "speedup" and "speedup_90" in record:
                    panel.plot([record["k"]] * 2, record["speedup_90"], color=color, linewidth=1.2, zorder=3)
        for curve, (color, marker) in zip(PAPER, PAPER_LOOKS):
            over_k: Mapping[int, float] = getattr(curve, field)
            panel.plot(list(over_k), list(over_k.values()), color=color, linewidth=1.0, linestyle=":", marker=marker,
                       markersize=5,
                       label=f"paper's {curve.model} on {curve.unit}, {curve.num_heads} heads, {curve.text}")
        panel.set_xlabel("k, heads in use")
        panel.set_title(title, fontsize=10)
        panel.set_ylabel(unit)
        panel.set_xticks(range(1, most + 1))
        panel.set_yscale("log")  # of ratios; and ours would lie flat below the paper's
        panel.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        panel.minorticks_off()
        values = [y for line in panel.lines for y in np.ravel(line.get_ydata())]
        panel.set_ylim(0.95 * min(0.9, *values), 1.05 * max(values))
        panel.grid(alpha=0.25)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.suptitle(f"Self-speculative greedy decoding, batch {batch} (the paper's: batch 42 and 16)", fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center", fontsize=8.5)
    return figure
