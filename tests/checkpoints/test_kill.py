"""kill -9 at any moment leaves the run restorable from the last good checkpoint."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from mtp_jax.checkpoints import integrity, reading

WORKER = pathlib.Path(__file__).with_name("kill_worker.py")
ROOT = WORKER.parents[2]


def _start(directory, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, str(WORKER), str(directory), *map(str, arguments)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _first_step(process):
    """Waits for the run's first line and returns the step that it goes on from."""
    line = process.stdout.readline()
    if not line.startswith("from "):
        raise AssertionError(line + process.stdout.read() + process.stderr.read())
    return int(line.split()[1])


def _wait_for_save(directory):
    """Returns soon after a save has begun, which may be over by then."""
    until = time.monotonic() + 10
    while not any(directory.glob("*.orbax-checkpoint-tmp")):
        assert time.monotonic() < until, "nothing was saved in 10 s"


@pytest.mark.parametrize("kills", [5, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_random_moments(kills, tmp_path):
    directory, rng = tmp_path / "checkpoints", random.Random(0)
    done, tried, progress, halves = 0, 0, 0, 0
    while tried < kills or progress < kills // 2 or halves < kills // 2:  # till enough kills came while it saved
        assert tried < 10 * kills, (progress, halves)
        process = _start(directory, 10**6)
        start = _first_step(process)
        assert start >= done, "a finished checkpoint was lost"
        process.stdout.readline()  # the first save is under way
        time.sleep(rng.uniform(0.0, 0.3))
        if tried % 2:
            _wait_for_save(directory)
        process.kill()
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL
        done = max([start] + [int(line.split()[1]) for line in output.splitlines() if line.startswith("saved ")])
        tried += 1
        progress += done > start
        halves += any(directory.glob("*.orbax-checkpoint-tmp"))
    process = _start(directory, done + 3)
    assert _first_step(process) >= done
    assert process.wait(60) == 0
    assert [path.name for path in directory.iterdir()] == [str(done + 3)]  # keep_last=1, and no leftovers


@pytest.mark.parametrize("moment", ["manifest", "commit", "delete"])
def test_kills_at_the_seams_of_a_commit(tmp_path, moment):
    directory = tmp_path / "checkpoints"
    process = _start(directory, 10, moment, 5)
    assert _first_step(process) == 0
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert reading.finished_steps(epath.Path(directory)) == ([4, 5] if moment == "delete" else [4])
    process = _start(directory, 6)  # saves step 5 again where it was not finished
    assert _first_step(process) == (5 if moment == "delete" else 4)
    assert process.wait(60) == 0
    assert integrity.find_faults(directory / "6") == []
    assert [path.name for path in directory.iterdir()] == ["6"]
