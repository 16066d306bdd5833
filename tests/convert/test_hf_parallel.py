"""The folder for transformers with all heads: its files, reading it back, and what is refused. (Without torch.)"""

import ast
import dataclasses
import json

import numpy as np
import pytest

from mtp_jax.checkpoints import load_params, structure
from mtp_jax.convert import command, formats, hf_parallel
from mtp_jax.convert.safetensors_file import open_folder
from mtp_jax.convert.table import stream
from mtp_jax.data.tokenizer import ByteTokenizer
from tests.convert import forward, parallel_reference
from tests.convert.models import assert_same, make_arrays, make_config, make_model, make_workdir, options, read_all

KINDS = {
    "parallel": dict(qk_norm=True, head_dim=6, extra_trunk_layers=1),
    "causal": dict(unembedding="replicated"),
    "anticausal": dict(tie_embedding=True),
    "linear": dict(unembedding="replicated"),
    "medusa": dict(medusa_layers=2),
    "one": dict(head_kind="parallel", num_heads=1, num_layers=2),
    "medusa_one": dict(head_kind="medusa", num_heads=1, num_layers=2),
}


def config_of(name, **changes):
    return make_config(**{"head_kind": name, **KINDS[name], **changes})


def write(folder, model, **fields):
    """Writes a model into a new folder and returns it."""
    folder.mkdir(exist_ok=True)
    hf_parallel.write(model, folder, options("run", folder, "hf_parallel", **fields))
    return folder


def read(folder):
    return hf_parallel.read(folder, options(folder, "out", "workdir", src_format="hf_parallel"))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_read_back_bit_for_bit(name, tmp_path):
    config = config_of(name)
    arrays = make_arrays(config)
    folder = write(tmp_path / "first", make_model(config, arrays))
    model = read(folder)
    assert_same(read_all(model), arrays)
    assert model.config == dataclasses.replace(config, head_dim=config.attention_head_dim)
    assert model.window == 32 and isinstance(model.tokenizer, ByteTokenizer)
    again = write(tmp_path / "again", model)
    for path in folder.iterdir():
        if path.name != "README.md":  # says where it comes from
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_the_heads_are_in_order_and_read_the_trunk(tmp_path):
    """Parallel heads of Fast-LLM's description under our names; tests/interop has the class in torch, for all kinds."""
    config = make_config(num_heads=4, num_layers=6)
    folder = write(tmp_path, make_model(config))
    tensors = open_folder(folder)
    renamed = {}
    for name in tensors.infos:
        theirs = name.replace("model.heads.0.", "model.layers.2.").replace("model.norm.", "model.mtp_norms.0.")
        for k in range(1, 4):
            theirs = theirs.replace(f"model.heads.{k}.", f"model.mtp_heads.{k - 1}.")
            renamed[f"model.mtp_norms.{k}.weight"] = tensors.read("model.norm.weight")
        renamed[theirs] = tensors.read(name)
    fields = {**json.loads((folder / "config.json").read_text()), "num_hidden_layers": 3, "prediction_heads": 4}
    row = np.arange(1, 9) * 29 % 259
    got = np.moveaxis(parallel_reference.fast_llm_logits(renamed, fields, row), 1, 0)
    assert forward.error(got, forward.logits(config, make_arrays(config), row[None])[:, 0]) < 1e-4


def test_names_and_config(tmp_path):
    config = config_of("parallel")
    folder = write(tmp_path, make_model(config))
    names = set(open_folder(folder).infos)
    assert {"model.embed_tokens.weight", "model.layers.2.self_attn.q_norm.weight", "model.heads.0.mlp.up_proj.weight",
            "model.heads.2.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"} < names
    assert not any(name.startswith(("model.layers.3", "model.heads.3", "lm_heads")) for name in names)
    fields = json.loads((folder / "config.json").read_text())
    wanted = {"model_type": "mtp_parallel", "num_prediction_heads": 3, "num_hidden_layers": 6, "vocab_size": 259,
              "head_dim": 6, "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": 256,
              "eos_token_id": 257, "pad_token_id": 258, "rope_scaling": None,
              "rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
              "dtype": "float32", "torch_dtype": "float32", "architectures": ["MTPParallelForCausalLM"]}
    assert {name: fields[name] for name in wanted} == wanted
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_mtp_parallel.py",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "tokenizer_test.json"}
    card = (folder / "README.md").read_text()
    assert "heads=3" in card and "trust_remote_code=True" in card and "mtp_heads" not in card


def test_large_models_are_cut_into_files(tmp_path):
    config = config_of("parallel", d_model=256, d_ff=512, vocab_size=300)
    arrays = make_arrays(config)
    folder = write(tmp_path, make_model(config, arrays), max_shard_megabytes=1)
    assert len(list(folder.glob("model-*.safetensors"))) > 5 and not (folder / "model.safetensors").exists()
    assert_same(read_all(read(folder)), arrays)


@pytest.mark.parametrize("scaling", [
    dict(rope_scaling="linear", rope_factor=4.0),
    dict(rope_scaling="llama3", rope_factor=8.0, rope_low_freq_factor=1.0, rope_high_freq_factor=4.0,
         rope_original_window=16)])
def test_rotary_angles_that_are_scaled(scaling, tmp_path):
    config = config_of("one", **scaling)
    assert read(write(tmp_path, make_model(config))).config == dataclasses.replace(config, head_dim=4)


def test_a_tokenizer_that_is_too_large(tmp_path):
    folder = write(tmp_path, dataclasses.replace(make_model(config_of("one", vocab_size=11)), tokenizer=None))
    assert read(folder).tokenizer is None
    with pytest.raises(ValueError, match="has a tokenizer of 259 ids, and the model has 11"):
        hf_parallel.read(folder, options(folder, "out", "workdir", src_format="hf_parallel", tokenizer="bytes"))


def test_from_a_run_to_transformers_and_back(tmp_path):
    """By the command's function: what mtp_jax.generate reads at the end are the weights of the run."""
    config = config_of("causal")
    run = make_workdir(tmp_path / "run", config)
    command.convert(options(run, tmp_path / "out", "hf_parallel"))
    command.convert(options(tmp_path / "out", tmp_path / "back", "workdir", src_format="hf_parallel"))
    assert_same(structure.flatten(load_params(tmp_path / "back").params), make_arrays(config))


def test_the_model_class_stands_alone_and_is_what_the_config_names(tmp_path):
    folder = write(tmp_path, make_model(config_of("one")))
    fields = json.loads((folder / "config.json").read_text())
    files = {entry.split(".")[0] for entry in fields["auto_map"].values()}
    assert files == {"modeling_mtp_parallel"}
    tree = ast.parse((folder / "modeling_mtp_parallel.py").read_text())
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {entry.split(".")[1] for entry in fields["auto_map"].values()} | set(fields["architectures"]) <= classes
    imported = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
                for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert imported == {"dataclasses", "functools", "inspect", "torch", "transformers"}


@pytest.mark.parametrize("name", ["parallel", "causal", "linear", "medusa"])
def test_the_first_heads_alone(name, tmp_path):
    config = config_of(name)
    arrays = make_arrays(config)
    model = read(write(tmp_path, make_model(config, arrays), heads=2))
    assert model.config.num_heads == 2
    rows = {"heads/": 1 if name == "medusa" else 2, "unembedding/": 2 if config.unembedding == "replicated" else None}
    kept = {path: array[:next((rows[start] for start in rows if path.startswith(start)), None)]
            for path, array in arrays.items()}
    assert_same(read_all(model), kept)


def test_anticausal_heads_cannot_be_cut(tmp_path):
    with pytest.raises(ValueError, match="--heads=2 of 3 .* head 1 stacks on all others"):
        write(tmp_path, make_model(config_of("anticausal")), heads=2)


def test_a_narrower_dtype(tmp_path):
    model = make_model(config_of("linear"))
    folder = write(tmp_path, model, dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    back = read(folder)
    assert back.config.param_dtype == "bfloat16"
    tensors = dict(stream(model, hf_parallel.table(model.config), "bfloat16"))
    np.testing.assert_array_equal(open_folder(folder).read("model.heads.1.weight"), tensors["model.heads.1.weight"])


def test_nan_is_refused(tmp_path):
    arrays = make_arrays(config_of("parallel"))
    arrays["heads/mlp/up"][1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"heads/mlp/up\[1\] holds 1 numbers that are NaN"):
        write(tmp_path, make_model(config_of("parallel"), arrays))


def test_sequential_heads_are_not_of_this_format():
    model = make_model(make_config(head_kind="sequential"))
    with pytest.raises(ValueError, match="--dst_format=hf_parallel cannot hold .*'sequential' .*: choose .*hf_mtp"):
        formats.check_kind(model, "hf_parallel")


@pytest.mark.parametrize("change, message", [
    (dict(model_type="llama"), "model_type is 'llama', .* is 'mtp_parallel': read it with --src_format=hf"),
    (dict(model_type="gpt2"), "model_type is 'gpt2'"),
    (dict(head_kind="paralel"), "'paralel' is not one of .* Did you mean \"parallel\""),
    (dict(head_kind="sequential"), "'sequential' is not one of"),
    (dict(hidden_act="gelu"), "hidden_act=\"gelu\", and only models with SwiGLU"),
    (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "scales its rotary angles by 'yarn'"),
    (dict(num_prediction_heads=None), "num_prediction_heads is None and must be of the type int"),
    (dict(qk_norm=1), "qk_norm is 1 and must be of the type bool"),
    (dict(num_prediction_heads=9), "num_heads=9 is too large"),
    (dict(mtp_jax={"vocab_multiple": 0}), "vocab_multiple=0 must be at least 1"),
    (dict(mtp_jax={"vocab_multiple": "x"}), "tells of a model that cannot be"),
    (dict(mtp_jax=[1]), r"mtp_jax is \[1\], and what it may tell is"),
    (dict(hidden_size=None), "hidden_size"),
    (dict(num_prediction_heads=4), r"lacks model.heads.3"),
    (dict(num_prediction_heads=2), r"model.heads.2"),
    (dict(intermediate_size=32), r"mlp.down_proj.weight has the shape \[16, 24\], and its config makes it \[16, 32\]"),
    (dict(num_attention_heads=3), "not divisible"),
])
def test_a_config_that_does_not_fit(change, message, tmp_path):
    folder = write(tmp_path, make_model(config_of("parallel")))
    fields = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items()
                                                    if value is not None or name not in change}))
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_damaged_folder(tmp_path):
    folder = write(tmp_path, make_model(config_of("parallel")))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="it is cut off or damaged"):
        read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        read(folder)
