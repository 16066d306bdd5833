"""The launcher on one machine, with short scripts for processes; real runs: test_local_runs.py."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from launch import local

ROOT = pathlib.Path(__file__).parent.parent.parent
START = """import sys
from launch import local
sys.exit(local.Launcher(local.Options(({!r}, "-c", {!r}), **{!r})).run())
"""
PROCESS = "import os, signal, sys, time, pathlib\nme = int(os.environ['JAX_PROCESS_ID'])\n"


def launcher(script, **options):
    """Starts the launcher on processes that run a script, in which `me` is the process's number."""
    code = START.format(sys.executable, PROCESS + script, options)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


def ended(script, **options):
    """Runs the launcher to its end; returns (status, stdout, stderr, seconds)."""
    start, process = time.monotonic(), launcher(script, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - start


def wait_for(path, process):
    """Waits until a file is there."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_process_0_speaks_and_the_others_tell_their_errors():
    status, out, err, _ = ended("print('loss', me)\nprint('word', me, file=sys.stderr)\n"
                                "print('[Gloo] Rank 0 is connected', file=sys.stderr)", processes=3)
    assert status == 0 and out == "[0] loss 0\n"
    lines = sorted(line for line in err.splitlines() if not line.startswith("launch.local"))
    assert lines == ["[0] word 0", "[1] word 1", "[2] word 2"]


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_whose_output_nobody_reads_goes_on_to_its_end(status, tmp_path):
    script = ("for step in range(20_000): print(step, 'x' * 50)\n"
              f"(pathlib.Path({str(tmp_path)!r}) / f'{{me}}').touch()\nsys.exit({status})")
    process = launcher(script)
    assert [process.stdout.readline() for _ in range(2)] == [f"[0] {step} {'x' * 50}\n" for step in (0, 1)]
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == status and "Error" not in err and "Exception" not in err, err
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()


@pytest.mark.parametrize("script, status", [
    ("", 0), ("sys.exit(75)", 75), ("sys.exit(130 if me else 75)", 130), ("sys.exit(1)", 1), ("sys.exit(7 * me)", 1),
])
def test_the_exit_status_is_that_of_the_processes(script, status):
    assert ended(script)[0] == status


def test_the_one_that_died_first_is_named_and_the_others_end_in_time():
    script = "if me == 1: os.kill(os.getpid(), 9)\ntime.sleep(60)"
    status, _, err, seconds = ended(script, processes=3, grace_seconds=0.5)
    assert status == 1 and seconds < 20
    assert re.search(r"process 1 \(pid \d+\) was killed by SIGKILL; the others .* have 0.5 s", err)
    assert "killing process 0, 2." in err


def test_what_falls_with_the_first_is_not_named_in_its_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    script = (f"pipe = open({str(tmp_path / 'pipe')!r}, 'w' if me else 'r')\n"
              "if me == 1: os.kill(os.getpid(), 9)\n"
              "pipe.read(); os.abort()")  # as soon as the other one's end is closed
    for _ in range(3):
        _, _, err, _ = ended(script, grace_seconds=5.0)
        assert "process 1 (pid" in err and "was killed by SIGKILL" in err and "SIGABRT" not in err


@pytest.mark.parametrize("first, restarts, status, starts", [
    ("os.kill(os.getpid(), 9)", 2, 0, 2),  # one kill, one restart
    ("os.kill(os.getpid(), 9)", 0, 1, 1),
    ("sys.exit(75)", 1, 0, 2),  # another than the launcher told it to stop
    ("sys.exit(75)", 0, 75, 1),
    ("sys.exit(1)", 3, 1, 1),  # an error that would come again
])
def test_all_are_started_again(first, restarts, status, starts, tmp_path):
    script = (f"mark = pathlib.Path({str(tmp_path)!r}) / f'{{me}}'\n"
              "mark.write_text(mark.read_text() + 'x' if mark.exists() else 'x')\n"
              f"if me == 1 and mark.read_text() == 'x': {first}")
    found, _, err, _ = ended(script, max_restarts=restarts, restart_delay_seconds=0.0)
    assert found == status, err
    assert (tmp_path / "1").read_text() == "x" * starts
    assert ("restart 1 of" in err) == (starts > 1)


def test_restarts_come_to_an_end():
    status, _, err, _ = ended("os.kill(os.getpid(), 9)", max_restarts=2, restart_delay_seconds=0.0)
    assert status == 1 and err.count("starting all processes again") == 2 and "all 2 restarts are used" in err


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stop_is_passed_on_once_and_no_restart_follows(sent, status, tmp_path):
    script = ("counts = []\n"
              "signal.signal(signal.SIGTERM, lambda *_: counts.append(1))\n"
              f"(pathlib.Path({str(tmp_path)!r}) / f'up{{me}}').touch()\n"
              "while not counts: time.sleep(0.01)\n"
              "time.sleep(0.3)\n"
              f"(pathlib.Path({str(tmp_path)!r}) / f'{{me}}').write_text(str(len(counts)))\n"
              "sys.exit(75)")
    process = launcher(script, max_restarts=3)
    for number in (0, 1):
        wait_for(tmp_path / f"up{number}", process)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert [(tmp_path / name).read_text() for name in "01"] == ["1", "1"] and "restart" not in err


def test_a_second_interrupt_kills(tmp_path):
    script = ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
              f"(pathlib.Path({str(tmp_path)!r}) / f'up{{me}}').touch()\n"
              "time.sleep(60)")
    process = launcher(script)
    for number in (0, 1):
        wait_for(tmp_path / f"up{number}", process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "killing process 0, 1." in err


def environment(own, number=1, **changes):
    return local.environment(number, local.Options((), **changes), "127.0.0.1:1", own)


def test_processes_on_cpu_have_their_own_fake_devices():
    own = {"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    made = environment(own)
    assert (made["JAX_PROCESS_ID"], made["JAX_NUM_PROCESSES"], made["JAX_COORDINATOR_ADDRESS"]) == (
        "1", "2", "127.0.0.1:1")
    assert made["XLA_FLAGS"] == "--xla_a=1"
    assert environment(own, devices_per_process=4)["XLA_FLAGS"] == (
        "--xla_a=1 --xla_force_host_platform_device_count=4")


def test_gpus_are_dealt_out():
    own = {"CUDA_VISIBLE_DEVICES": "0,2,4,6"}
    assert [environment(own, number)["CUDA_VISIBLE_DEVICES"] for number in (0, 1)] == ["0,2", "4,6"]
    assert environment({**own, "JAX_PLATFORMS": "cpu"})["CUDA_VISIBLE_DEVICES"] == "0,2,4,6"
    with pytest.raises(ValueError, match="--processes=3: 4 GPUs cannot be dealt out evenly"):
        environment(own, processes=3)
    assert environment({"CUDA_VISIBLE_DEVICES": ""})["JAX_PLATFORMS"] == "cpu"


def test_the_command_line_is_parted():
    options = local.parse(["x", "--processes=4", "--experiment=paper", "--workdir=w", "--config.size=1m", "--dry_run"])
    assert options.processes == 4 and options.command[1:] == (
        "-m", "experiments.paper", "--workdir=w", "--config.size=1m", "--dry_run")
    handed_on = ["--config.train.processes=2", "--noconfig.x", "--coordinator_address=a:1", "--num_processes=2",
                 "--process_id", "1", "--verbosity=1", "--logtostderr", "--alsologtostderr", "--log_dir=x"]
    options = local.parse(["x", "--experiment=paper", "--workdir=w", *handed_on])
    assert options.processes == 2 and list(options.command[4:]) == handed_on
    assert local.parse(["x", "--experiment=experiments.paper", "--workdir=w"]).command[2] == "experiments.paper"


@pytest.mark.parametrize("arguments, message", [
    (["--workdir=w"], "--experiment is needed"), (["--experiment=paper"], "--workdir is needed"),
    (["--experiment=papr", "--workdir=w"], 'Did you mean "paper"'),
    (["--experiment=paper", "--workdir=w", "--processes=0"], "--processes=0 must be at least 1"),
    (["--experiment=paper", "--workdir=w", "--processes=two"], "--processes"),
    (["--experiment=paper", "--workdir=w", "--process=4"], "Did you mean --processes?"),
    (["--experiment=paper", "--workdir=w", "-procesess", "4"], "Did you mean --processes?"),
    (["--experiment=paper", "--workdir=w", "--restarts=4"], "Did you mean --max_restarts?"),
    (["--experiment=paper", "--wokdir=w"], "--wokdir=w: neither this command nor a run has such a flag"),
    (["--experiment=paper", "--workdir=w", "--max_restarts=-1"], "--max_restarts=-1 must be at least 0"),
])
def test_mistakes_are_told(arguments, message, capsys):
    assert local.main(["x", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_help_names_the_flags(capsys):
    assert local.main(["x", "--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"--{name}" in page for name in ("processes", "max_restarts", "devices_per_process", "grace_seconds"))
