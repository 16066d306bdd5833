"""Every test sees eight fake CPU devices, strict shapes, reproducible examples and a warm compile cache."""

import os
import pathlib
import platform
import shutil

import pytest
from hypothesis import settings

CACHE_LIMIT = 2**30  # bytes; a compile cache that outgrew this starts afresh


def _compile_cache() -> pathlib.Path:
    """Returns the folder of compiled test programs, one a machine, for it may lie on a shared home."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "mtp_jax" / "tests" / (platform.node() or "machine")


# The environment rather than jax.config, so that commands which tests start see the same devices and cache.
# `make test-gpu` sets MTP_JAX_TEST_PLATFORM; all else runs on the CPU, also where a GPU or TPU is present.
os.environ["JAX_PLATFORMS"] = os.environ.get("MTP_JAX_TEST_PLATFORM", "cpu")
# Programs that run for a second need no optimized machine code, which takes most of the time of compiling them. Tests
# that start a command leave these flags out, as a user would.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compile_cache()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402  the environment above is read when jax is imported

jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("mtp_jax", derandomize=True, deadline=None, database=None)
settings.load_profile("mtp_jax")


def pytest_configure(config):
    """Empties the compile cache when it is too large; only the first process does so."""
    cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if hasattr(config, "workerinput") or cache != _compile_cache() or not cache.is_dir():
        return
    if sum(entry.stat().st_size for entry in cache.iterdir()) > CACHE_LIMIT:
        shutil.rmtree(cache)


@pytest.fixture
def x64():
    """Runs the test with 64-bit types, for comparisons that must be strict."""
    with jax.enable_x64(True):
        yield
