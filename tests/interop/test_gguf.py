"""llama.cpp runs what we write: its logits and its text are ours, and it splits text as we do.

Needs llama-cpp-python beside what `make test-interop` needs; building it from source takes tens of minutes.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mtp_jax.checkpoints import structure
from mtp_jax.convert import gguf, head_one
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.data.tokenizer_files import HuggingFaceTokenizer
from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.model import ModelSpec
from tests.convert import test_gguf as made
from tests.convert.models import make_arrays, make_config, make_model, options
from tests.decoding.models import BYTES, trained_model

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = [pytest.mark.interop, pytest.mark.slow]
TEXTS = ["def main(", "  two  spaces\n\n\n\ttabs\t\t x  \n", "naïve café — “quotes” … 日本語テキスト 한국어 العربية",
         "👩‍👩‍👧‍👦🏳️‍🌈 x", "don't we'll I'M they'RE 12345678 3.14e-10", "a\r\nb\r\n\r\n  c", "<|bos|> <|eos|> <s></s>",
         "\u00a0nbsp\u3000wide\u200bzero", "\x01\x7f ctrl", " lead", "trail   ", "x" * 300 + " " * 50 + "y"]


def opened(folder, model, **fields):
    """Returns a model in llama.cpp, which keeps keys and values in fp32."""
    folder.mkdir()
    gguf.write(model, folder, options("run", folder, "gguf", **fields))
    return llama_cpp.Llama(str(folder / gguf.FILE), n_ctx=256, type_k=0, type_v=0, logits_all=True, verbose=False)


def their_logits(llama, ids):
    """Returns llama.cpp's logits after each token."""
    llama.reset()
    llama.eval(list(map(int, ids)))
    return np.array(llama.scores[:len(ids)])


def error(config, arrays, llama):
    """Returns how far llama.cpp's logits are from ours, relative to the largest."""
    spec = ModelSpec.create(config)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, 48).astype(np.int32)
    model = spec.bind(jax.tree.map(jax.numpy.asarray, structure.nest(arrays)))
    h_NxBxLxD = model(ids[None], np.ones((1, 48), np.int32), np.arange(48, dtype=np.int32)[None])
    ours = np.asarray(model.logits(h_NxBxLxD)[0, 0, :, :config.vocab_size])
    return np.abs(their_logits(llama, ids) - ours).max() / np.abs(ours).max()


SHAPE = dict(d_model=64, d_ff=96, head_dim=32, rope_theta=1000.0)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("kind", head_one.HEAD_KINDS)
def test_logits(tmp_path, kind, tie):
    """Of every head kind, with grouped KV heads and a head wider than D / A."""
    config = make_config(head_kind=kind, tie_embedding=tie, unembedding="shared", **SHAPE)
    arrays = make_arrays(config)
    assert error(config, arrays, opened(tmp_path / "x", make_model(config, arrays))) < 1e-4


def test_dtypes(tmp_path):
    """Rounded numbers give near logits; llama.cpp also rounds activations before it multiplies by q8_0."""
    config = make_config(**SHAPE)
    arrays = {path: array if path.endswith("scale") else 0.5 * array for path, array in make_arrays(config).items()}
    for dtype, tolerance in {"float16": 5e-3, "bfloat16": 5e-2, "q8_0": 5e-2}.items():
        llama = opened(tmp_path / dtype, make_model(config, arrays), dtype=dtype)
        assert 1e-6 < error(config, arrays, llama) < tolerance, dtype


def test_replicated_unembedding(tmp_path):
    """Head 1's own."""
    config = make_config(unembedding="replicated", **SHAPE)
    arrays = make_arrays(config)
    assert error(config, arrays, opened(tmp_path / "x", make_model(config, arrays))) < 1e-4


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
def test_rotary_scaling(tmp_path, scaling):
    """Angles of a stretched context; without the scaling, the logits are others."""
    config = make_config(**SHAPE, rope_scaling=scaling, rope_factor=4.0, rope_original_window=32)
    arrays = make_arrays(config)
    llama = opened(tmp_path / "x", make_model(config, arrays))
    assert error(config, arrays, llama) < 1e-4
    assert error(dataclasses.replace(config, rope_scaling="none", rope_factor=1.0), arrays, llama) > 1e-2


@pytest.mark.parametrize("wrong", ["pairing", "layer"])
def test_a_wrong_table_is_seen(tmp_path, monkeypatch, wrong):
    """Rotary pairs as halves, or head 2 in place of head 1."""
    config, right = make_config(**SHAPE), head_one.layers
    arrays = make_arrays(config)
    if wrong == "pairing":
        plain = functools.partial(head_one.entries, make_config(**SHAPE), gguf.NAMES, embedding="token_embd.weight",
                                  layer="blk.{}.", norm="output_norm.weight", unembedding="output.weight")
        monkeypatch.setattr(gguf, "table", lambda config: plain(interleaved=False))
    else:
        monkeypatch.setattr(head_one, "layers", lambda config: [*right(config)[:-1], ("heads", 1)])
    assert error(config, arrays, opened(tmp_path / "x", make_model(config, arrays))) > 1e-2


def test_text(tmp_path):
    """64 greedy tokens of a trained byte model are those that our own decoding writes."""
    spec, params, _ = trained_model(dtype="float32")
    arrays = {name: np.asarray(leaf) for name, leaf in structure.flatten(params).items()}
    llama = opened(tmp_path / "x", make_model(dataclasses.replace(spec.config, **BYTES), arrays))
    model = DecodingModel.from_params(spec, params, tokenizer=ByteTokenizer(), window=256)
    for prompt in ("self", "return not ", "for i in ", "import"):
        ids = [256, *ByteTokenizer().encode(prompt).tolist()]
        assert llama.tokenize(prompt.encode(), add_bos=True, special=False) == ids
        new = []
        while len(new) < 64:
            new.append(int(their_logits(llama, ids + new)[-1].argmax()))
        assert new == generate(model, [ids], max_new_tokens=64, stop=[]).tokens[0].tolist()


@pytest.mark.parametrize("split", ["bytes", "gpt-2", "llama-bpe", "dbrx", "qwen2"])
def test_ids_of_text(tmp_path, split):
    """llama.cpp gives a text the ids that we give it."""
    if split == "bytes":
        model = make_model(make_config())
    else:
        model = with_merges(split)
    llama = opened(tmp_path / "x", model)
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == model.tokenizer.encode(text).tolist()


def with_merges(split):
    """Returns a model with a byte-level BPE of a few hundred merges that splits text so."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    pattern, whole = next(key for key, name in gguf.gguf_tokenizer.SPLITS.items() if name == split)
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if split == "gpt-2" else (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(
        vocab_size=600, min_frequency=2, special_tokens=["<|bos|>", "<|eos|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    data = tokenizer.to_str().encode()
    model = make_model(make_config(vocab_size=tokenizer.get_vocab_size()))
    return dataclasses.replace(model, tokenizer=HuggingFaceTokenizer(data), tokenizer_files={"tokenizer.json": data})


def test_ids_of_text_by_sentencepiece(tmp_path):
    """Likewise for a model of Llama's kind."""
    model = made.with_pieces(made.sentencepiece_model(tmp_path))
    llama = opened(tmp_path / "x", model)
    for text in ("the cat sat", "  two  spaces\n\n\ttab", "naïve 日本 👩‍👩‍👧", "while the dog ran to the mat   "):
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == model.tokenizer.encode(text).tolist()
