"""Two processes save one state together, and agree on the checkpoint to go on from."""

import os
import pathlib
import socket
import subprocess
import sys

WORKER = pathlib.Path(__file__).with_name("process_worker.py")


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    directory = tmp_path / "checkpoints"
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2]), "JAX_PLATFORMS": "cpu",
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [subprocess.Popen([sys.executable, str(WORKER), str(process), address, str(directory)], env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for process in range(2)]
    outputs = []
    try:
        outputs = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, outputs):
        assert process.returncode == 0, err[-3000:]
        assert "steps [2, 3]" in out
    warned = ["state/array_metadatas/process_1: missing" in err for _, err in outputs]
    assert warned == [True, False]  # process 0 looks and tells the other
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3", "damaged-3"]
