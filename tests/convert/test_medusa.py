"""vLLM's layout of Medusa heads. tests/interop/test_medusa.py runs them in torch behind a Llama of transformers."""

import json

import numpy as np
import pytest

from mtp_jax.convert import command, medusa
from mtp_jax.convert.safetensors_file import open_folder
from tests.convert import forward
from tests.convert.models import make_arrays, make_config, make_model, make_workdir, options

TOKENS = np.random.default_rng(5).integers(0, 259, (2, 12))


def config_of(heads, **changes):
    return make_config(num_heads=heads, num_layers=2, head_kind="medusa", **changes)


def contents(folder):
    """Returns (tensors, config.json)."""
    tensors = open_folder(folder)
    return {name: tensors.read(name) for name in tensors.infos}, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("heads, changes", [
    (2, {}), (4, {"medusa_layers": 2, "unembedding": "replicated"}), (3, {"tie_embedding": True})])
def test_the_tensors_are_vllms_and_draft_what_our_heads_do(tmp_path, heads, changes):
    config = config_of(heads, **changes)
    arrays = make_arrays(config)
    medusa.write(make_model(config, arrays), tmp_path, options("src", tmp_path, "medusa"))
    tensors, facts = contents(tmp_path)
    replicated = config.unembedding == "replicated"
    assert facts == {**facts, "model_type": "medusa", "num_heads": heads - 1, "num_hidden_layers": config.medusa_layers,
                     "hidden_size": 16, "vocab_size": 259, "truncated_vocab_size": 259, "medusa_fc_bias": False,
                     "original_lm_head": not replicated}
    assert set(tensors) == {
        *(f"blocks.{j}.layers.{i}.weight" for j in range(heads - 1) for i in range(config.medusa_layers)),
        *(f"lm_heads.{j}.weight" for j in (range(heads - 1) if replicated else (0,)))}
    ours = forward.logits(config, arrays, TOKENS)
    matrix = arrays["embedding/embedding" if config.tie_embedding else "unembedding/kernel"]
    matrix = (matrix[0] if replicated else matrix)[:259].astype(np.float64)
    x = np.linalg.lstsq(matrix, ours[0].astype(np.float64).reshape(-1, 259).T, rcond=None)[0].T  # head 1's state
    for j in range(heads - 1):
        h = x
        for i in range(config.medusa_layers):
            inner = h @ tensors[f"blocks.{j}.layers.{i}.weight"].T
            h = h + inner / (1 + np.exp(-inner))
        got = h @ tensors[f"lm_heads.{j if replicated else 0}.weight"].T
        assert forward.error(got, ours[j + 1].reshape(-1, 259)) < 1e-4


def test_the_command_says_how_to_write_the_model_that_is_drafted_for(tmp_path):
    source = make_workdir(tmp_path / "run", config_of(4))
    lines = command.convert(options(source, tmp_path / "draft", "medusa", heads=3))
    assert f"--src={source} --dst=TARGET --dst_format=hf" in lines[0] and "'num_speculative_tokens': 2" in lines[1]
    tensors, facts = contents(tmp_path / "draft")
    assert facts["num_heads"] == 2
    assert "blocks.1.layers.0.weight" in tensors and "blocks.2.layers.0.weight" not in tensors


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="--heads=1: this format holds heads 2, 3, .. and there is none"):
        medusa.write(make_model(config_of(1)), tmp_path, options("src", tmp_path, "medusa"))
    arrays = make_arrays(config_of(2))
    arrays["heads/kernel"][0, 0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="heads/kernel.0, 0. holds 1 numbers that are NaN"):
        medusa.write(make_model(config_of(2), arrays), tmp_path, options("src", tmp_path, "medusa"))
    source = make_workdir(tmp_path / "run", make_config())
    with pytest.raises(ValueError, match="cannot hold heads of the kind 'parallel'"):
        command.convert(options(source, tmp_path / "out", "medusa"))
