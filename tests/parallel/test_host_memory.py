"""Memory freed by one step is there for the next, without new pages from the kernel."""

import ctypes
import subprocess
import sys

import pytest

from mtp_jax.parallel import host_memory

FAULTS = """
import ctypes, resource, sys, threading

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] == "keep":
    from mtp_jax.parallel.host_memory import keep_freed_memory
    assert keep_freed_memory()
counts = []


def steps():
    for _ in range(6):
        piece = libc.malloc(2**28)
        libc.memset(piece, 1, 2**28)
        libc.free(piece)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


thread = threading.Thread(target=steps)  # XLA allocates in threads of its own
thread.start()
thread.join()
print(counts[-1] - counts[1])
"""


def faults(mode):
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc only")
def test_a_step_finds_the_pages_of_the_one_before():
    assert faults("keep") < 1000
    assert faults("default") > 100_000  # 4 steps of 65,536 pages: what the function is there to avoid


KEPT = """
import pathlib, sys
import numpy as np

if sys.argv[1] == "give back":
    from mtp_jax.parallel.host_memory import give_back_freed_memory
    assert give_back_freed_memory()


def resident():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


large = np.ones(2**24, np.uint8)
del large  # from here on glibc pools what is smaller
before = resident()
pieces = [np.ones(2**23, np.uint8) for _ in range(32)]
del pieces[:-1]  # the last one is still there
print(resident() - before)
"""


def kept(mode):
    done = subprocess.run([sys.executable, "-c", KEPT, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc only")
def test_an_array_that_is_freed_is_given_back():
    """In MiB, of the 256 that were taken and the 8 that are still in use."""
    assert kept("give back") < 30 and kept("default") > 60


@pytest.mark.parametrize("platforms, cpu", [("cpu", True), ("cpu,cuda", True), ("cuda,cpu", False), ("tpu", False)])
def test_the_platform_is_foreseen(platforms, cpu, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert host_memory.will_run_on_cpu() is cpu


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu", None])
def test_an_accelerators_plugin_is_seen(plugin, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: object() if name == plugin else None)
    assert host_memory.will_run_on_cpu() is (plugin is None)
