"""How a sweep shows its progress: a table that is drawn anew on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from etils import epath

from mtp_jax.analysis.loss_plot import METRICS_FILE
from mtp_jax.analysis.sweep_cells import Cell
from mtp_jax.files import REMOTE

DRAW_SECONDS = 1.0  # between two drawings on a terminal
LINE_SECONDS = 30.0  # between two plain lines about a cell; and between two looks into a bucket
TAIL_BYTES = 2**16  # of metrics.jsonl, enough for its last line
WAITING, RUNNING = "waiting", "running"


class Board:
    """The table of a sweep's cells.

    Args:
      cells: all of them.
      done: names of those that were done before.
      stream: where to print; stderr if None.
    """

    def __init__(self, cells: Sequence[Cell], *, done: Sequence[str] = (), stream: TextIO | None = None):
        self._cells = list(cells)
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._status = {cell.name: "done before" if cell.name in done else WAITING for cell in cells}
        self._since: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._seen: dict[str, tuple[float, dict[str, Any] | None]] = {}
        self._drawn, self._lines = float("-inf"), 0

    def began(self, cell: Cell, attempt: int) -> None:
        """A cell's process has started."""
        self._status[cell.name] = RUNNING
        self._since[cell.name] = self._told[cell.name] = time.monotonic()
        if not self._live:
            self.message(f"{cell.name}: started{f', attempt {attempt}' if attempt > 1 else ''}")

    def ended(self, cell: Cell, status: str, why: str = "") -> None:
        """A cell's process has ended."""
        self._status[cell.name] = status
        took = f"after {_duration(time.monotonic() - self._since[cell.name])}"
        self._seen.pop(cell.name, None)
        if why or not self._live:
            self.message(f"{cell.name}: {why or status} {took}{self._numbers(cell)}")
        self._drawn = float("-inf")

    def message(self, text: str) -> None:
        """Prints a line that stays, above the table."""
        self._clear()
        print(text, file=self._stream, flush=True)
        self._drawn = float("-inf")

    def show(self) -> None:
        """Draws the table, or tells of the cells that run; does nothing when it has just done so."""
        now = time.monotonic()
        if not self._live:
            for cell in self._cells:
                if self._status[cell.name] == RUNNING and now - self._told[cell.name] >= LINE_SECONDS:
                    self._told[cell.name] = now
                    self.message(f"{cell.name}: {_duration(now - self._since[cell.name])}{self._numbers(cell)}")
            return
        if now - self._drawn >= DRAW_SECONDS:
            self._clear()
            lines = self.table()
            self._stream.write("".join(line + "\n" for line in lines))
            self._stream.flush()
            self._drawn, self._lines = now, len(lines)

    def table(self) -> list[str]:
        """Returns the table, no longer and no wider than the terminal: running cells first where not all fit."""
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = 0, 0
        columns, room = columns or 100, (rows or 24) - 2
        cells = self._cells
        if len(cells) > room:
            order = {RUNNING: 0, "failed": 1, WAITING: 2}
            cells = sorted(cells, key=lambda cell: order.get(self._status[cell.name], 3))[:room - 1]
        width = max((len(cell.name) for cell in cells), default=0)
        lines = []
        for cell in cells:
            status, took = self._status[cell.name], ""
            if status == RUNNING:
                took = _duration(time.monotonic() - self._since[cell.name])
            lines.append(f"{cell.name:{width}}  {status:11}  {took:>6}{self._numbers(cell)}"[:columns - 1].rstrip())
        if len(cells) < len(self._cells):
            lines.append(f"... {len(self._cells) - len(cells)} more of {len(self._cells)} cells")
        return lines

    def _numbers(self, cell: Cell) -> str:
        """Returns the last numbers of a cell, with a separator in front; empty before there are any."""
        now = time.monotonic()
        seen = self._seen.get(cell.name)
        if seen is None or (REMOTE not in cell.workdir and self._status[cell.name] == RUNNING) \
                or now - seen[0] > LINE_SECONDS:
            seen = self._seen[cell.name] = (now, last_record(cell.workdir))
        record = seen[1]
        if record is None:
            return ""
        loss, rate = record["head_loss"][0], record["tokens_per_second"]
        return (f"  step {record['step']}/{cell.num_steps}" + (f", head 1 {loss:.3f}" if loss is not None else "")
                + (f", {rate:,.0f} tokens/s" if rate else ""))

    def _clear(self) -> None:
        """Takes the table off the terminal."""
        if self._lines:
            self._stream.write(f"\x1b[{self._lines}A\x1b[J")
            self._lines = 0


def last_record(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Returns the last train line of a run's metrics.jsonl that is whole; None without one."""
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        start = max(file.tell() - TAIL_BYTES, 0)
        file.seek(start)
        lines = file.read().splitlines(keepends=True)[1 if start else 0:]
    for line in reversed(lines):
        try:
            record = json.loads(line) if line.endswith(b"\n") else {}
            if record.get("split") == "train":
                return record
        except (ValueError, AttributeError):  # a damaged line, which the run that starts removes
            continue
    return None


def _duration(seconds: float) -> str:
    """Returns a time span such as "2m05s"."""
    whole = int(seconds + 0.5)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else (
        f"{whole // 3600}h{whole % 3600 // 60:02d}m")
