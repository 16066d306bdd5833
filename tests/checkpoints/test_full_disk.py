"""A disk that fills up during a save: said plainly, and the last good checkpoint stays."""

import errno
import shutil
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.checkpoints import Checkpointer, CheckpointError, errors, integrity
from mtp_jax.checkpoints import checkpointer as module


def _state(step):
    return {"w": jnp.asarray(np.random.default_rng(step).standard_normal(20_000), jnp.float32)}  # 80 kB, incompressible


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is refused: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("free", [0, 16, 40, 64, 100, 116])  # KiB: from no directory to all but the manifest
def test_really_full(small_disk, config, free, caplog):
    directory = small_disk / "checkpoints"
    with Checkpointer(directory, config(keep_last=1)) as checkpointer:
        checkpointer.save(1, _state(1), {})
        checkpointer.wait()
        (small_disk / "fill").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - free * 1024))
        with pytest.raises(CheckpointError) as error:
            checkpointer.save(2, _state(2), {})
            checkpointer.wait()
        message = str(error.value)
        assert f"The disk is full: checkpoint 2 could not be written to {directory}" in message
        assert "(80000 bytes)" in message and "were free" in message
        assert "last good checkpoint is 1, untouched" in message and "checkpoint.keep_last" in message
        assert (f"Checkpoint 2 needs up to 78.1 KiB and {directory} has" in caplog.text) == (free < 78)
        assert checkpointer.steps() == [1]
        checkpointer.wait()  # told once
        (small_disk / "fill").unlink()
        assert checkpointer.save(3, _state(3), {})  # a loop that chose to go on
        checkpointer.wait()
        assert [path.name for path in directory.iterdir()] == ["3"]
        assert np.array_equal(checkpointer.restore(jax.eval_shape(lambda: _state(0))).state["w"], _state(3)["w"])


@pytest.mark.parametrize("surface", ["save", "wait", "close"])
def test_error_of_a_background_save_surfaces(tmp_path, config, monkeypatch, surface):
    write = integrity.write_manifest

    def full(directory):
        if "2" in directory.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(directory)

    monkeypatch.setattr(integrity, "write_manifest", full)
    checkpointer = Checkpointer(tmp_path / "checkpoints", config(keep_last=1))
    checkpointer.save(1, _state(1), {})
    checkpointer.save(2, _state(2), {})
    with pytest.raises(CheckpointError, match="disk is full: checkpoint 2 .*last good checkpoint is 1"):
        {"save": lambda: checkpointer.save(3, _state(3), {}), "wait": checkpointer.wait,
         "close": checkpointer.close}[surface]()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]  # keep_last=1 deleted nothing
    checkpointer.close()


def test_no_thread_outlives_a_directory_that_cannot_be_made(tmp_path, config, monkeypatch):
    from orbax.checkpoint import path

    mkdir = path.atomicity.async_path.mkdir

    async def full(directory, *args, **kwargs):
        if directory.name.startswith("state"):
            raise OSError(errno.ENOSPC, "No space left on device")
        await mkdir(directory, *args, **kwargs)

    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, _state(1), {})
        checkpointer.wait()
        monkeypatch.setattr(path.atomicity.async_path, "mkdir", full)
        with pytest.raises(CheckpointError, match="disk is full: checkpoint 2"):
            checkpointer.save(2, _state(2), {})
            checkpointer.wait()
    deadline = time.monotonic() + 5
    while any("async" in thread.name or "handler" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()  # the process could not end before they do
        time.sleep(0.05)


def test_other_errors_are_not_called_a_full_disk(tmp_path, config, monkeypatch):
    def broken(directory):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(integrity, "write_manifest", broken)
    with Checkpointer(tmp_path / "checkpoints", config(asynchronous=False)) as checkpointer:
        with pytest.raises(CheckpointError, match="Checkpoint 1 could not.*PermissionError.*no earlier one") as error:
            checkpointer.save(1, _state(1), {})
        assert isinstance(error.value.__cause__, PermissionError)


def test_too_little_space_is_told_before_writing(tmp_path, config, monkeypatch, caplog):
    monkeypatch.setattr(module, "_free_bytes", lambda directory: 1024)
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, _state(1), {})
    assert "Checkpoint 1 needs up to 78.1 KiB" in caplog.text and "1.0 KiB free" in caplog.text


def test_is_disk_full():
    quota = OSError(errno.EDQUOT, "Disk quota exceeded")
    wrapped = RuntimeError("commit failed")
    wrapped.__cause__ = quota
    assert errors.is_disk_full(quota) and errors.is_disk_full(wrapped)
    assert errors.is_disk_full(ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [28]"))
    assert not errors.is_disk_full(ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes."))
    assert not errors.is_disk_full(None)
