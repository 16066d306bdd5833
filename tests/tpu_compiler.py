"""The real TPU compiler in tests, without a TPU: in a process of its own, since libtpu loads once and stays."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LIBTPU = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH") or pathlib.Path(sys.prefix) / "libtpu/libtpu/libtpu.so")

needs_tpu_compiler = pytest.mark.skipif(not LIBTPU.exists(), reason="needs the TPU compiler; `make test` installs it")

START = """
import os
from mtp_jax.parallel.topology import parse_topology, prepare_environment, prepare_jax, topology_devices
prepare_environment(parse_topology("v5e:2x2"), os.environ)
prepare_jax(parse_topology("v5e:2x2"))

def tpu_devices(name, slices=1):
    return topology_devices(parse_topology(name, slices))
"""


def run_with_tpu_compiler(script, timeout=400):
    """Runs a script that may call tpu_devices("v5e:2x2", slices=1); returns what it printed."""
    environment = {**os.environ, "TPU_LIBRARY_PATH": str(LIBTPU), "PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
                   "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", START + script], env=environment, capture_output=True, text=True,
                          timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
