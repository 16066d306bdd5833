"""The files of hf_mtp: names, layouts, configs, and what is refused; tests/interop runs them in transformers."""

import json

import numpy as np
import pytest

from mtp_jax.convert import hf_mtp
from mtp_jax.convert.safetensors_file import open_folder
from tests.convert.models import make_arrays, make_config, make_model, options


def export(folder, heads=None, **changes):
    """Returns our config and arrays, the fields of config.json and the tensors."""
    config = make_config(**{"head_kind": "sequential", "num_layers": 2, **changes})
    arrays = make_arrays(config)
    hf_mtp.write(make_model(config, arrays), folder, options("run", folder, "hf_mtp", heads=heads))
    return config, arrays, json.loads((folder / "config.json").read_text()), open_folder(folder)


def test_modules_lie_behind_the_layers_in_deepseeks_names(tmp_path):
    _, arrays, fields, tensors = export(tmp_path)
    assert fields["num_hidden_layers"] == 2 and fields["num_mtp_layers"] == 2
    assert fields["architectures"] == ["LlamaForCausalLM"] and fields["model_type"] == "llama"
    assert fields["auto_map"] == {"AutoModelForCausalLM": "modeling_mtp.MTPLlamaForCausalLM"}
    assert (tmp_path / "modeling_mtp.py").exists() and "use_mtp=True" in (tmp_path / "README.md").read_text()
    for row in (0, 1):
        prefix = f"model.layers.{2 + row}."
        assert {name.removeprefix(prefix) for name in tensors.infos if name.startswith(prefix)} == {
            "enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "input_layernorm.weight",
            "post_attention_layernorm.weight", *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
            *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down"))}
        np.testing.assert_array_equal(tensors.read(prefix + "eh_proj.weight"), arrays["heads/projection"][row].T)
        np.testing.assert_array_equal(tensors.read(prefix + "enorm.weight"), arrays["heads/embedding_norm/scale"][row])
        np.testing.assert_array_equal(tensors.read(prefix + "shared_head.norm.weight"), arrays["heads/norm/scale"][row])
    assert not any(".4." in name for name in tensors.infos)


def test_one_module_with_qk_norm_is_a_mellum(tmp_path):
    _, arrays, fields, tensors = export(tmp_path, heads=2, qk_norm=True, rope_theta=500.0)
    assert fields["architectures"] == ["MellumForCausalLM"] and fields["num_nextn_predict_layers"] == 1
    assert set(fields["mlp_layer_types"] + fields["mtp_mlp_layer_types"]) == {"dense"}
    assert fields["rope_parameters"] == {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}
    assert "auto_map" not in fields and not (tmp_path / "modeling_mtp.py").exists()
    np.testing.assert_array_equal(tensors.read("mtp.fc.weight"), arrays["heads/projection"][0].T)
    assert "mtp.layers.0.self_attn.q_norm.weight" in tensors.infos


@pytest.mark.parametrize("changes, heads, message", [
    (dict(num_heads=1), None, "The model has one head.*choose hf"),
    ({}, 1, "--heads=1.*choose hf"),
    (dict(unembedding="replicated"), None, "model.unembedding='replicated'.*choose hf")])
def test_what_it_cannot_hold(changes, heads, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(tmp_path, heads=heads, **changes)


def test_a_number_that_is_none_is_named(tmp_path):
    config = make_config(head_kind="sequential", num_layers=2)
    arrays = make_arrays(config)
    arrays["heads/projection"][1, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"heads/projection\[1\] holds 1 numbers that are NaN"):
        hf_mtp.write(make_model(config, arrays), tmp_path, options("run", tmp_path, "hf_mtp"))
