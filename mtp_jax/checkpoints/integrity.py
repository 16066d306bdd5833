"""A checksum of every file of a checkpoint, in one manifest inside its directory.

The manifest is written last, while the directory still has its temporary name, so that a directory with a step's name
is complete from birth: what a killed save leaves behind never looks like a checkpoint. SHA-256, because it is fast on
current processors (they have instructions for it), releases Python's lock while it runs, and `sha256sum` checks it.

The manifest is JSON on all lines but the last, which is the checksum of the lines before it, so that damage to the
manifest itself shows too:

    {"format_version": 1, "algorithm": "sha256", "files": {"state/d/0a1b": {"bytes": 4096, "sha256": "9f86..."}}}
    60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os

from etils import epath

from mtp_jax.checkpoints import errors

FORMAT_VERSION = 1  # of the checkpoint's layout; raise it when an older mtp_jax could not read what is written now
MANIFEST = "mtp_manifest.json"
_CHUNK = 2**22  # bytes read at a time
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one file of a checkpoint."""

    file: str  # path inside the checkpoint's directory
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


def checksum(path: epath.Path) -> tuple[int, str]:
    """Returns the size in bytes and the SHA-256, in hexadecimal, of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def files_under(directory: epath.Path) -> list[epath.Path]:
    """Returns every file below `directory`, in a fixed order."""
    found = []
    for path in sorted(directory.iterdir()):
        found.extend(files_under(path) if path.is_dir() else [path])
    return found


def write_manifest(directory: epath.Path) -> None:
    """Writes the manifest of all files that are in `directory` now."""
    paths = [path for path in files_under(directory) if path.name != MANIFEST]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(checksum, paths))
    files = {path.relative_to(directory).as_posix(): {"bytes": size, "sha256": digest}
             for path, (size, digest) in zip(paths, sums)}
    text = json.dumps({"format_version": FORMAT_VERSION, "algorithm": "sha256", "files": files}, indent=1) + "\n"
    (directory / MANIFEST).write_bytes(_signed(text.encode()))


def find_faults(directory: epath.PathLike, *, verify: bool = True) -> list[Fault]:
    """Compares a checkpoint with its manifest.

    Args:
      directory: of one checkpoint.
      verify: read every file and compare its checksum; False compares presence and size only.

    Returns:
      What is wrong; empty for an undamaged checkpoint.

    Raises:
      CheckpointError: the checkpoint is of a newer format than this version of mtp_jax knows.
    """
    directory = epath.Path(directory)
    try:
        raw = (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        return [Fault(MANIFEST, "missing: without it no other file can be trusted")]
    except OSError as error:
        return [Fault(MANIFEST, f"cannot be read: {error}")]
    body = raw[:raw.rfind(b"\n", 0, -1) + 1]
    if not body or raw != _signed(body):
        return [Fault(MANIFEST, "damaged: its own checksum differs, or it was cut")]
    manifest = json.loads(body)
    if manifest["format_version"] > FORMAT_VERSION:
        raise errors.CheckpointError(
            f"The checkpoint {directory} has format version {manifest['format_version']}, and this mtp_jax reads up to "
            f"{FORMAT_VERSION}: update mtp_jax to the version that wrote it (its config.json names it).")

    def compare(item: tuple[str, dict]) -> Fault | None:
        name, expected = item
        path = directory / name
        try:
            size = path.stat().length
            if size != expected["bytes"]:
                return Fault(name, f"size is {size} bytes, {expected['bytes']} were written")
            if verify and checksum(path)[1] != expected["sha256"]:
                return Fault(name, "checksum differs from the one written: its content changed")
        except FileNotFoundError:
            return Fault(name, "missing")
        except OSError as error:
            return Fault(name, f"cannot be read: {error}")
        return None

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return [fault for fault in pool.map(compare, manifest["files"].items()) if fault]


def describe(faults: list[Fault]) -> str:
    """Returns the faults in one line; after the first three, their number."""
    rest = f"; and {len(faults) - 3} more files" if len(faults) > 3 else ""
    return "; ".join(map(str, faults[:3])) + rest


def _signed(body: bytes) -> bytes:
    """Returns `body` with the line that vouches for it."""
    return body + hashlib.sha256(body).hexdigest().encode() + b"\n"
