"""Meta's layout: every head's logits by a forward of our own, both ways bit for bit, and files that are not whole."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from mtp_jax.convert import command, meta
from mtp_jax.convert.pth import PthWriter, open_pth
from mtp_jax.convert.safetensors_file import open_file
from mtp_jax.convert.transforms import Linear
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.data.tokenizer_files import read_tokenizer
from tests.convert import forward, parallel_reference
from tests.convert.models import assert_same, make_arrays, make_config, make_model, make_workdir, options, read_all

TOKENS = np.random.default_rng(5).integers(0, 259, (2, 12))


def config_of(heads, **changes):
    return make_config(**{"num_heads": heads, "num_layers": heads + 2, "vocab_multiple": 128, **changes})


def written(folder, config, **fields):
    """Returns the folder that a model with random parameters is written to."""
    folder.mkdir(parents=True, exist_ok=True)
    meta.write(make_model(config), folder, options("src", folder, "meta", **fields))
    return folder


def reads(folder, **fields):
    """Returns the model in a folder."""
    return meta.read(folder, options(folder, "x", "workdir", src_format="meta", **fields))


def contents(folder):
    """Returns (tensors, params.json)."""
    tensors = open_pth(folder / meta.PTH)
    return {name: tensors.read(name) for name in tensors.infos}, json.loads((folder / meta.PARAMS).read_text())


def reference(tensors, params, **mistake):
    """Returns the logits of all heads, [n, B, L, V]."""
    each = [np.moveaxis(parallel_reference.logits(tensors, params, row, **mistake), 1, 0) for row in TOKENS]
    return np.stack(each, axis=1)


@pytest.mark.parametrize("heads, changes", [
    (1, {}), (2, {"tie_embedding": True}), (4, {"num_kv_heads": None, "extra_trunk_layers": 1, "rope_theta": 500.0}),
    (8, {"num_layers": 9, "d_ff": None})])
def test_every_heads_logits(tmp_path, heads, changes):
    config = config_of(heads, **changes)
    tensors, params = contents(written(tmp_path / "meta", config))
    assert params["n_future_tokens"] == heads and sum(name.startswith("extra_heads.") for name in tensors) == 9 * (
        heads - 1)
    ours = forward.logits(config, make_arrays(config), TOKENS)
    assert forward.error(reference(tensors, params), ours) < 1e-4


def test_wrong_conversions_are_seen(tmp_path, monkeypatch):
    """A rotary embedding that is not permuted, heads in another order, heads fed from the last of `layers`."""
    config = config_of(4)
    tensors, params = contents(written(tmp_path / "meta", config))
    ours = forward.logits(config, make_arrays(config), TOKENS)
    assert forward.error(reference(tensors, params), ours) < 1e-4
    assert forward.error(reference(tensors, params, heads_after_all_layers=True), ours) > 0.05
    swapped = {name.replace("extra_heads.0", "X").replace("extra_heads.1", "extra_heads.0").replace(
        "X", "extra_heads.1"): tensor for name, tensor in tensors.items()}
    wrong = reference(swapped, params)
    assert forward.error(wrong[[0, 3]], ours[[0, 3]]) < 1e-4 and forward.error(wrong[1:3], ours[1:3]) > 0.05
    right = meta.table
    monkeypatch.setattr(meta, "table", lambda config: [
        dataclasses.replace(line, transform=Linear()) if ".wq." in line.name or ".wk." in line.name else line
        for line in right(config)])
    assert forward.error(reference(*contents(written(tmp_path / "wrong", config))), ours) > 0.05


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("file", [meta.PTH, meta.SAFETENSORS])
def test_a_model_comes_back_bit_for_bit(tmp_path, heads, file):
    config = config_of(heads, d_ff=(24, 48, 100, 256)[heads // 3])
    folder = written(tmp_path / "meta", config)
    (folder / (meta.PTH if file == meta.SAFETENSORS else meta.SAFETENSORS)).unlink()
    model = reads(folder)
    assert model.config == dataclasses.replace(config, head_dim=None)
    assert model.window == (32 if file == meta.SAFETENSORS else 4096)
    assert_same(read_all(model), make_arrays(config))


def test_a_tied_model_comes_back_untied(tmp_path):
    config = config_of(2, tie_embedding=True)
    arrays = make_arrays(config)
    model = reads(written(tmp_path / "meta", config))
    assert not model.config.tie_embedding
    assert_same(read_all(model), {**arrays, "unembedding/kernel": arrays["embedding/embedding"]})


@pytest.mark.parametrize("kind", ["sequential", "medusa", "causal"])
def test_a_model_with_one_head_becomes_the_kind_that_is_asked_for(tmp_path, kind):
    folder = written(tmp_path / "meta", config_of(1))
    model = reads(folder, head_kind=kind)
    assert forward.error(forward.logits(model.config, read_all(model), TOKENS),
                         forward.logits(config_of(1), make_arrays(config_of(1)), TOKENS)) < 1e-5
    with pytest.raises(ValueError, match=f"--head_kind={kind} cannot be had of .* 2 parallel heads: choose parallel"):
        reads(written(tmp_path / "two", config_of(2)), head_kind=kind)


def test_to_the_layout_and_back_by_the_command(tmp_path):
    config = config_of(3)
    source = make_workdir(tmp_path / "run", config)
    lines = command.convert(options(source, tmp_path / "meta", "meta"))
    assert "weights_only=True" in lines[1]
    command.convert(options(tmp_path / "meta", tmp_path / "run2", "workdir", src_format="meta"))
    command.convert(options(tmp_path / "run2", tmp_path / "meta2", "meta", heads=2))
    first, params = contents(tmp_path / "meta")
    second, fewer = contents(tmp_path / "meta2")
    assert (params["n_layers"], params["n_future_tokens"], fewer["n_layers"], fewer["n_future_tokens"]) == (5, 3, 4, 2)
    assert_same({name: tensor for name, tensor in first.items() if "extra_heads.1" not in name}, second)


def train_sentencepiece(folder):
    """Returns a tokenizer.model of 300 pieces."""
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(sentence_iterator=iter(["def naive return", "a b c more"] * 20), vocab_size=300,
                               model_prefix=str(folder / "pieces"), model_type="bpe", byte_fallback=True,
                               hard_vocab_limit=False, minloglevel=2)
    return folder / "pieces.model"


def test_the_tokenizer_goes_along(tmp_path):
    assert reads(written(tmp_path / "bytes", config_of(2))).tokenizer.hash == ByteTokenizer.hash
    pieces = train_sentencepiece(tmp_path)
    config = config_of(2, vocab_size=300)
    model = dataclasses.replace(make_model(config), tokenizer=read_tokenizer(str(pieces)),
                                tokenizer_files={"tokenizer.model": pieces.read_bytes()})
    folder = tmp_path / "release" / "7B_1T_2"
    folder.mkdir(parents=True)
    meta.write(model, folder, options("src", folder, "meta"))
    assert (folder / "tokenizer.model").read_bytes() == pieces.read_bytes()
    (folder / "tokenizer.model").rename(folder.parent / "tokenizer.model")  # where the release has it
    for name in ("tokenizer.json", "tokenizer_test.json", "tokenizer_config.json"):
        (folder / name).unlink()
    found = reads(folder)
    assert found.tokenizer.hash == model.tokenizer.hash and found.tokenizer_files == model.tokenizer_files
    small = written(tmp_path / "small", config_of(2, vocab_size=256))
    with pytest.raises(ValueError, match="has 300 ids, more than the vocabulary of 256.*--tokenizer=FILE"):
        reads(small, tokenizer=str(folder.parent / "tokenizer.model"))


@pytest.mark.parametrize("changes, message", [
    ({"qk_norm": True}, "model.qk_norm=True cannot be said in params.json"),
    ({"unembedding": "replicated"}, "model.unembedding='replicated'"), ({"head_dim": 8}, "model.head_dim=8"),
    ({"rope_scaling": "linear", "rope_factor": 2.0}, "model.rope_scaling='linear'")])
def test_models_that_the_format_has_no_words_for(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "meta", config_of(2, **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that is in order."""
    return written(tmp_path_factory.mktemp("whole") / "meta", config_of(2))


@pytest.mark.parametrize("fields, message", [
    ({"multiple_of": 64}, r"layers.0.feed_forward.w1.weight has .*24.*multiple_of=64.* make it .*64"),
    ({"dim": 24}, "w1.weight has .*dim=24"), ({"n_layers": 5}, "lacks layers.3.*Its config"),
    ({"n_future_tokens": 3, "n_layers": 5}, "lacks extra_heads.1.attention.*"),
    ({"n_future_tokens": 1, "n_layers": 3}, "holds extra_heads.0.*no place for"),
    ({"n_kv_heads": 4}, r"wk.weight has the shape \[8, 16\], and its config makes it \[16, 16\]"),
    ({"n_heads": None}, "n_heads=null must be a whole number"),
    ({"use_scaled_rope": True}, "use_scaled_rope.*src_format=hf"),
    ({"n_kv_heads": 3}, "not divisible"),
    ({"dim": "16"}, r'params.json: dim="16" must be a whole number above 0'), ({"dim": 16.5}, "dim=16.5 must be"),
    ({"dim": 10**400}, r"dim=1000.* must be"), ({"n_layers": 10**6}, "holds 39 tensors, .* tells of 1000000 layers"),
    ({"ffn_dim_multiplier": [1]}, r"ffn_dim_multiplier=\[1\] must be"),
    ({"rope_theta": float("inf")}, "rope_theta=Inf"),
    ({"norm_eps": True}, "norm_eps=true must be a number above 0"),
    ({"vocab_size": 300}, r"tok_embeddings.weight has the shape \[259, 16\]")])
def test_params_that_do_not_fit_the_tensors(whole, tmp_path, fields, message):
    folder = shutil.copytree(whole, tmp_path / "copy")
    known = json.loads((folder / meta.PARAMS).read_text())
    (folder / meta.PARAMS).write_text(json.dumps({**known, **fields}))
    with pytest.raises(ValueError, match=message):
        reads(folder)


def test_a_tensor_of_another_name(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    (folder / meta.SAFETENSORS).unlink()
    tensors, _ = contents(folder)
    with PthWriter(folder / meta.PTH) as writer:
        for name, tensor in tensors.items():
            writer.write(name.replace("extra_heads.0.attention.wq", "extra_heads.0.attention.wqq"), tensor)
    with pytest.raises(ValueError, match="lacks extra_heads.0.attention.wq.weight. Did you .*attention.wqq.weight"):
        reads(folder)


def test_a_vocabulary_that_params_leave_to_the_tokenizer(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    known = json.loads((folder / meta.PARAMS).read_text())
    (folder / meta.PARAMS).write_text(json.dumps({**known, "vocab_size": -1}))
    assert reads(folder).config.vocab_size == 259


def test_folders_that_are_not_whole(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    (folder / meta.PARAMS).unlink()
    with pytest.raises(ValueError, match="params.json does not exist: it says the model's shape"):
        reads(folder)
    shutil.copy(whole / meta.PARAMS, folder)
    data = (folder / meta.SAFETENSORS).read_bytes()
    (folder / meta.SAFETENSORS).write_bytes(data[:-10])
    with pytest.raises(ValueError, match="cut off or damaged"):
        reads(folder)
    (folder / meta.SAFETENSORS).unlink()
    data = (folder / meta.PTH).read_bytes()
    (folder / meta.PTH).write_bytes(data[:-100])
    with pytest.raises(ValueError, match=rf"consolidated.pth \({len(data) - 100} bytes\) is no zip archive.*cut off"):
        reads(folder)
    (folder / meta.PTH).rename(folder / "consolidated.00.pth")
    (folder / "consolidated.01.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="cut in parts for several devices"):
        reads(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(ValueError, match="has neither consolidated.pth nor consolidated.safetensors"):
        reads(folder)


def test_numbers_that_are_none(tmp_path):
    arrays = make_arrays(config_of(2))
    arrays["heads/mlp/up"][1, 3, 2] = np.nan
    with pytest.raises(ValueError, match=r"heads/mlp/up\[1\] holds 1 numbers that are NaN"):
        meta.write(make_model(config_of(2), arrays), tmp_path, options("src", tmp_path, "meta"))
    folder = written(tmp_path / "meta", config_of(2))
    tensors = open_file(folder / meta.SAFETENSORS)
    path, offset = tensors.places["extra_heads.0.feed_forward.w3.weight"]
    with open(path, "r+b") as handle:
        handle.seek(offset)
        handle.write(np.float32(np.inf).tobytes())
    with pytest.raises(ValueError, match="extra_heads.0.feed_forward.w3.weight holds 1 numbers that are NaN or infin"):
        read_all(reads(folder))
