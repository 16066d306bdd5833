"""Checkpoints of Hugging Face that cannot be read, and models that cannot be written: each error says what and why."""

import json

import ml_dtypes
import numpy as np
import pytest

from mtp_jax.convert import hf
from mtp_jax.convert.command import convert
from mtp_jax.convert.safetensors_file import Info, SafetensorsWriter, open_folder
from tests.convert.models import make_arrays, make_config, make_model, make_workdir, options


@pytest.fixture
def folder(tmp_path):
    """A good export of a model of three heads."""
    place = tmp_path / "export"
    place.mkdir()
    hf.write(make_model(make_config()), place, options("run", place, "hf"))
    return place


def read(folder, **fields):
    return hf.read(folder, options(folder, "out", "workdir", **fields))


def set_fields(folder, **changes):
    """Changes config.json; None takes a field out."""
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items()
                                                    if value is not None}))


def set_tensors(folder, changes):
    """Writes model.safetensors anew; None takes a tensor out."""
    before = open_folder(folder)
    tensors = {name: before.read(name) for name in before.infos} | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    infos = {name: Info(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    with SafetensorsWriter(folder, infos, index=True) as new:
        for name, tensor in tensors.items():
            new.write(name, tensor)


ZEROS = np.zeros((16, 16), np.float32)
TENSORS = {
    "missing": ({"model.layers.1.mlp.up_proj.weight": None}, r"lacks model\.layers\.1\.mlp\.up_proj\.weight\."),
    "misnamed": ({"model.norm.weight": None, "model.norms.weight": ZEROS[0]},
                 r"lacks model\.norm\.weight\..*model\.norms\.weight"),
    "extra": ({"model.layers.0.self_attn.q_proj.bias": ZEROS[0]},
              r"holds model\.layers\.0\.self_attn\.q_proj\.bias, which.*q_proj\.weight"),
    "another layer": ({"model.layers.3.input_layernorm.weight": ZEROS[0]}, r"holds model\.layers\.3\.input_layernorm"),
    "no unembedding": ({"lm_head.weight": None}, r"lacks lm_head\.weight"),
    "shape": ({"model.layers.0.self_attn.k_proj.weight": ZEROS},
              r"k_proj\.weight has the shape \[16, 16\], and its config makes it \[8, 16\]"),
    "integers": ({"model.norm.weight": np.ones(16, np.int8)}, r"model\.norm\.weight is of int8"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit(name, folder):
    changes, message = TENSORS[name]
    set_tensors(folder, changes)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_none(value, folder):
    bad = np.ones(16, np.float32)
    bad[3] = value
    set_tensors(folder, {"model.norm.weight": bad})
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds 1 numbers that are NaN or infinite"):
        read(folder).read("final_norm/scale", ())


def test_what_needs_no_place_is_passed_over(folder):
    set_tensors(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": ZEROS[0]})
    assert read(folder).config.num_heads == 3
    set_fields(folder, tie_word_embeddings=True)
    (folder / hf.HEADS).unlink()
    model = read(folder)  # lm_head.weight is there, and the config says that the embedding is it
    assert model.config.tie_embedding and "unembedding/kernel" not in model.leaves


CONFIGS = {
    "vocabulary": (dict(vocab_size=300), r"embed_tokens\.weight has the shape \[259, 16\].*\[300, 16\]"),
    "layers": (dict(num_hidden_layers=4), r"num_hidden_layers is 3, and config\.json says 4"),
    "tied": (dict(tie_word_embeddings=True), r"tie_word_embeddings is False, and config\.json says True"),
    "architecture": (dict(architectures=["GPT2LMHeadModel"]),
                     r"'GPT2LMHeadModel', and those that can be read are LlamaForCausalLM, MistralForCausalLM, Qwen3"),
    "a bare name": (dict(architectures="GPT2LMHeadModel"), r"'GPT2LMHeadModel', and those"),
    "near": (dict(architectures=["LLamaForCausalLM"]), r'Did you mean "LlamaForCausalLM"'),
    "ours": (dict(architectures=["MTPParallelForCausalLM"]), r"--src_format=hf_parallel"),
    "kind": (dict(architectures=None, model_type="gemma"), r"architecture 'gemma'"),
    "nothing": (dict(architectures=None, model_type=None), r"of the architecture 'None'"),
    "attention biases": (dict(attention_bias=True), r"attention_bias=true, and only models without biases"),
    "MLP biases": (dict(mlp_bias=True), r"mlp_bias=true, and only models without biases"),
    "activation": (dict(hidden_act="gelu"), r'hidden_act="gelu", and only models with SwiGLU'),
    "sliding": (dict(architectures=["MistralForCausalLM"], sliding_window=16), r"sliding_window=16"),
    "sliding by default": (dict(architectures=["MistralForCausalLM"]), r"sliding_window=4096"),
    "layers that slide": (dict(layer_types=["full_attention", "sliding_attention"]), r"layer_types has sliding_att"),
    "layers of another type": (dict(layer_types=5), r"layer_types has 5"),
    "layers of another type still": (dict(layer_types=[{}]), r"layer_types has \{\}"),
    "tied, perhaps": (dict(tie_word_embeddings="yes"), r'tie_word_embeddings="yes" must be true or false'),
    "quantised": (dict(quantization_config={"bits": 4}), r"quantization_config=\{\"bits\": 4\}"),
    "yarn": (dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}),
             r"'yarn', which is not known here: what can be read is default, linear and llama3"),
    "dynamic, as of version 4": (dict(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}),
                                 r"'dynamic'"),
    "longrope": (dict(rope_parameters={"rope_type": "longrope"}), r"'longrope'"),
    "llama3 without factor": (dict(rope_parameters={"rope_type": "llama3", "low_freq_factor": 1.0}),
                              r"lacks factor, high_freq_factor, original_max_position_embeddings"),
    "scaled, but how?": (dict(rope_parameters={"factor": 2.0}), r"by None, which is not known"),
    "two scalings": (dict(rope_scaling={"type": "linear", "factor": 2.0}),
                     r"rope_scaling=.*linear.* and rope_parameters=.*default.* tell of different"),
    "two factors": (dict(rope_scaling={"type": "linear", "factor": 2.0},
                         rope_parameters={"rope_type": "linear", "factor": 4.0}), r"tell of different"),
    "part of a head": (dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
                       r"partial_rotary_factor=0\.5"),
    "angles by layer": (dict(rope_parameters={"full_attention": {"rope_type": "default"}}), r"not one set for all"),
    "lacks a size": (dict(hidden_size=None, hidden_sizes=16), r"hidden_size=null .*missing\..*hidden_sizes"),
    "size of text": (dict(intermediate_size="24"), r'intermediate_size="24" must be a whole number'),
    "size of zero": (dict(num_hidden_layers=0), r"num_hidden_layers=0 must be"),
    "epsilon": (dict(rms_norm_eps="small"), r'rms_norm_eps="small" must be a number above 0'),
    "heads": (dict(num_key_value_heads=3), r"tells of a model that cannot be: .*num_attention_heads=4"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_do_not_fit(name, folder):
    changes, message = CONFIGS[name]
    set_fields(folder, **changes)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize("name, data, message", [
    ("config.json", b'{"model_type": ', r"config\.json is damaged"), ("config.json", b"[]", r"no JSON object"),
    ("config.json", None, r"has no config\.json"),
    ("model.safetensors", None, r"lacks model\.safetensors, which model\.safetensors\.index\.json lists"),
    ("model.safetensors", lambda data: data[:-100], r"cut off or damaged; copy it again"),
    ("model.safetensors", lambda data: data[:50], r"cut off in its header"),
    (hf.HEADS, lambda data: data[:-1], r"mtp_heads\.safetensors has .* cut off"),
    (hf.HEADS, lambda data: data.replace(b'"mtp_jax"', b'"mtp_jox"'), r"does not say which heads"),
    (hf.HEADS, lambda data: data.replace(b"medusa_layers", b"medusa_lasers"), r"medusa_layers"),
    (hf.HEADS, lambda data: data.replace(b"heads.2.mlp.up_proj", b"heads.4.mlp.up_proj"),
     r"lacks heads\.2\.mlp\.up_proj\.weight\..*heads\.4"),
    ("tokenizer.json", b"{}", r"no tokenizer\.json that the library.*--tokenizer=FILE"),
], ids=range(11))
def test_files_that_are_damaged_or_missing(name, data, message, folder):
    path = folder / name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data(path.read_bytes()) if callable(data) else data)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_tokenizer_with_more_ids_than_the_model(folder, tmp_path):
    (tmp_path / "other").mkdir()
    other = make_model(make_config(num_heads=1, vocab_size=100))
    hf.write(other, tmp_path / "other", options("run", tmp_path / "other", "hf"))
    with pytest.raises(ValueError, match="tokenizer of 259 ids, and the model has 100"):
        read(tmp_path / "other")


def test_a_head_kind_that_a_plain_model_cannot_become(folder):
    with pytest.raises(ValueError, match="--head_kind='linear'.*parallel"):
        read(folder, head_kind="linear")


def test_a_wide_number_does_not_become_infinite(tmp_path):
    arrays = make_arrays(make_config())
    arrays["trunk/mlp/up"][1, 2, 3] = 1e6
    with pytest.raises(ValueError, match=r"trunk/mlp/up\[1\] as float16 holds 1 numbers"):
        hf.write(make_model(make_config(), arrays), tmp_path, options("run", tmp_path, "hf", dtype="float16"))
    assert np.float32(1e6).astype(ml_dtypes.bfloat16) < np.inf
    hf.write(make_model(make_config(), arrays), tmp_path, options("run", tmp_path, "hf", dtype="bfloat16"))


def test_nothing_is_left_where_it_fails(tmp_path):
    arrays = make_arrays(make_config())
    arrays["heads/mlp/up"][2, 0, 0] = np.nan  # the last that is written
    run, out = make_workdir(tmp_path / "run", make_config(), arrays), tmp_path / "out"
    with pytest.raises(ValueError, match=r"heads/mlp/up\[2\] holds 1 numbers"):
        convert(options(run, out, "hf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty"):
        convert(options(run, out, "hf", heads=1))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    convert(options(run, out, "hf", heads=1, overwrite=True))
    assert not (out / "mine.txt").exists() and (out / "config.json").exists()
