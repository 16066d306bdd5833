"""Compiled programs kept on disk, for the next start."""

from __future__ import annotations

import os

import jax


def set_compile_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, so that the next start need not compile; JAX's own settings go first.

    Args:
      folder: "auto" is the user's cache folder, "off" none.
    """
    if folder == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if folder == "auto":
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = os.path.join(base, "mtp_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
