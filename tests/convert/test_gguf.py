"""The file for llama.cpp: what its header says, its tensors and its tokenizer, read back with the package gguf."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from mtp_jax.convert import gguf, head_one
from mtp_jax.convert.gguf_tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.data.tokenizer_files import HuggingFaceTokenizer, SentencePieceTokenizer
from tests.convert.models import make_arrays, make_config, make_model, options

package = pytest.importorskip("gguf")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")


def written(folder, model, **fields):
    """Returns the file of a model, open."""
    folder.mkdir()
    gguf.write(model, folder, options("run", folder, "gguf", **fields))
    return package.GGUFReader(folder / gguf.FILE)


def tensors(reader):
    """Returns all tensors in fp32."""
    return {tensor.name: package.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def fields(reader):
    """Returns what the header says."""
    return {name: field.contents() for name, field in reader.fields.items()}


def test_header_and_tensors(tmp_path):
    """Every array of trunk and head 1 is where llama.cpp looks for it, rotary pairs as neighbours, padding cut."""
    config = make_config()
    arrays = make_arrays(config)
    reader = written(tmp_path / "x", make_model(config, arrays))
    found = fields(reader)
    wanted = {"general.architecture": "llama", "general.file_type": 0, "general.name": "x", "llama.context_length": 32,
              "llama.embedding_length": 16, "llama.block_count": 3, "llama.feed_forward_length": 24,
              "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 4,
              "llama.attention.value_length": 4, "llama.rope.dimension_count": 4, "llama.rope.freq_base": 10_000.0,
              "llama.vocab_size": 259, "tokenizer.ggml.model": "gpt2"}
    assert {name: found[name] for name in wanted} == wanted
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    there = tensors(reader)
    parts = {"attn_norm": ("attention_norm/scale", None), "attn_v": ("attention/value", 1),
             "attn_output": ("attention/out", 2), "ffn_norm": ("mlp_norm/scale", None), "ffn_gate": ("mlp/gate", 1),
             "ffn_up": ("mlp/up", 1), "ffn_down": ("mlp/down", 1)}
    for layer, (part, index) in enumerate([("trunk", 0), ("trunk", 1), ("heads", 0)]):
        for name, (path, inputs) in parts.items():
            ours = arrays[f"{part}/{path}"][index]
            if inputs:
                ours = ours.reshape(int(np.prod(ours.shape[:inputs])), -1).T
            np.testing.assert_array_equal(there.pop(f"blk.{layer}.{name}.weight"), ours)
        for name, path, heads in (("attn_q", "query", 4), ("attn_k", "key", 2)):
            ours, theirs = arrays[f"{part}/attention/{path}"][index], there.pop(f"blk.{layer}.{name}.weight")
            for head in range(heads):
                for row, feature in enumerate((0, 2, 1, 3)):  # pairs (0, 2) and (1, 3) become neighbours
                    np.testing.assert_array_equal(theirs[4 * head + row], ours[:, head, feature])
    np.testing.assert_array_equal(there.pop("token_embd.weight"), arrays["embedding/embedding"][:259])
    np.testing.assert_array_equal(there.pop("output_norm.weight"), arrays["final_norm/scale"])
    np.testing.assert_array_equal(there.pop("output.weight"), arrays["unembedding/kernel"][:259])
    assert not there


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("bfloat16", 1e-2), ("q8_0", 1e-2)])
def test_dtypes(tmp_path, dtype, tolerance):
    """Matrices are rounded, norms are not; rows that q8_0 cannot cut into blocks stay float16, and that is told."""
    config = make_config(d_model=32)
    arrays = make_arrays(config)
    (tmp_path / "x").mkdir()
    told = gguf.write(make_model(config, arrays), tmp_path / "x", options("run", tmp_path / "x", "gguf", dtype=dtype))
    reader = package.GGUFReader(tmp_path / "x" / gguf.FILE)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["output_norm.weight"] == kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == gguf.DTYPES[dtype]
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if dtype == "q8_0" else gguf.DTYPES[dtype])  # rows of 24
    assert ("blk.0.ffn_down.weight" in told[0]) == (dtype == "q8_0")
    there = tensors(reader)["token_embd.weight"]
    ours = arrays["embedding/embedding"][:259]
    assert 0 < np.abs(there - ours).max() < tolerance * np.abs(ours).max()
    if dtype == "q8_0":  # in pieces as at once
        np.testing.assert_array_equal(there, package.dequantize(package.quantize(
            ours, package.GGMLQuantizationType.Q8_0), package.GGMLQuantizationType.Q8_0))


def test_rotary_scaling(tmp_path):
    """One of all angles stands in the header, Llama 3's in a tensor of its own, which no other model has."""
    config = make_config(head_dim=8, rope_scaling="linear", rope_factor=4.0)
    reader = written(tmp_path / "x", make_model(config))
    found = fields(reader)
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.factor"]) == ("linear", 4.0)
    assert gguf.ROTARY not in tensors(reader)
    config = make_config(head_dim=8, rope_scaling="llama3", rope_factor=8.0, rope_original_window=64)
    reader = written(tmp_path / "y", make_model(config))
    assert "llama.rope.scaling.type" not in fields(reader)
    factors_C = tensors(reader)[gguf.ROTARY]
    assert factors_C.tolist() == [1.0, pytest.approx(7.67, rel=1e-3), 8.0, 8.0]  # waves of 6, 63, 628, 6283 tokens


@pytest.mark.parametrize("kind", head_one.HEAD_KINDS)
def test_every_kind_is_a_llama(tmp_path, kind):
    """All of them have a plain head 1; what the further heads have of their own is left out."""
    config = make_config(head_kind=kind, tie_embedding=True)
    reader = written(tmp_path / "x", make_model(config))
    names = {tensor.name for tensor in reader.tensors}
    layers = {"parallel": 3, "causal": 3}.get(kind, 5)
    assert fields(reader)["llama.block_count"] == layers == len([n for n in names if n.endswith("attn_q.weight")])
    assert ("output.weight" in names) == (kind == "linear")  # folded into an unembedding of its own


def test_refusals(tmp_path):
    """What llama.cpp would compute otherwise, and numbers that do not fit."""
    config = make_config()
    with pytest.raises(ValueError, match="qk_norm=True cannot be had in --dst_format=gguf"):
        written(tmp_path / "a", make_model(make_config(qk_norm=True)))
    with pytest.raises(ValueError, match="--dtype='float64' is not one of"):
        written(tmp_path / "b", make_model(config), dtype="float64")
    arrays = make_arrays(config)
    arrays["trunk/mlp/up"][1, 0, 0] = 1e6
    with pytest.raises(ValueError, match="blk.1.ffn_up.weight has numbers that F16 cannot hold"):
        written(tmp_path / "c", make_model(config, arrays), dtype="float16")
    arrays["trunk/mlp/up"][1, 0, 0] = np.finfo(np.float32).max
    with pytest.raises(ValueError, match="blk.1.ffn_up.weight has numbers that BF16 cannot hold"):
        written(tmp_path / "e", make_model(config, arrays), dtype="bfloat16")
    arrays["trunk/mlp/up"][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"trunk/mlp/up\[1\] holds 1 numbers that are NaN"):
        written(tmp_path / "d", make_model(config, arrays))


def test_without_the_package(tmp_path, monkeypatch):
    """The message says how to get it."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r'needs the package gguf: pip install "mtp_jax\[gguf\]"'):
        written(tmp_path / "x", make_model(make_config()))


def test_bytes(tmp_path):
    """A byte's token is its name in byte-level BPE; ids past the tokenizer's are there and unused."""
    found = fields(written(tmp_path / "x", make_model(make_config(vocab_size=261))))
    tokens = found["tokenizer.ggml.tokens"]
    assert (tokens[65], tokens[32], tokens[10], tokens[256:]) == (
        "A", "Ġ", "Ċ", ["<|bos|>", "<|eos|>", "<|pad|>", "[UNUSED259]", "[UNUSED260]"])
    assert len(set(tokens)) == 261
    assert found["tokenizer.ggml.token_type"] == [NORMAL] * 256 + [CONTROL] * 3 + [UNUSED] * 2
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"],
            found["tokenizer.ggml.padding_token_id"]) == (256, 257, 258)
    assert found["tokenizer.ggml.add_bos_token"] is True


def test_without_tokenizer(tmp_path):
    """Ids alone."""
    found = fields(written(tmp_path / "x", dataclasses.replace(make_model(make_config()), tokenizer=None)))
    assert found["tokenizer.ggml.model"] == "none" and "tokenizer.ggml.tokens" not in found


def byte_level(**changes):
    """Returns a byte-level BPE of 259 ids and a merge, as the content of a tokenizer.json."""
    names = ["<|bos|>", "<|eos|>", *sorted(gguf.gguf_tokenizer.byte_names()), "ab", "<tool>"]
    added = [{"id": names.index(name), "content": name, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": name != "<tool>"} for name in ("<|bos|>", "<|eos|>", "<tool>")]
    rules = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": changes.pop("ignore_merges", False),
             "vocab": {name: i for i, name in enumerate(names[:-1])}, "merges": [["a", "b"]]}
    return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                       "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL,
                       "model": rules, **changes}).encode()


def with_file(data):
    """Returns a model of 260 ids with this tokenizer.json."""
    model = make_model(make_config(vocab_size=260))
    return dataclasses.replace(model, tokenizer=HuggingFaceTokenizer(data), tokenizer_files={"tokenizer.json": data})


def test_byte_level_bpe(tmp_path):
    """Tokens, merges and types of a tokenizer.json, and llama.cpp's name for how it splits text."""
    found = fields(written(tmp_path / "x", with_file(byte_level())))
    assert found["tokenizer.ggml.pre"] == "gpt-2" and found["tokenizer.ggml.merges"] == ["a b"]
    assert found["tokenizer.ggml.tokens"][-2:] == ["ab", "<tool>"]
    types = found["tokenizer.ggml.token_type"]
    assert types[:3] == [CONTROL, CONTROL, NORMAL] and types[-2:] == [NORMAL, USER_DEFINED]
    rule = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
        {**BYTE_LEVEL, "use_regex": False}]}
    for whole, name in ((True, "llama-bpe"), (False, "dbrx")):
        found = fields(written(tmp_path / name, with_file(byte_level(pre_tokenizer=rule, ignore_merges=whole))))
        assert found["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize("change, message", [
    ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "llama.cpp has no name for the way"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}}, "llama.cpp has no name for the way"),
    ({"ignore_merges": True}, "with ignore_merges=True"),
    ({"normalizer": {"type": "NFC"}}, r"changes the text first \(NFC\)"),
])
def test_other_splits_are_refused(tmp_path, change, message):
    """Rather than read as others."""
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "x", with_file(byte_level(**change)))


def sentencepiece_model(folder, **settings):
    """Returns a small SentencePiece model of Llama's kind."""
    import sentencepiece
    text = "the cat sat on the mat and the dog ran to the cat for a while\n" * 20
    (folder / "text").write_text(text)
    sentencepiece.SentencePieceTrainer.train(**{
        "input": str(folder / "text"), "model_prefix": str(folder / "m"), "vocab_size": 300, "model_type": "bpe",
        "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "minloglevel": 2, "hard_vocab_limit": False, **settings})
    return (folder / "m.model").read_bytes()


def with_pieces(data):
    """Returns a model with this tokenizer.model."""
    tokenizer = SentencePieceTokenizer(data)
    model = make_model(make_config(vocab_size=tokenizer.vocab_size))
    return dataclasses.replace(model, tokenizer=tokenizer, tokenizer_files={"tokenizer.model": data})


def test_sentencepiece(tmp_path):
    """Pieces with their scores and types; another kind than Llama's is refused, saying in what it differs."""
    model = with_pieces(sentencepiece_model(tmp_path))
    found = fields(written(tmp_path / "x", model))
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    assert (found["tokenizer.ggml.unknown_token_id"], found["tokenizer.ggml.bos_token_id"]) == (0, 1)
    assert found["tokenizer.ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert found["tokenizer.ggml.token_type"][:4] == [2, CONTROL, CONTROL, 6]
    scores = found["tokenizer.ggml.scores"]
    assert len(scores) == model.config.vocab_size and scores[260] > scores[261]
    other = with_pieces(sentencepiece_model(tmp_path, model_type="unigram", remove_extra_whitespaces=True))
    with pytest.raises(ValueError, match=r"trained with model_type=unigram \(bpe alone\), remove_extra_whitespaces="):
        written(tmp_path / "y", other)


def test_bytes_are_named_as_tokenizers_names_them():
    """The names of bytes are those of the library, whose order is another."""
    from tokenizers import pre_tokenizers

    names = gguf.gguf_tokenizer.byte_names()
    assert sorted(names) == sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "aé\n 日\x00\xad"
    assert split.pre_tokenize_str(text)[0][0] == "".join(names[byte] for byte in ByteTokenizer().encode(text))
