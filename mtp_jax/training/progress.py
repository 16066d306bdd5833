"""What a run shows of itself on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import jax

from mtp_jax.config import check_choice
from mtp_jax.terminal import bar_size
from mtp_jax.training.logs import Record

LINE_SECONDS = 5.0  # plain lines of training come at most this often


def duration(seconds: float) -> str:
    """Returns a time span in words a person reads at a glance, such as "2m05s"."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: float) -> str:
    """Returns a number with three digits and a unit, such as "12.3k"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    return f"{number:.0f}"


def summary(record: Record) -> str:
    """Returns a record in one line, without its step: loss, loss of each head, speed."""
    parts = [f"loss {record.loss:.3f}", "heads " + _heads(record.head_loss)]
    if record.tokens_per_second is not None:
        parts.append(f"{count(record.tokens_per_second)} tok/s")
    if record.tflops_per_device is not None:
        parts.append(f"{record.tflops_per_device:.3g} TFLOP/s")
    if record.mfu is not None:
        parts.append(f"MFU {100 * record.mfu:.1f}%")
    return "  ".join(parts)


def _heads(losses: Sequence[float | None]) -> str:
    """Returns the losses of heads, with a dash for an inactive one."""
    return " ".join("-" if value is None else f"{value:.2f}" for value in losses)


class Progress:
    """Shows a run's progress on stderr. Only process 0 prints; elsewhere calls do nothing.

    Example:
      with Progress(mode="auto", first_step=0, num_steps=1000) as progress:
        for step in range(1, 1001):
          ...
          progress.advance(step)
          if step % 10 == 0:
            progress.show(record)
    """

    def __init__(self, *, mode: str, first_step: int, num_steps: int, stream: TextIO | None = None):
        """Starts the display.

        Args:
          mode: `logging.progress`: "bar", "lines", or "auto", a bar if the stream is a terminal.
          first_step: steps that were done before, above 0 when a run resumes.
          num_steps: steps of the whole run.
          stream: where to print; stderr if None.
        """
        check_choice("logging.progress", mode, ("auto", "bar", "lines"))
        self._stream = sys.stderr if stream is None else stream
        self._active = jax.process_index() == 0
        self._num_steps = num_steps
        self._step = first_step
        self._timed: tuple[int, float] | None = None  # the step after which time is taken, for compiling comes before
        self._shown = float("-inf")
        self._bar: Any = None
        if self._active and (mode == "bar" or (mode == "auto" and self._stream.isatty())):
            from tqdm import tqdm  # only where a bar is shown

            self._bar = tqdm(initial=first_step, total=num_steps, file=self._stream, unit="step",
                             **bar_size(self._stream), bar_format="{percentage:3.0f}%|{bar:8}| {n}/{total}{postfix}")

    def advance(self, step: int) -> None:
        """Moves to `step` steps done; cheap, for every step."""
        if self._timed is None:
            self._timed = (step, time.monotonic())
        self._step = step
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def seconds_left(self) -> float | None:
        """Returns the estimated time to the last step, in seconds, or None before two steps were seen."""
        if self._timed is None or self._step <= self._timed[0]:
            return None
        step, since = self._timed
        return (time.monotonic() - since) / (self._step - step) * (self._num_steps - self._step)

    def show(self, record: Record) -> None:
        """Shows a record. As plain lines, training records come at most every `LINE_SECONDS`, but for the last step.

        Args:
          record: the numbers; a validation record always gets its own line.
        """
        if not self._active:
            return
        text, left = summary(record), self.seconds_left()
        eta = "" if left is None or record.step >= self._num_steps else f"ETA {duration(left)}"
        if record.split == "train" and self._bar is not None:
            self._bar.set_postfix_str(f"{eta}  {text}".lstrip())  # a narrow terminal cuts the end
            return
        now = time.monotonic()
        if record.split == "train":
            if now - self._shown < LINE_SECONDS and record.step < self._num_steps:
                return
            self._shown = now
            text = f"{text}  {eta}".rstrip()
        self.message(f"{record.split} {record.step}/{self._num_steps}  {text}")

    def message(self, text: str) -> None:
        """Prints a line of text, above the bar where there is one."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the display."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
