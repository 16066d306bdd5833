"""Reading a run's model from its workdir, whole or sharded, and writing one that a run can start from."""

import json

import jax
import numpy as np
import pytest

from mtp_jax.checkpoints import Checkpointer, CheckpointError, load_params, structure
from mtp_jax.config import CheckpointConfig
from mtp_jax.convert import workdir
from mtp_jax.decoding.load import load_model
from mtp_jax.parallel import Layout, make_mesh
from tests.convert.models import assert_same, make_arrays, make_config, make_model, make_workdir, options, read_all


def read(folder, **fields):
    return workdir.read(folder, options(folder, "out", "hf", **fields))


def test_a_run_is_read_leaf_by_leaf(tmp_path):
    folder = make_workdir(tmp_path / "run", make_config())
    model = read(folder)
    assert_same(read_all(model), make_arrays(make_config()))
    assert model.window == 32 and model.facts["step"] == 7 and model.facts["config"]["model"]["num_heads"] == 3
    np.testing.assert_array_equal(model.read("trunk/mlp/gate", (1,)), make_arrays(make_config())["trunk/mlp/gate"][1])


def test_what_a_run_measured_up_to_the_checkpoint(tmp_path):
    """Of the weights of step 7; a line that a kill left damaged is passed over."""
    folder = make_workdir(tmp_path / "run", make_config())
    lines = [{"step": 5, "split": "train", "loss": 3.0}, {"step": 7, "split": "train", "loss": 2.0}, {"loss": 1.0}, [1],
             {"step": 8, "split": "train", "loss": 1.0}, {"step": 8, "split": "validation", "loss": 1.0}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 7, "spl')
    assert read(folder).facts["metrics"] == {"train": lines[1]}


def test_a_checkpoint_of_many_devices(tmp_path):
    """Written on data:2, fsdp:2, tensor:2, so that every array lies in pieces."""
    config = make_config()
    arrays = make_arrays(config)
    folder = make_workdir(tmp_path / "run", config, arrays)
    mesh = make_mesh("data:2,fsdp:2,tensor:2", jax.devices()[:8])
    from mtp_jax.config import ParallelConfig
    from mtp_jax.model import ModelSpec
    from mtp_jax.training.state import flatten_params

    layout = Layout.create(mesh, ParallelConfig().rules)
    axes = flatten_params(ModelSpec.create(config).axes)
    params = {path: jax.device_put(array + 1, layout.sharding(axes[path], array.shape, path))
              for path, array in arrays.items()}
    assert any(not leaf.sharding.is_fully_replicated for leaf in params.values())
    extra = {"config": {}, "corpus_hash": "c"}
    with Checkpointer(folder / "checkpoints", CheckpointConfig()) as checkpointer:
        checkpointer.save(9, {"step": np.int32(9), "params": structure.nest(params)}, extra)
    model = read(folder)
    assert model.facts["step"] == 9
    assert_same(read_all(model), {path: array + 1 for path, array in arrays.items()})
    assert_same(read_all(read(folder, step=7)), arrays)


def test_a_written_workdir_is_restored_and_decodes(tmp_path):
    config = make_config(num_heads=2, num_layers=3)
    model = make_model(config, facts={"step": 5, "source": "elsewhere"})
    workdir.write(model, tmp_path, options("elsewhere", tmp_path, "workdir"))
    loaded = load_params(tmp_path)
    assert loaded.step == 5 and loaded.extra["converted_from"] == "elsewhere"
    assert_same(structure.flatten(loaded.params), make_arrays(config))
    decoding = load_model(tmp_path)
    assert decoding.heads == 2 and decoding.window == 32 and decoding.tokenizer.vocab_size == 259


def test_another_dtype(tmp_path):
    workdir.write(make_model(make_config()), tmp_path, options("x", tmp_path, "workdir", dtype="bfloat16"))
    assert {str(leaf.dtype) for leaf in read(tmp_path).leaves.values()} == {"bfloat16"}
    assert read(tmp_path).config.param_dtype == "bfloat16"
    with pytest.raises(ValueError, match="--dtype=float16 cannot be had in a workdir"):
        workdir.write(make_model(make_config()), tmp_path, options("x", tmp_path, "workdir", dtype="float16"))


def test_no_number_is_found_before_anything_is_written(tmp_path):
    arrays = make_arrays(make_config())
    arrays["heads/mlp/up"][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"heads/mlp/up\[1\] holds 1 numbers that are NaN"):
        workdir.write(make_model(make_config(), arrays), tmp_path, options("x", tmp_path, "workdir"))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused(tmp_path):
    folder = make_workdir(tmp_path / "run", make_config())
    victim = max((folder / "checkpoints" / "7").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        read(folder)


def test_a_config_of_another_model(tmp_path):
    folder = make_workdir(tmp_path / "run", make_config())
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"d_ff": 24', '"d_ff": 32'))
    with pytest.raises(CheckpointError, match="config.json tells of another model"):
        read(folder)
