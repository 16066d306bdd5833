"""Fast-LLM's mtp_llama: every head's logits by a forward of our own, both ways bit for bit, and what does not fit."""

import json
import shutil

import numpy as np
import pytest

from mtp_jax.convert import command, fast_llm
from mtp_jax.convert.safetensors_file import Info, SafetensorsWriter, open_folder
from mtp_jax.data.tokenizer import ByteTokenizer
from tests.convert import forward, parallel_reference
from tests.convert.models import assert_same, make_arrays, make_config, make_model, make_workdir, options, read_all

TOKENS = np.random.default_rng(5).integers(0, 259, (2, 12))


def config_of(heads, **changes):
    return make_config(**{"num_heads": heads, "num_layers": heads + 2, "vocab_multiple": 128, "head_dim": 4, **changes})


def written(folder, config, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    fast_llm.write(make_model(config), folder, options("src", folder, "fast_llm", **fields))
    return folder


def reads(folder, **fields):
    return fast_llm.read(folder, options(folder, "x", "workdir", src_format="fast_llm", **fields))


def contents(folder):
    """Returns (tensors, config.json)."""
    tensors = open_folder(folder)
    return {name: tensors.read(name) for name in tensors.infos}, json.loads((folder / "config.json").read_text())


def save(folder, tensors):
    """Writes tensors over those of a folder."""
    with SafetensorsWriter(folder, {name: Info(t.shape, t.dtype) for name, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


@pytest.mark.parametrize("heads, changes", [
    (1, {"head_dim": 6}), (2, {"tie_embedding": True}), (4, {"num_kv_heads": None, "extra_trunk_layers": 1}),
    (8, {"rope_theta": 500.0, "norm_eps": 0.01})])
def test_every_heads_logits(tmp_path, heads, changes):
    config = config_of(heads, **changes)
    tensors, facts = contents(written(tmp_path / "out", config))
    assert facts["prediction_heads"] == heads and facts["num_hidden_layers"] == 3 + config.extra_trunk_layers
    assert ("lm_head.weight" in tensors) != config.tie_embedding
    ours = forward.logits(config, make_arrays(config), TOKENS)
    got = np.stack([np.moveaxis(parallel_reference.fast_llm_logits(tensors, facts, row), 1, 0) for row in TOKENS], 1)
    assert forward.error(got, ours) < 1e-4
    if heads == 4:  # a wrong order, and heads that read what is behind head 1's layer, are seen
        swapped = {name.replace("mtp_heads.0", "X").replace("mtp_heads.1", "mtp_heads.0").replace("X", "mtp_heads.1"): t
                   for name, t in tensors.items()}
        got = np.moveaxis(parallel_reference.fast_llm_logits(swapped, facts, TOKENS[0]), 1, 0)
        assert forward.error(got[1:3], ours[1:3, 0]) > 0.05


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back_bit_for_bit(tmp_path, heads, tied):
    config = config_of(heads, tie_embedding=tied)
    model = reads(written(tmp_path / "out", config))
    assert (model.config, model.window, model.tokenizer.hash) == (config, 32, ByteTokenizer.hash)
    assert_same(read_all(model), make_arrays(config))


def test_there_and_back_by_the_command(tmp_path):
    source = make_workdir(tmp_path / "run", config_of(3))
    lines = command.convert(options(source, tmp_path / "out", "fast_llm", max_shard_megabytes=1))
    assert any("modeling_mtp_llama.py" in line for line in lines)
    command.convert(options(tmp_path / "out", tmp_path / "run2", "workdir", src_format="fast_llm"))
    command.convert(options(tmp_path / "run2", tmp_path / "out2", "fast_llm", heads=2))
    (first, _), (second, facts) = contents(tmp_path / "out"), contents(tmp_path / "out2")
    assert (facts["prediction_heads"], facts["num_hidden_layers"]) == (2, 3)
    assert_same({name: tensor for name, tensor in first.items()
                 if "mtp_heads.1" not in name and "norms.2" not in name}, second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that is in order."""
    return written(tmp_path_factory.mktemp("whole") / "out", config_of(3))


def test_norms_that_differ_are_refused(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    tensors, _ = contents(folder)
    tensors["model.mtp_norms.2.weight"] = tensors["model.mtp_norms.2.weight"] + 1e-3
    save(folder, tensors)
    with pytest.raises(ValueError, match="model.mtp_norms.2.weight differs from model.mtp_norms.0.weight.*one norm"):
        reads(folder)


@pytest.mark.parametrize("fields, message", [
    ({"model_type": "llama"}, "model_type is 'llama'.*--src_format=hf"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "scales its rotary angles by 'yarn'"),
    ({"hidden_size": None}, "hidden_size=null must be a whole number"),
    ({"prediction_heads": 4}, "lacks model.mtp_norms.3.*model.mtp_heads.2"),
    ({"max_position_embeddings": [1]}, r"max_position_embeddings=\[1\] must be"),
    ({"tie_word_embeddings": "false"}, 'tie_word_embeddings="false" must be true or false'),
    ({"num_hidden_layers": 10**6}, "tells of 1000002 layers"), ({"rms_norm_eps": "small"}, 'rms_norm_eps="small" must'),
    ({"rope_parameters": {"rope_type": ["llama3"]}}, r"scales its rotary angles by \['llama3'\]"),
    ({"rope_parameters": {"rope_theta": "big"}}, 'rope_theta="big" must be a number'),
    ({"num_key_value_heads": 3}, "not divisible"),
    ({"prediction_heads": 2}, "holds model.mtp_norms.2.*model.mtp_heads.1.*no place for"),
    ({"intermediate_size": 32}, r"has the shape \[16, 24\], and its config makes it \[16, 32\]"),
    ({"tie_word_embeddings": True}, "holds lm_head.weight")])
def test_configs_that_do_not_fit(whole, tmp_path, fields, message):
    folder = shutil.copytree(whole, tmp_path / "copy")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, **fields}))
    with pytest.raises(ValueError, match=message):
        reads(folder)


def test_tensors_that_do_not_fit(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    tensors, _ = contents(folder)
    save(folder, {name.replace("mtp_heads.1.mlp.up_proj", "mtp_heads.1.mlp.upproj"): t for name, t in tensors.items()})
    with pytest.raises(ValueError, match="lacks model.mtp_heads.1.mlp.up_proj.weight.*model.mtp_heads.1.mlp.upproj"):
        reads(folder)
    broken = {**tensors, "model.mtp_heads.0.mlp.up_proj.weight": np.full((24, 16), np.nan, np.float32)}
    save(folder, broken)
    with pytest.raises(ValueError, match="model.mtp_heads.0.mlp.up_proj.weight holds 384 numbers that are NaN"):
        read_all(reads(folder))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="cut off or damaged"):
        reads(folder)
    with pytest.raises(ValueError, match="--head_kind=medusa: the heads of this format are parallel"):
        reads(whole, head_kind="medusa")


@pytest.mark.parametrize("changes, message", [
    ({"qk_norm": True}, "model.qk_norm=True cannot be said in Fast-LLM's"),
    ({"unembedding": "replicated"}, "model.unembedding='replicated'"),
    ({"rope_scaling": "linear", "rope_factor": 2.0}, "model.rope_scaling='linear'")])
def test_models_that_the_format_has_no_words_for(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "out", config_of(2, **changes))


def test_numbers_that_are_none_are_not_written(tmp_path):
    arrays = make_arrays(config_of(2))
    arrays["heads/mlp/up"][1, 3, 2] = np.inf
    with pytest.raises(ValueError, match=r"heads/mlp/up\[1\] holds 1 numbers that are NaN"):
        fast_llm.write(make_model(config_of(2), arrays), tmp_path, options("src", tmp_path, "fast_llm"))


def test_scaled_rotary_angles_come_back(tmp_path):
    config = config_of(2, rope_scaling="llama3", rope_factor=8.0, rope_original_window=16)
    folder = written(tmp_path / "out", config)
    assert reads(folder).config == config
    assert json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_type"] == "llama3"
