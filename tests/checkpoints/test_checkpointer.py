"""Saving and restoring: values, cadence, strictness, shardings."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtp_jax.checkpoints import Checkpointer, CheckpointError, CheckpointMismatch, integrity


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip(tmp_path, state_of, config, abstract, assert_same, asynchronous):
    state = state_of(3)
    extra = {"data": {"row": 7}, "mesh": "data:8", "config": {"model": {"num_heads": 2}}}
    with Checkpointer(tmp_path / "checkpoints", config(asynchronous=asynchronous)) as checkpointer:
        assert checkpointer.restore(abstract(state)) is None and checkpointer.latest_step() is None
        assert checkpointer.save(3, state, extra)
        checkpointer.wait()
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        restored = checkpointer.restore(abstract(state))
    assert restored.step == 3
    assert restored.extra == {**extra, "format_version": integrity.FORMAT_VERSION}
    assert_same(restored.state, state)


def test_buffers_may_be_donated_as_soon_as_save_returns(tmp_path, config):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"params": {f"w{i}": jnp.zeros((512, 512)) + 1000 * i for i in range(4)}, "step": jnp.int32(0)}
    directory = tmp_path / "checkpoints"
    with Checkpointer(directory, config(keep_last=100)) as checkpointer:
        for step in range(1, 9):
            state = advance(state)
            checkpointer.save(step, state, {})
            for _ in range(3):  # on CPU the first of these copies, for the writer still looks at the buffers
                before, state = state, advance(state)
            assert before["params"]["w0"].is_deleted()
        assert checkpointer.steps() != []
    for step in range(8, 0, -1):
        with Checkpointer(directory, config()) as checkpointer:
            restored = checkpointer.restore(jax.eval_shape(lambda: state))
        assert restored.step == step
        want = 1 + 4 * (step - 1)
        assert restored.state["step"] == want
        for i in range(4):
            assert np.all(np.asarray(restored.state["params"][f"w{i}"]) == 1000 * i + want)
        (directory / str(step)).rename(tmp_path / str(step))  # so that the next restore takes the one before


def test_keeps_the_last_and_every_nth(tmp_path, config):
    with Checkpointer(tmp_path / "checkpoints", config(keep_last=2, keep_every=4)) as checkpointer:
        for step in range(1, 12):
            checkpointer.save(step, {"x": jnp.float32(step)}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [4, 8, 10, 11]
        assert checkpointer.latest_step() == 11


def test_a_step_is_saved_once(tmp_path, config):
    state = {"x": jnp.float32(1)}
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        assert checkpointer.save(5, state, {})
        assert not checkpointer.save(5, state, {})
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.restore(jax.eval_shape(lambda: state))
        assert not checkpointer.save(5, state, {})  # a resumed run with nothing left to do


def test_a_run_that_did_not_restore_cannot_overwrite(tmp_path, config):
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(5, {"x": jnp.float32(1)}, {})
    for step in (3, 5):
        with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
            with pytest.raises(CheckpointError, match="holds checkpoint 5 already.*another workdir"):
                checkpointer.save(step, {"x": jnp.float32(2)}, {})
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        assert checkpointer.restore({"x": jax.ShapeDtypeStruct((), jnp.float32)}).state["x"] == 1


def test_restore_is_strict_and_lists_paths(tmp_path, state_of, config, abstract):
    state = state_of(1)
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state, {})
    want = abstract(state)

    def with_params(**changes):
        return dataclasses.replace(want, params={**want.params, **changes})

    embedding = want.params["embedding"]["embedding"]
    cases = [
        (with_params(probe={"bias": embedding}), "params/probe/bias: missing in the checkpoint"),
        (with_params(embedding={"embedding": jax.ShapeDtypeStruct((9, 4), jnp.float32)}),
         r"params/embedding/embedding: float32\[8, 4\] in the checkpoint, wanted float32\[9, 4\]"),
        (with_params(embedding={"embedding": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)}),
         r"params/embedding/embedding: float32\[8, 4\] in the checkpoint, wanted bfloat16\[8, 4\]"),
        (with_params(embedding={}), r"params/embedding/embedding: float32\[8, 4\] in the checkpoint, unknown here"),
        (dataclasses.replace(want, opt_state=()), "opt_state/1/0/mu/embedding/embedding"),
        (dataclasses.replace(want, step=jax.ShapeDtypeStruct((), jnp.int8)), "step: int32.*wanted int8"),
    ]
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        for wrong, message in cases:
            with pytest.raises(CheckpointMismatch, match=message) as error:
                checkpointer.restore(wrong)
            assert "checkpoints/2 does not fit" in str(error.value)  # no older checkpoint is tried


def test_restores_onto_another_mesh(tmp_path, state_of, config, assert_same):
    devices = np.array(jax.devices())
    assert devices.size == 8
    params = state_of(2, width=8).params
    one = NamedSharding(Mesh(devices.reshape(8), ("fsdp",)), PartitionSpec("fsdp"))
    two = NamedSharding(Mesh(devices.reshape(2, 4), ("data", "tensor")), PartitionSpec("tensor", "data"))
    laid_out = {"embedding": jax.device_put(params["embedding"]["embedding"], one), "step": jnp.int32(4)}
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(4, laid_out, {})
        abstract = {"embedding": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=two),
                    "step": jax.ShapeDtypeStruct((), jnp.int32)}
        restored = checkpointer.restore(abstract)
    assert restored.state["embedding"].sharding == two
    assert_same(restored.state, laid_out)


def test_newer_format_is_refused(tmp_path, config, monkeypatch):
    state = {"x": jnp.float32(1)}
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, state, {})
        checkpointer.wait()
        monkeypatch.setattr(integrity, "FORMAT_VERSION", 2)
        checkpointer.save(2, state, {})
        checkpointer.wait()
        monkeypatch.setattr(integrity, "FORMAT_VERSION", 1)
        with pytest.raises(CheckpointError, match="checkpoints/2 has format version 2.*reads up to 1: update mtp_jax"):
            checkpointer.restore(jax.eval_shape(lambda: state))


def test_what_cannot_be_saved_is_named(tmp_path, config):
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        with pytest.raises(ValueError, match="opt/count is a int: a checkpoint holds arrays"):
            checkpointer.save(1, {"opt": {"count": 3}}, {})
        with pytest.raises(ValueError, match="`extra` of checkpoint 1 is not JSON"):
            checkpointer.save(1, {"x": jnp.float32(1)}, {"mesh": object()})
        assert checkpointer.save(1, {"x": jnp.float32(1)}, {"tuple": (1, 2)})
        checkpointer.wait()
        assert checkpointer.steps() == [1]


def test_manifest_lists_every_file(tmp_path, config):
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, {"x": jnp.float32(1)}, {})
    directory = tmp_path / "checkpoints" / "1"
    lines = (directory / integrity.MANIFEST).read_text().splitlines()
    listed = set(json.loads("\n".join(lines[:-1]))["files"])
    there = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert listed == there - {integrity.MANIFEST} and listed
