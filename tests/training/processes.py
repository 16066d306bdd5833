"""Starts the processes of a run on this machine, and reads what the run left."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from tests.training.small_runs import ROOT

WORKER = pathlib.Path(__file__).with_name("process_worker.py")
QUICK = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # see tests/conftest.py
STEPS = 20


def start(corpus, workdir, mesh, *, processes, devices=1, interleaved=False, num_steps=STEPS, **changes):
    """Runs all processes to their end.

    Args:
      corpus, workdir: folders.
      mesh: parallel.mesh.
      processes: how many.
      devices: of each process.
      interleaved: the mesh takes the devices in another order than that of the processes.
      num_steps: train.num_steps; the schedules span STEPS.
      changes: of the small mixture's config.

    Returns:
      [(exit status, stdout, stderr)], one a process.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
                   "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}{QUICK}"}
    task = {"address": address, "processes": processes, "corpus": str(corpus), "workdir": str(workdir),
            "interleaved": interleaved,
            "changes": {"parallel__mesh": mesh, "train__num_steps": num_steps, **settings(), **changes}}
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in range(processes)]
        running = [subprocess.Popen([sys.executable, str(WORKER), json.dumps({**task, "process": number})],
                                    env=environment, stdout=out, stderr=err)
                   for number, (out, err) in enumerate(files)]
        try:
            wait(running)
        finally:
            for process in running:
                process.kill()
        for file in sum(files, []):
            file.seek(0)
        return [(process.wait(), out.read(), err.read()) for process, (out, err) in zip(running, files, strict=True)]


def wait(running, seconds=300):
    """Waits until all processes have ended; those that the failure of another leaves waiting, for ten seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and None in (statuses := [process.poll() for process in running]):
        if any(statuses):
            deadline = min(deadline, time.monotonic() + 10)
        time.sleep(0.05)


def finish(*arguments, **settings):
    """Runs `start` and checks that every process ends well."""
    found = start(*arguments, **settings)
    assert not any(status for status, *_ in found), "\n".join(f"{status}: {err[-3000:]}" for status, _, err in found)


def settings():
    """Returns the changes that all runs here share; schedules do not depend on where a part of the run ends."""
    return {"optimizer__schedule_steps": STEPS, "objective__schedule_steps": STEPS, "train__validate_every": 10,
            "train__checkpoint_every": 4, "logging__tensorboard": False}


def ids(workdir):
    """Returns the hash of each step's global batch, in order; no step was taken twice."""
    lines = [json.loads(line) for line in (workdir / "ids.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["ids"] for line in lines]


def losses(workdir):
    """Returns {(step, split): losses} of all lines: the loss, and behind it those of head 1 on each source."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], line["split"]): [line["loss"], *(line["sources"][name]["head_loss"][0]
                                                            for name in ("most", "rest") if "sources" in line)]
            for line in lines}
