"""Files and folders that several commands may touch: written whole or not at all, and locked while one writes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from absl import logging
from etils import epath

REMOTE = "://"  # in the path of a bucket


def replace(path: epath.PathLike, data: bytes) -> epath.Path:
    """Writes a file, whole or not at all, and returns its path."""
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if REMOTE in str(target):
        target.write_bytes(data)  # an object appears when its upload is complete
        return target
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(target)
    return target


@contextlib.contextmanager
def alone(folder: epath.PathLike, *, flag: str, busy: str, other: str) -> Iterator[tuple[int, ...]]:
    """Makes a folder and keeps a second command out of it; yields the descriptors that hold the lock.

    A child that inherits one holds the lock too. There is none in a bucket, nor on file systems that do not lock
    folders, such as some NFS.

    Args:
      folder: to lock.
      flag: that named it, for errors, such as "--workdir".
      busy: what to tell where it is locked, after "FLAG=FOLDER ".
      other: what must not write to it, where it cannot be locked.

    Raises:
      ValueError: another command is at it, or the folder is a file.
    """
    if REMOTE in os.fspath(folder):
        yield ()
        return
    path = pathlib.Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{flag}={folder} is a file: name a folder.")
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{flag}={folder} {busy}") from error
        except OSError as error:
            logging.info("%s cannot be locked (%s): take care that no second %s writes to it.", folder,
                         error.strerror, other)
        yield (lock,)
    finally:
        os.close(lock)
