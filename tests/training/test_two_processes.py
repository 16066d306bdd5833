"""Two processes train on a mixture what one does: each reads its share; a mesh that would mix rows up is refused."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from mtp_jax.training import prepare, signals
from tests.training.small_runs import ROOT, mixed

WORKER = pathlib.Path(__file__).with_name("process_worker.py")


def run_two(corpus, workdir, mesh):
    """Returns [(exit status, stdout, stderr)] of the two processes, one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [subprocess.Popen([sys.executable, str(WORKER), str(number), address, str(corpus), str(workdir), mesh],
                                  env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for number in range(2)]
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def losses(workdir):
    """Returns the losses of all lines, and behind them those of head 1 on each source."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines] + [
        line["sources"][name]["head_loss"][0] for line in lines if "sources" in line for name in ("most", "rest")]


def test_two_processes_train_what_one_does(corpus, tmp_path):
    for status, _, err in run_two(corpus, tmp_path / "two", "data:2"):
        assert status == 0, err[-3000:]
    one = prepare.prepare(mixed(corpus, optimizer__schedule_steps=8), tmp_path / "one")
    assert one.train() == signals.DONE
    assert len(losses(tmp_path / "two")) == 8 + 2 + 2 * 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


def test_a_mesh_that_gives_two_processes_the_same_rows_is_refused(corpus, tmp_path):
    for status, out, err in run_two(corpus, tmp_path / "two", "data:1,tensor:2"):
        assert status == 1, err[-3000:]
        assert "refused: parallel.mesh gives the devices of process" in out and "by data or fsdp" in out
