"""kill -9 at random moments: what is left always goes on, and ends as if nothing had happened."""

import json
import random
import signal
import subprocess
import time

import pytest

from tests.training.small_runs import ROOT, command, environment, run

CHANGES = dict(train__num_steps=90, train__checkpoint_every=3, train__validate_every=10, train__seed=3)


def records(workdir):
    return [{k: v for k, v in json.loads(line).items() if k not in ("tokens_per_second", "tflops_per_device", "mfu")}
            for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_step(workdir):
    """Returns the step of the last whole line, 0 before there is one."""
    path = workdir / "metrics.jsonl"
    whole = [line for line in (path.read_text() if path.exists() else "").splitlines(keepends=True)
             if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


@pytest.mark.slow  # kills of the checkpoints alone are in the fast suite
@pytest.mark.parametrize("kills", [2, 10])
def test_kills_change_nothing(kills, corpus, tmp_path):
    done = run(command(corpus, tmp_path / "unbroken", **CHANGES))
    assert done.returncode == 0, done.stderr
    draw, steps_at_kill = random.Random(0), []
    for kill in range(kills):
        target = min(last_step(tmp_path / "killed") + draw.randint(1, 7), 57)
        with open(tmp_path / f"stderr_{kill}", "w") as stderr:
            process = subprocess.Popen(command(corpus, tmp_path / "killed", **CHANGES), cwd=ROOT, env=environment(),
                                       stdout=subprocess.DEVNULL, stderr=stderr)
            give_up = time.monotonic() + 120
            while process.poll() is None and last_step(tmp_path / "killed") < target and time.monotonic() < give_up:
                time.sleep(0.002)
            time.sleep(draw.random() * 0.1)  # between steps, or at any moment of the save that every third one starts
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, (tmp_path / f"stderr_{kill}").read_text()
        steps_at_kill.append(last_step(tmp_path / "killed"))
    assert len(set(steps_at_kill)) >= min(kills, 5) - 1 and max(steps_at_kill) < 90
    done = run(command(corpus, tmp_path / "killed", **CHANGES))
    assert done.returncode == 0, done.stderr
    assert "Going on from step" in done.stderr
    assert records(tmp_path / "killed") == records(tmp_path / "unbroken")
