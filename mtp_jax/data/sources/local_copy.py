"""Local copies of files in a bucket, for libraries that open local files only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging

from mtp_jax.data.sources.paths import is_remote


def local_copy(path: Any) -> pathlib.Path:
    """Returns a local file with the content of `path`: itself if it is local, otherwise a copy of it.

    Copies stay in $XDG_CACHE_HOME/mtp_jax/data (or ~/.cache/mtp_jax/data), so that a file is fetched once a machine. A
    file whose size or time of change differs is another one, and is fetched anew.

    Args:
      path: an epath.Path or a string.

    Raises:
      ValueError: the copy cannot be written.
    """
    from etils import epath

    if not is_remote(os.fspath(path)):
        return pathlib.Path(path)
    source = epath.Path(path)
    stat = source.stat()
    key = hashlib.sha256(f"{os.fspath(source)}\n{stat.length}\n{stat.mtime}".encode()).hexdigest()[:32]
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "mtp_jax" / "data"
    target = folder / key / source.name
    if target.exists():
        return target
    logging.info("Copying %s (%.1f MB) to %s, for its library reads local files only.", os.fspath(source),
                 (stat.length or 0) / 1e6, target)
    partial = target.with_name(f"{uuid.uuid4().hex}.part")  # several processes may copy at a time
    try:
        with _room_in(folder, source):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = partial.open("wb", buffering=0)
        size = 0
        with source.open("rb") as file, copy:
            while block := memoryview(file.read(1 << 22)):
                size += len(block)
                while block:  # without a buffer, as much is written as there is room for
                    with _room_in(folder, source):
                        block = block[copy.write(block):]
        if stat.length is not None and size != stat.length:
            raise ValueError(f"{os.fspath(source)} has {stat.length:,} bytes, but {size:,} came: start again.")
        partial.replace(target)
    finally:
        if partial.exists():
            partial.unlink()
    return target


@contextlib.contextmanager
def _room_in(folder: pathlib.Path, source: Any) -> Iterator[None]:
    """Tells of a disk that is full, or of a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{os.fspath(source)} cannot be copied to {folder} ({error.strerror or error}): free some "
                         "space, or set XDG_CACHE_HOME to a folder on another disk.") from error
