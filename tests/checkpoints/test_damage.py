"""Every way to damage every file of a checkpoint: it is named, and the checkpoint before it is used."""

import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import pytest

from mtp_jax.checkpoints import Checkpointer, CheckpointError, integrity, load_params


def _flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _flip_last(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def _cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


DAMAGES = {"flip": _flip, "flip_last": _flip_last, "cut": _cut, "empty": _empty, "delete": pathlib.Path.unlink}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A directory with the checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp("pristine") / "checkpoints"
    with Checkpointer(directory, CONFIG()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, _state(step), {"step": step})
    return directory


def CONFIG(**options):
    from mtp_jax.config import CheckpointConfig
    return CheckpointConfig(**options)


def _state(step):
    return {"params": {"w": jnp.arange(300.0) * step, "b": jnp.full((3,), step, jnp.bfloat16)}, "step": jnp.int32(step)}


def _restore(directory, **options):
    with Checkpointer(directory, CONFIG(**options)) as checkpointer:
        return checkpointer.restore(jax.eval_shape(lambda: _state(0)))


def _files(checkpoint):
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def test_the_kinds_of_files_are_those_expected(pristine):
    kinds = {re.sub(r"[0-9a-f]{32}", "DATA", name) for name in _files(pristine / "2")}
    assert kinds >= {"mtp_manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt", "extra/metadata",
                     "state/_METADATA", "state/_sharding", "state/d/DATA", "state/manifest.ocdbt",
                     "state/array_metadatas/process_0", "state/ocdbt.process_0/d/DATA"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_named_and_the_one_before_used(pristine, tmp_path, caplog, damage):
    for number, name in enumerate(_files(pristine / "2")):
        directory = shutil.copytree(pristine, tmp_path / str(number))
        DAMAGES[damage](directory / "2" / name)
        caplog.clear()
        restored = _restore(directory)
        assert restored.step == 1 and restored.extra["step"] == 1, name
        assert restored.state["params"]["w"][2] == 2 and restored.state["step"] == 1, name
        assert f"Checkpoint 2 in {directory} is damaged and not used: {name}: " in caplog.text
        shutil.rmtree(directory)


@pytest.mark.parametrize("damage", DAMAGES)
def test_none_left_is_a_clear_error(pristine, tmp_path, damage):
    for number, name in enumerate(_files(pristine / "2")):
        directory = shutil.copytree(pristine, tmp_path / str(number))
        shutil.rmtree(directory / "1")
        DAMAGES[damage](directory / "2" / name)
        with pytest.raises(CheckpointError) as error:
            _restore(directory)
        message = str(error.value)
        assert str(directory) in message and f"2: {name}: " in message and "from a backup" in message
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_params(directory / "2")
        shutil.rmtree(directory)


def test_problem_is_told(pristine, tmp_path):
    directory = shutil.copytree(pristine, tmp_path / "copy") / "2"
    _flip(directory / "extra/metadata")
    (directory / "state/_METADATA").unlink()
    _cut(directory / "state/_sharding")
    faults = {fault.file: fault.problem for fault in integrity.find_faults(directory)}
    assert faults["extra/metadata"].startswith("checksum differs")
    assert faults["state/_METADATA"] == "missing"
    size = (directory / "state/_sharding").stat().st_size
    assert faults["state/_sharding"] == f"size is {size} bytes, {size + 1} were written"
    unread = {fault.file for fault in integrity.find_faults(directory, verify=False)}
    assert unread == {"state/_METADATA", "state/_sharding"}  # what verify=False leaves out is the content


def test_every_byte_of_the_manifest_counts(pristine, tmp_path):
    directory = shutil.copytree(pristine / "2", tmp_path / "2")
    path = directory / integrity.MANIFEST
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1:])
        assert [fault.file for fault in integrity.find_faults(directory)] == [integrity.MANIFEST], position
    path.write_bytes(good)
    assert integrity.find_faults(directory) == []


def test_a_run_goes_on_past_a_damaged_checkpoint(pristine, tmp_path):
    directory = shutil.copytree(pristine, tmp_path / "checkpoints")
    _flip(directory / "2" / "_CHECKPOINT_METADATA")
    with Checkpointer(directory, CONFIG(keep_last=2)) as checkpointer:
        assert checkpointer.restore(jax.eval_shape(lambda: _state(0))).step == 1
        assert (directory / "2").exists()  # reading changes nothing
        assert checkpointer.save(2, _state(2), {"again": True})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]  # the damaged one does not count among the two to keep
    assert (directory / "damaged-2").exists()
    assert _restore(directory).extra["again"]


def test_empty_or_absent_directory_restores_nothing(tmp_path):
    assert _restore(tmp_path / "none") is None
    (tmp_path / "empty" / "7.orbax-checkpoint-tmp").mkdir(parents=True)  # what a first save leaves when it is killed
    assert _restore(tmp_path / "empty") is None
    with Checkpointer(tmp_path / "empty", CONFIG()) as checkpointer:
        assert checkpointer.save(7, _state(7), {})
    assert _restore(tmp_path / "empty").step == 7
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["7"]
