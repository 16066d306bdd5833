"""hf without torch: round trips of every head kind, the files beside the weights, what --heads leaves out."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mtp_jax.config import Config, OptimizerConfig, to_dict
from mtp_jax.convert import hf, hf_config, rope, tokenizer_files
from mtp_jax.convert.command import convert
from mtp_jax.convert.safetensors_file import INDEX, open_file, open_folder
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.data.tokenizer_files import SentencePieceTokenizer
from tests.convert.models import assert_same, make_arrays, make_config, make_model, options, read_all
from tests.data.test_tokenizer_files import SP

WHOLE = {
    "parallel": dict(qk_norm=True),
    "parallel, replicated": dict(unembedding="replicated", extra_trunk_layers=1),
    "causal, tied": dict(head_kind="causal", tie_embedding=True, rope_scaling="llama3", rope_factor=8.0),
    "anticausal": dict(head_kind="anticausal", rope_scaling="linear", rope_factor=2.0),
    "linear": dict(head_kind="linear", num_layers=2),
    "linear, tied": dict(head_kind="linear", num_layers=2, tie_embedding=True),
    "linear, replicated": dict(head_kind="linear", num_layers=2, unembedding="replicated"),
    "sequential": dict(head_kind="sequential", num_layers=2, tie_embedding=True, qk_norm=True),
    "sequential, replicated": dict(head_kind="sequential", num_layers=2, unembedding="replicated", num_heads=2),
    "medusa": dict(head_kind="medusa", num_layers=2, medusa_layers=2),
    "one head": dict(num_heads=1, param_dtype="bfloat16", dtype="bfloat16", vocab_multiple=128),
}


def write(folder, model, **fields):
    """Exports a model; returns the folder."""
    folder.mkdir()
    hf.write(model, folder, options("run", folder, "hf", **fields))
    return folder


def read(folder, **fields):
    return hf.read(folder, options(folder, "out", "workdir", **fields))


@pytest.mark.parametrize("name", WHOLE)
def test_reading_back_gives_the_whole_model(name, tmp_path):
    config = make_config(**WHOLE[name])
    model = read(write(tmp_path / "out", make_model(config)))
    assert model.config == dataclasses.replace(config, head_dim=4)
    assert model.window == 32 and isinstance(model.tokenizer, ByteTokenizer) and not model.tokenizer_files
    assert (tmp_path / "out" / hf.HEADS).exists() == (name != "one head")
    assert_same(read_all(model), make_arrays(config))


def test_shards_and_what_lies_in_which_file(tmp_path):
    folder = write(tmp_path / "out", make_model(make_config(num_heads=2, d_model=128, d_ff=512, num_layers=4)),
                   max_shard_megabytes=1)
    assert len(list(folder.glob("model-0000*-of-*.safetensors"))) > 1
    names = set(open_folder(folder).infos)
    assert names == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} | {
        f"model.layers.{i}.{part}.weight" for i in range(3) for part in (
            "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
            "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}
    heads = open_file(folder / hf.HEADS)
    assert {name.split(".")[1] for name in heads.infos} == {"2"} and len(heads.infos) == 9
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    assert set(weight_map) == names


def test_an_index_leaves_out_the_further_heads(tmp_path):
    """Servers load all of a folder's safetensors but those that its index does not name."""
    folder = write(tmp_path / "out", make_model(make_config()))
    assert set(json.loads((folder / INDEX).read_text())["weight_map"].values()) == {"model.safetensors"}
    alone = write(tmp_path / "alone", make_model(make_config()), heads=1)
    assert [file.name for file in alone.glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("kind", ["parallel", "causal", "anticausal", "linear", "sequential", "medusa"])
def test_head_1_alone_becomes_a_plain_model(kind, tmp_path):
    config = make_config(head_kind=kind, unembedding="replicated", num_layers=4)
    arrays = make_arrays(config)
    folder = write(tmp_path / "out", make_model(config, arrays), heads=1)
    assert not (folder / hf.HEADS).exists()
    model = read(folder, head_kind="sequential")
    layers = {"parallel": 2, "causal": 2}.get(kind, 4)
    assert (model.config.num_heads, model.config.num_layers, model.config.unembedding) == (1, layers, "shared")
    last = model.read("trunk/mlp/gate", (layers - 1,))
    path = "trunk/mlp/gate" if kind in ("linear", "sequential", "medusa") else "heads/mlp/gate"
    np.testing.assert_array_equal(last, arrays[path][-1 if path.startswith("trunk") else 0])


def test_fewer_heads(tmp_path):
    config = make_config(head_kind="medusa", num_layers=2, unembedding="replicated")
    arrays = make_arrays(config)
    model = read(write(tmp_path / "out", make_model(config, arrays), heads=2))
    assert model.config.num_heads == 2
    np.testing.assert_array_equal(model.read("heads/kernel", ()), arrays["heads/kernel"][:1])
    np.testing.assert_array_equal(model.read("unembedding/kernel", ()), arrays["unembedding/kernel"][:2])
    anticausal = make_model(make_config(head_kind="anticausal"))
    with pytest.raises(ValueError, match="--heads=2 of 3 cannot be had with heads of the kind 'anticausal'"):
        write(tmp_path / "other", anticausal, heads=2)


def test_a_plain_model_becomes_the_kind_that_is_asked_for(tmp_path):
    config = make_config(num_heads=1, num_layers=3, vocab_multiple=128)
    arrays = make_arrays(config)
    folder = write(tmp_path / "out", make_model(config, arrays))
    for kind in hf_config.PLAIN_KINDS:
        model = read(folder, head_kind=kind)
        assert (model.config.head_kind, model.config.num_layers, model.config.num_heads) == (kind, 3, 1)
        gates = [model.read(path, ()) for path in ("trunk/mlp/gate", "heads/mlp/gate") if path in model.leaves]
        assert len(gates) == (1 if kind in ("sequential", "medusa") else 2)
        np.testing.assert_array_equal(np.concatenate(gates), np.concatenate([arrays["trunk/mlp/gate"],
                                                                             arrays["heads/mlp/gate"]]))


def test_both_versions_words_are_in_the_config(tmp_path):
    model = make_model(make_config(rope_scaling="llama3", rope_factor=8.0, head_dim=6))
    fields = json.loads((write(tmp_path / "out", model) / "config.json").read_text())
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}
    wanted = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "head_dim": 6, "num_key_value_heads": 2,
              "max_position_embeddings": 32, "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "vocab_size": 259,
              "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "dtype": "float32",
              "torch_dtype": "float32", "rope_theta": 10_000.0, "rope_scaling": scaling,
              "rope_parameters": {"rope_theta": 10_000.0, **scaling}}
    assert {name: fields[name] for name in wanted} == wanted
    version_4 = {name: value for name, value in fields.items() if name != "rope_parameters"}
    version_5 = {name: value for name, value in fields.items() if name not in ("rope_theta", "rope_scaling")}
    assert rope.from_fields(version_4, "x") == rope.from_fields(version_5, "x") != rope.from_fields({}, "x")
    fields = json.loads((write(tmp_path / "qwen", make_model(make_config(qk_norm=True))) / "config.json").read_text())
    assert (fields["architectures"], fields["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")


@given(st.text())
def test_bytes_as_a_tokenizer_json_have_our_ids(text):
    assume(not any(token in text for token in ("<|bos|>", "<|eos|>", "<|pad|>")))  # those are text to us alone
    assert READER.encode(text).ids == [256, *ByteTokenizer().encode(text).tolist()]
    assert READER.decode(READER.encode(text, add_special_tokens=False).ids, skip_special_tokens=True) == text


def byte_reader():
    """Returns the exported tokenizer of bytes as the library runs it."""
    from tokenizers import Tokenizer

    fields = tokenizer_files.byte_fields()
    fields["post_processor"] = tokenizer_files._bos_first(None, "<|bos|>", 256)
    return Tokenizer.from_str(json.dumps(fields))


READER = byte_reader()


def test_a_sentencepiece_model_goes_both_ways(tmp_path):
    tokenizer = SentencePieceTokenizer(SP)
    model = dataclasses.replace(make_model(make_config(vocab_size=tokenizer.vocab_size)), tokenizer=tokenizer,
                                tokenizer_files={"tokenizer.model": SP})
    folder = write(tmp_path / "out", model)
    again = read(folder)
    assert again.tokenizer.hash == tokenizer.hash and again.tokenizer_files == {"tokenizer.model": SP}
    assert json.loads((folder / "tokenizer_config.json").read_text())["bos_token"] == "<s>"
    moved = tmp_path / "elsewhere.model"
    (folder / "tokenizer.model").rename(moved)
    (folder / "tokenizer.json").unlink()
    assert read(folder).tokenizer is None
    assert read(folder, tokenizer=str(moved)).tokenizer.hash == tokenizer.hash


def test_a_window_and_a_chat_template_go_along(tmp_path):
    """Heads are often trained on shorter rows than the trunk was, and tools cut texts at what a config tells."""
    source, template = write(tmp_path / "source", make_model(make_config(num_heads=1))), "{{ bos_token }}"
    fields = tokenizer_files.byte_fields()
    fields["added_tokens"][1]["content"] = "<|end|>"  # so that it is not the one of bytes, which has no files
    (source / "tokenizer.json").write_text(json.dumps(fields))
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|bos|>", "eos_token": "<|end|>"}))
    (source / "chat_template.jinja").write_text(template)
    convert(options(source, tmp_path / "run", "workdir", src_format="hf"))
    convert(options(tmp_path / "run", tmp_path / "out", "hf", window=4096))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template
    for file, name in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        assert json.loads((tmp_path / "out" / file).read_text())[name] == 4096
    convert(options(tmp_path / "run", tmp_path / "longer", "workdir", window=64))
    assert json.loads((tmp_path / "longer" / "config.json").read_text())["data"]["seq_len"] == 64


def test_the_card_tells_the_run(tmp_path):
    run = Config(model=make_config(), optimizer=OptimizerConfig(learning_rate=0.0123))
    metrics = {"validation": {"step": 7, "head_loss": [2.0, None, 3.0], "head_accuracy": [0.5, None, 0.25],
                              "validation_bits_per_byte": [2.885, None, 4.328], "expected_accepted_length": 1.75}}
    model = make_model(make_config(), facts={"config": to_dict(run), "step": 7, "metrics": metrics, "source": "x"})
    text = (write(tmp_path / "out", model, name="Little") / "README.md").read_text()
    for part in ("# Little", "3 heads, parallel", "stdlib", "0.0123", "7 of 1000", "| 1 | 2.000 | 2.885 | 50.0% |",
                 "| 3 | 3.000 | 4.328 | 25.0% |", "1.75 tokens a forward", "AutoModelForCausalLM", "mtp_jax.generate",
                 "Licence"):
        assert part in text, part
    assert "| 2 |" not in text
    plain = (write(tmp_path / "plain", make_model(make_config(num_heads=1, num_layers=2))) / "README.md").read_text()
    assert "does not tell how it was trained" in plain and "mtp_heads" not in plain
