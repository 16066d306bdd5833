"""Being told to stop, and the exit status that says how a run ended."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import jax

DONE = 0  # all steps done
ERROR = 1  # an error, told on stderr
UNFINISHED = 75  # saved and unfinished: SIGTERM or preemption; run the same command again (EX_TEMPFAIL)
INTERRUPTED = 130  # Ctrl-C; saved


class StopSignals:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and end; a second Ctrl-C ends at once.

    In a run of several processes SIGTERM has no handler of ours: the runtime's own tells all of them to stop at the
    same step, and one of ours would keep it from being told. Ctrl-C on one is handed to it as SIGTERM.
    """

    def __init__(self) -> None:
        self._status: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        del frame
        if number == signal.SIGINT and self._status is not None:
            raise KeyboardInterrupt
        self._status = INTERRUPTED if number == signal.SIGINT else UNFINISHED
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def status(self, step: int) -> int | None:
        """Returns the exit status to end with after `step`, or None to go on, on every process alike."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            stops = multihost_utils.reached_preemption_sync_point(step)
            return (self._status or UNFINISHED) if stops else None
        return self._status
