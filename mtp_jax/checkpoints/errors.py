"""What can go wrong with a checkpoint, and how it is said."""

from __future__ import annotations

import errno

_FULL = ("no space left on device", "disk quota exceeded")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or used; the message names it and says what to do."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint is sound, but does not fit the model: leaves are missing, too many, misshapen or mistyped."""


def is_disk_full(error: BaseException | None) -> bool:
    """Tells whether `error`, or an error that caused it, comes from a full disk or an exhausted quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error).lower() for words in _FULL):  # tensorstore raises ValueError with the system's words
            return True
        error = error.__cause__ or error.__context__
    return False


def readable_bytes(count: float) -> str:
    """Returns `count` bytes for a person, such as "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
