"""What malloc does with memory that is freed: kept for the next training step on CPU, or given back at once."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed instead of giving it back to the kernel; for a process that trains on CPU.

    XLA's CPU client allocates the temporaries of a step in one piece and frees it after the step. glibc maps so large
    a piece afresh every time, and the kernel clears each of its pages at the first touch: a quarter to a third of the
    CPU time of a small model's step. Call it before JAX starts its threads, since a thread that has allocated
    before keeps its own pool. The process then stays as large as it was at its largest.

    Returns:
      Whether malloc took the settings: False, and nothing changed, where the C library is not glibc.
    """
    # One pool that grows at its end, no maps of single pieces, and no giving back from the end.
    return _set((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> bool:
    """Makes malloc give every array back when it is freed; for a process that handles one large array after the other.

    By itself glibc raises the size from which it does so up to 32 MB with the arrays that it has seen, and what is
    smaller then stays in the pools of the threads that had it.

    Returns:
      Whether malloc took the setting: False, and nothing changed, where the C library is not glibc.
    """
    return _set((_M_MMAP_THRESHOLD, 2**20))


def _set(*settings: tuple[int, int]) -> bool:
    """Hands settings (name, value) to malloc; returns whether it is glibc's and took them."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    return all([mallopt(name, value) == 1 for name, value in settings])


def will_run_on_cpu() -> bool:
    """Tells whether JAX will choose the CPU, without starting it: by JAX_PLATFORMS, or for want of a plugin."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return all(importlib.util.find_spec(name) is None for name in ("jax_plugins", "libtpu"))
