"""Runs the cells of a sweep on this machine: a process each, several at once, again where one fails."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import BinaryIO

from etils import epath

from mtp_jax.analysis.sweep_board import Board
from mtp_jax.analysis.sweep_cells import Cell, standing
from mtp_jax.analysis.sweep_record import SweepRecord
from mtp_jax.files import REMOTE

LOG_FILE = "log.txt"
DONE, ERROR, UNFINISHED, INTERRUPTED = 0, 1, 75, 130  # exit statuses of a run, and of the sweep
POLL_SECONDS = 0.2
LAST_LINES = 15  # of the log of a cell that failed for good


@dataclasses.dataclass
class _Running:
    """A cell's process."""

    cell: Cell
    process: subprocess.Popen[bytes]
    log: BinaryIO
    started: float
    first_step: int


class _Stop:
    """Notes that the sweep is told to stop: how often, and the exit status to end with."""

    def __init__(self) -> None:
        self.count = 0
        self.status = INTERRUPTED
        self._told = threading.Event()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.count += 1
        self.status = INTERRUPTED if number == signal.SIGINT else UNFINISHED
        self._told.set()

    def wait(self, seconds: float) -> None:
        """Waits for a while, or until told."""
        self._told.wait(seconds)
        self._told.clear()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes Ctrl-C, SIGTERM and a closed terminal as requests to stop."""
        before = {number: signal.signal(number, self._note)
                  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                  if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}  # nohup
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class LocalRunner:
    """Runs cells to their end.

    A run that ends with 75 (saved and unfinished) is started again as often as it came further; one that fails,
    `retries` times more. What stops the sweep stops the cells: the first signal lets them save, the second ends them.
    """

    def __init__(self, *, command: Callable[[Cell], Sequence[str]], parallel: int, retries: int, record: SweepRecord,
                 board: Board, inherit: Sequence[int] = (), settled: Callable[[], object] = lambda: None):
        """Starts nothing yet.

        Args:
          command: returns the argv of a cell.
          parallel: cells that run at once.
          retries: how often a cell that failed is run again.
          record: of the sweep; seconds and attempts are noted there.
          board: shows the progress.
          inherit: descriptors that the cells keep open.
          settled: is called after each cell that ended for good, while the sweep goes on.
        """
        self._command, self._parallel, self._retries = command, parallel, retries
        self._record, self._board, self._inherit, self._settled = record, board, tuple(inherit), settled
        self._failures: collections.Counter[str] = collections.Counter()

    def run(self, cells: Sequence[Cell]) -> int:
        """Runs the cells that are not done.

        Returns:
          0 when all are done; 1 when one failed for good; 130 or 75 when the sweep was told to stop.
        """
        waiting = collections.deque(cells)
        running: list[_Running] = []
        stop, forwarded = _Stop(), 0
        with stop.listening():
            try:
                while running or (waiting and not stop.count):
                    while waiting and len(running) < self._parallel and not stop.count:
                        running.append(self._start(waiting.popleft()))
                    if stop.count > forwarded:
                        forwarded = stop.count
                        self._board.message("Stopping: the cells save and end; again to end them at once."
                                            if forwarded == 1 else "Ending the cells.")
                        for run in running:
                            _signal(run.process, signal.SIGTERM if forwarded == 1 else signal.SIGKILL)
                    for run in [run for run in running if run.process.poll() is not None]:
                        running.remove(run)
                        if self._settle(run, stopping=bool(stop.count)):
                            waiting.append(run.cell)
                    self._board.show()
                    if running:
                        stop.wait(POLL_SECONDS)
            finally:
                for run in running:  # only after an error of our own
                    _signal(run.process, signal.SIGKILL)
                    run.process.wait()
                    run.log.close()
        left = waiting or any(self._record[cell.name].status for cell in cells)
        return DONE if not left else stop.status if stop.count else ERROR

    def _start(self, cell: Cell) -> _Running:
        """Starts a cell's process; its output goes to the cell's log, after that of earlier attempts."""
        known, command = self._record[cell.name], list(self._command(cell))
        known.attempts, known.status, known.engine, known.job = known.attempts + 1, "stopped", "", ""
        self._record.write()  # a sweep that is killed leaves "stopped"
        log = _open_log(cell)
        log.write(f"$ {shlex.join(command)}    (attempt {known.attempts})\n".encode())
        log.flush()
        before = standing(cell).step  # first: a process that saves at once must be seen to have come further
        # A session of its own: Ctrl-C on the terminal reaches the sweep alone, which tells the cells once.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True, pass_fds=self._inherit)
        self._board.began(cell, known.attempts)
        return _Running(cell, process, log, time.monotonic(), before)

    def _settle(self, run: _Running, *, stopping: bool) -> bool:
        """Notes how a process ended; returns whether the cell is to be run again."""
        cell, known, code = run.cell, self._record[run.cell.name], run.process.returncode
        now = standing(cell)
        known.seconds += time.monotonic() - run.started
        told = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        if code == DONE and not now.done:
            told += f" at step {now.step} of {cell.num_steps}" + (f"; {now.problem}" if now.problem else "")
        _close_log(cell, run.log, f"({told})")
        again = False
        if code == DONE and now.done:
            known.status = ""
            self._board.ended(cell, "done")
        elif stopping or code in (INTERRUPTED, -signal.SIGINT):
            known.status = "stopped"
            self._board.ended(cell, "stopped")
        elif code == UNFINISHED and now.step > run.first_step:
            known.status, again = "stopped", True
            self._board.ended(cell, "waiting", f"saved at step {now.step} of {cell.num_steps} and is run again")
        else:
            self._failures[cell.name] += 1
            known.status, again = "failed", self._failures[cell.name] <= self._retries
            self._board.ended(cell, "waiting" if again else "failed", told + (" and is run again" if again else ""))
        self._record.write()
        if not again and not stopping:
            self._settled()
        return again


def last_lines(cell: Cell) -> list[str]:
    """Returns the end of a cell's log; none without one."""
    path = epath.Path(cell.workdir) / LOG_FILE
    return path.read_bytes().decode(errors="replace").splitlines()[-LAST_LINES:] if path.exists() else []


def _open_log(cell: Cell) -> BinaryIO:
    """Returns a file that a process can append to; of a cell in a bucket, a temporary one with what is there."""
    if REMOTE not in cell.workdir:
        folder = pathlib.Path(cell.workdir)
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / LOG_FILE, "ab")
    log, path = tempfile.TemporaryFile(), epath.Path(cell.workdir) / LOG_FILE
    if path.exists():
        log.write(path.read_bytes())
    return log  # type: ignore[return-value]


def _close_log(cell: Cell, log: BinaryIO, line: str) -> None:
    """Ends a log with a line, and brings that of a cell in a bucket there."""
    log.seek(0, os.SEEK_END)
    log.write(line.encode() + b"\n")
    log.flush()
    if REMOTE in cell.workdir:
        log.seek(0)
        (epath.Path(cell.workdir) / LOG_FILE).write_bytes(log.read())
    log.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to a run; SIGKILL to the processes that it started, too."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)

