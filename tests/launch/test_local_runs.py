"""Real runs of two processes: they train what one does, stop together, and come back after kills."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from mtp_jax.parallel.distributed import host_name
from mtp_jax.training import prepare, signals
from tests.training.small_runs import ROOT, command, environment, small, write_corpus

LONG = dict(train__num_steps=100_000, train__checkpoint_every=20, train__validate_every=100_000)
SHORT = dict(train__num_steps=20, train__checkpoint_every=10, train__validate_every=20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def flags(corpus, workdir, **changes):
    """Returns the flags of a small run."""
    return command(corpus, workdir, **changes)[3:]


class Launched:
    """A launcher of two processes, whose output goes to a file."""

    def __init__(self, corpus, workdir, log, *own, **changes):
        self.workdir, self.log = workdir, log
        arguments = [sys.executable, "-m", "launch.local", "--processes=2", "--experiment=code_bytes", *own,
                     *flags(corpus, workdir, **changes)]
        with open(log, "w") as out:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=out, stderr=out)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.kill()

    def text(self):
        return self.log.read_text()

    def pids(self):
        """Returns the pids of the last start."""
        starts = re.findall(r"started 2 processes: 0 is pid (\d+), 1 is pid (\d+)", self.text())
        return [int(pid) for pid in starts[-1]] if starts else []

    def wait_for_step(self, step, starts=1):
        """Waits until the run has logged a step after so many starts."""
        give_up = time.monotonic() + 200
        while self.text().count("started 2 processes") < starts or last_step(self.workdir) < step:
            assert self.process.poll() is None and time.monotonic() < give_up, self.text()
            time.sleep(0.02)

    def ended(self, timeout=240):
        """Returns the exit status."""
        return self.process.wait(timeout)


def records(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(workdir):
    return max((record["step"] for record in records(workdir)), default=0)


def losses(workdir, split="train"):
    """Returns {step: loss}; every step stands there once."""
    found = [(record["step"], record["loss"]) for record in records(workdir) if record["split"] == split]
    assert len(dict(found)) == len(found)
    return dict(found)


def checkpoints(workdir):
    return sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdecimal())


def assert_same(first, second, rtol=1e-5):
    assert list(first) == list(second)
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=rtol)


@pytest.mark.slow
def test_two_processes_stopped_in_the_middle_come_back_and_train_what_one_does(corpus, tmp_path):
    # Steps long enough that the signal, which takes a second to reach all, comes before the last of them.
    changes = dict(train__num_steps=20, train__checkpoint_every=100, train__validate_every=20, train__seed=5,
                   optimizer__learning_rate=1e-3, model__d_model=64, data__batch_size=32, data__seq_len=256)
    with Launched(corpus, tmp_path / "two", tmp_path / "log", "--max_restarts=1", **changes) as two:
        two.wait_for_step(2)
        os.kill(two.pids()[1], signal.SIGTERM)  # as a scheduler would, and one of them alone
        assert two.ended() == 0, two.text()
    saved = re.search(r"Stopped and saved at step (\d+) of 20", two.text())
    assert saved and f"Going on from step {saved[1]} of" in two.text() and "restart 1 of 1" in two.text()
    assert "Traceback" not in two.text()
    assert two.text().count("INFO: Going on") == 1  # process 0 speaks for all
    one = prepare.prepare(small(corpus, **changes), tmp_path / "one")
    assert one.train() == signals.DONE
    for split, steps in (("train", 20), ("validation", 1)):
        assert len(losses(tmp_path / "two", split)) == steps
        assert_same(losses(tmp_path / "two", split), losses(tmp_path / "one", split))


@pytest.mark.slow
@pytest.mark.parametrize("sent, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stop_of_all_saves_the_same_step_and_the_run_goes_on(sent, status, corpus, tmp_path):
    workdir = tmp_path / "run"
    with Launched(corpus, workdir, tmp_path / "log", **LONG) as run:
        run.wait_for_step(30)
        run.process.send_signal(sent)
        assert run.ended(120) == status, run.text()
    [stopped] = re.findall(r"Stopped and saved at step (\d+)", run.text())
    assert checkpoints(workdir)[-1] == int(stopped) == last_step(workdir)
    reached = set(re.findall(r"MainThread\] Reached preemption sync point, step=(\d+)", run.text()))
    assert reached == {stopped}
    with Launched(corpus, workdir, tmp_path / "log", **{**LONG, "train__num_steps": int(stopped) + 5}) as run:
        assert run.ended() == 0, run.text()
    assert list(losses(workdir)) == list(range(1, int(stopped) + 6))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("sent, limit", [(signal.SIGKILL, 15), (signal.SIGSTOP, 25)])
def test_one_that_is_killed_or_frozen_ends_the_others_in_time(victim, sent, limit, corpus, tmp_path):
    with Launched(corpus, tmp_path / "run", tmp_path / "log", "--grace_seconds=3", **LONG,
                  parallel__heartbeat_timeout_seconds=10) as run:
        run.wait_for_step(30)
        start = time.monotonic()
        os.kill(run.pids()[victim], sent)
        assert run.ended(120) == 1, run.text()
        seconds = time.monotonic() - start
    assert seconds < limit, run.text()
    if sent == signal.SIGKILL:
        assert re.search(rf"launch.local: process {victim} \(pid \d+\) was killed by SIGKILL", run.text())
    else:
        assert f"launch.local: process {1 - victim} (pid" in run.text() and "gives no sign of life" in run.text()
    assert "Traceback" not in run.text() and "Extension modules" not in run.text()


@pytest.mark.slow
def test_five_kills_in_200_steps_lose_nothing_but_the_steps_since_the_last_save(corpus, tmp_path):
    changes = dict(train__num_steps=200, train__checkpoint_every=15, train__validate_every=100, train__seed=3)
    with Launched(corpus, tmp_path / "unbroken", tmp_path / "log_unbroken", **changes) as unbroken:
        assert unbroken.ended() == 0, unbroken.text()
    with Launched(corpus, tmp_path / "killed", tmp_path / "log", "--max_restarts=5", "--restart_delay_seconds=0",
                  **changes) as killed:
        for number, step in enumerate((20, 52, 88, 120, 160)):
            killed.wait_for_step(step, starts=number + 1)
            os.kill(killed.pids()[number % 2], signal.SIGKILL)
            while killed.text().count("started 2 processes") < number + 2:
                assert killed.process.poll() is None, killed.text()
                time.sleep(0.05)
        assert killed.ended(300) == 0, killed.text()
    assert len(re.findall(r"was killed by SIGKILL", killed.text())) == 5
    begun = [int(step) for step in re.findall(r"Going on from step (\d+)", killed.text())]
    assert len(begun) == 5
    for kill, step in zip((20, 52, 88, 120, 160), begun, strict=True):
        assert step % 15 == 0 and step >= kill - 2 * 15, begun  # the newest save may not have been complete
    assert list(losses(tmp_path / "killed")) == list(range(1, 201))
    for split in ("train", "validation"):
        assert losses(tmp_path / "killed", split) == losses(tmp_path / "unbroken", split)  # to the bit


def start_processes(arguments, folders=(ROOT, ROOT), code=("-m", "experiments.code_bytes")):
    """Runs two processes with their own flags; returns [(status, stderr)] and the seconds they took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start, processes = time.monotonic(), []
    for number, own in enumerate(arguments):
        env = {**environment(), "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2",
               "JAX_PROCESS_ID": str(number)}
        processes.append(own and subprocess.Popen([sys.executable, *code, *own], cwd=folders[number], env=env,
                                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        found = [process and (process.communicate(timeout=120)[1], process.returncode) for process in processes]
    finally:
        for process in filter(None, processes):
            process.kill()
    return found, time.monotonic() - start, address


@pytest.mark.slow
def test_hosts_with_different_settings_are_named_at_the_start(corpus, tmp_path):
    pair = [flags(corpus, tmp_path / "run", data__batch_size=size, **SHORT) for size in (8, 16)]
    found, seconds, _ = start_processes(pair)
    assert seconds < 60
    for err, status in found:
        assert status == 1 and "Traceback" not in err and len(err.splitlines()) < 8, err
        assert re.search(r"config.data.batch_size: 8 on process 0 \(.+\); 16 on process 1 \(.+\)", err)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_host_alone_cannot_try_a_dry_run(corpus, tmp_path):
    own = flags(corpus, tmp_path / "run", **SHORT)
    found, seconds, _ = start_processes([[*own, "--dry_run"], own])
    assert seconds < 60  # they would wait for each other for ever
    for err, status in found:
        assert status == 1 and re.search(r"--dry_run: True on process 0 \(.+\); False on process 1 \(.+\)", err), err


@pytest.mark.slow
def test_hosts_with_other_code_are_named_at_the_start(corpus, tmp_path):
    for package in ("mtp_jax", "experiments"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mtp_jax" / "__init__.py").write_text('__version__ = "0.0.dev1"\n')
    pair = [flags(corpus, tmp_path / "run", **SHORT)] * 2
    found, seconds, _ = start_processes(pair, folders=(ROOT, tmp_path))
    assert seconds < 60
    for err, status in found:
        assert status == 1 and "Traceback" not in err, err
        assert re.search(r"mtp_jax: .+ on process 0 \(.+\); 0.0.dev1 on process 1 \(.+\)", err)
        assert "hash of mtp_jax's files: " in err and "config." not in err


@pytest.mark.slow
def test_an_error_on_one_host_ends_all(corpus, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "corpus").symlink_to(corpus)
    pair = [flags("corpus", tmp_path / "run", **SHORT)] * 2
    found, seconds, _ = start_processes(pair, folders=(tmp_path / "there", tmp_path))
    assert seconds < 90
    for err, status in found:
        assert status == 1 and "Traceback" not in err, err
        assert re.search(r"error: On process 1 \(.+\): .*corpus", err) and "On process 0" not in err


@pytest.mark.slow
def test_hosts_that_read_different_data_are_named(corpus, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write_corpus(tmp_path / place)
    (tmp_path / "b" / "file_0.py").write_text("another = True\n" * 40)
    for place in ("a", "b"):
        (tmp_path / f"at_{place}").mkdir()
        (tmp_path / f"at_{place}" / "corpus").symlink_to(tmp_path / place)
    found, _, _ = start_processes([flags("corpus", tmp_path / "run", **SHORT)] * 2,
                                  folders=(tmp_path / "at_a", tmp_path / "at_b"))
    for err, status in found:
        assert status == 1 and "hash of the corpus: " in err and "Traceback" not in err, err


@pytest.mark.slow
@pytest.mark.parametrize("present, message", [
    (1, "process 1 ({host}) of 2 did not find process 0 at {address} within 2 s (Connection refused)"),
    (0, "1 of 2 processes did not come to {address} within 2 s: process 1."),
])
def test_a_start_that_others_miss_ends_in_time(present, message, corpus, tmp_path):
    own = flags(corpus, tmp_path / "run", parallel__start_timeout_seconds=2)
    found, seconds, address = start_processes([own if number == present else None for number in (0, 1)])
    err, status = found[present]
    assert status == 1 and seconds < 25
    assert message.format(host=host_name(), address=address) in err and len(err.splitlines()) <= 2


FULL_AT_STEP_5 = """
import errno, os, runpy, sys
from mtp_jax.training import logs

write = logs.RunLog.write

def full(self, record):
    if os.environ["JAX_PROCESS_ID"] == "0" and record.step == 5:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    write(self, record)

logs.RunLog.write = full
sys.argv[0] = "code_bytes.py"
runpy.run_module("experiments.code_bytes", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_an_error_in_the_middle_on_one_host_ends_all_in_time(corpus, tmp_path):
    found, seconds, _ = start_processes([flags(corpus, tmp_path / "run", **LONG)] * 2, code=("-c", FULL_AT_STEP_5))
    assert seconds < 60
    assert found[0][1] == 1 and re.search(r"error: process 0 of 2 \(.+\): metrics.jsonl: No space left", found[0][0])
    assert found[1][1] in (1, -signal.SIGABRT), found[1]
