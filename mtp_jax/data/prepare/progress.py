"""How far preparing has come, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from mtp_jax.terminal import bar_size

LINE_SECONDS = 5.0  # plain lines come at most this often


class Progress:
    """Shows bytes done of bytes in all.

    Example:
      with Progress("tokenizing", total=10**9) as progress:
        progress.update(10**6)
    """

    def __init__(self, what: str, *, total: int, stream: TextIO | None = None):
        """Starts the display.

        Args:
          what: that is done, in a word.
          total: bytes in all.
          stream: where to print; stderr if None.
        """
        self._what, self._total = what, total
        self._stream = sys.stderr if stream is None else stream
        self._start = self._shown = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm  # only where a bar is shown

            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, file=self._stream,
                             **bar_size(self._stream))

    def update(self, done: int) -> None:
        """Shows that `done` bytes are done, at times."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown >= LINE_SECONDS:
            self._shown = now
            speed = done / (now - self._start)
            left = f", {(self._total - done) / speed:,.0f} s left" if done else ""
            print(f"{self._what}: {done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, {speed / 1e6:,.1f} MB/s{left}",
                  file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
