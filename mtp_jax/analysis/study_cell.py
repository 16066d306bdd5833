"""Runs the steps of one cell of a study, on a core of its own: its training, then each evaluation.

`study_run` starts it as a process, `python -m mtp_jax.analysis.study_cell '<JSON>'`; people have no need to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import resource
import shlex
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

COST_FILE = "cost.json"  # in the cell's folder: seconds that all its attempts took


def main(text: str) -> int:
    """Runs the steps until one fails.

    Args:
      text: JSON {"steps": argument lists, "slots": cells that run at once, "locks": folder that they share, "cost":
        file to which the seconds are added, or null}.

    Returns:
      The exit status of the last step that ran.
    """
    told = json.loads(text)
    slot = take_slot(pathlib.Path(told["locks"]), told["slots"]) if told["slots"] > 1 else None
    if slot is not None:
        print(pin(slot), flush=True)
    began = time.monotonic()
    running: list[subprocess.Popen[bytes]] = []
    stopped: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        stopped.append(number)
        for process in running:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    code = 0
    for step in told["steps"]:
        if stopped:
            code = 75
            break
        print(f"$ {shlex.join(step)}", flush=True)
        # Descriptors that hold locks go on to the step: while it lives, nothing else is to take its place.
        running[:] = [subprocess.Popen(step, stdin=subprocess.DEVNULL, close_fds=False)]
        if stopped:  # told between the look and the start
            running[0].send_signal(stopped[-1])
        code = running[0].wait()
        if code:
            break
    if told["cost"]:
        _note(pathlib.Path(told["cost"]), time.monotonic() - began)
    return code if code >= 0 else 128 - code


def take_slot(folder: pathlib.Path, count: int) -> int | None:
    """Returns the number of a free place among `count`, and holds it for as long as this process lives.

    None where all are taken, as while a cell of a killed study still runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for slot in range(count):
        descriptor = os.open(folder / f".slot-{slot}", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        os.set_inheritable(descriptor, True)
        return slot
    return None


def pin(slot: int) -> str:
    """Keeps this process and its children on one core, and returns a line that says so, or why not."""
    if not hasattr(os, "sched_setaffinity"):
        return "This system keeps no process on a core: cells share them all."
    cores = sorted(os.sched_getaffinity(0))
    core = cores[slot % len(cores)]
    os.sched_setaffinity(0, {core})
    return f"On core {core}."


def _note(path: pathlib.Path, seconds: float) -> None:
    """Adds what this attempt took to the file."""
    known: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "attempts": 0}
    if path.exists():
        known |= json.loads(path.read_text())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    known["seconds"] += seconds
    known["cpu_seconds"] += used.ru_utime + used.ru_stime
    known["attempts"] += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(known) + "\n")
    temporary.replace(path)  # whole or not at all


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
