"""Tokenizers from files: what they encode, what they find in a file, and what they say of a bad one."""

import io
import json
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import DataConfig
from mtp_jax.data import build_tokenizer
from mtp_jax.data.tokenizer import ids_dtype
from mtp_jax.data.tokenizer_files import HuggingFaceTokenizer, SentencePieceTokenizer, text_of

TEXT = (pathlib.Path(__file__).parent / "test_tokenizer_files.py").read_text()
ROOT = pathlib.Path(__file__).parent.parent.parent


def bpe_json(special=("<|bos|>", "<|eos|>", "<|pad|>"), **fields):
    """Returns the object of a byte-level BPE's tokenizer.json of 400 ids, trained on this file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return json.loads(model.to_str()) | fields


def sp_model(**settings):
    """Returns a SentencePiece model of 400 pieces, bytes among them, that keeps whitespace, trained on this file."""
    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(TEXT.splitlines()), model_writer=file, **{
        "vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": False, "minloglevel": 2} | settings)
    return file.getvalue()


BPE = bpe_json()
SP = sp_model()


@pytest.fixture
def read(tmp_path):
    """Returns a function that writes files and reads the tokenizer of the first one."""
    def read(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return build_tokenizer(DataConfig(tokenizer=str(tmp_path / next(iter(files)))))

    return read


@pytest.fixture(params=["bpe", "sentencepiece"])
def tokenizer(request):
    return HuggingFaceTokenizer(json.dumps(BPE).encode()) if request.param == "bpe" else SentencePieceTokenizer(SP)


# What both kinds do.

def test_a_path_gives_the_tokenizer_of_its_kind(read, tmp_path):
    bpe, sp = read({"a/tokenizer.json": BPE}), read({"b/x.model": SP})
    assert isinstance(bpe, HuggingFaceTokenizer) and isinstance(sp, SentencePieceTokenizer)
    assert (bpe.bos_id, bpe.eos_id, bpe.pad_id, bpe.vocab_size) == (0, 1, 2, 400)
    assert (sp.bos_id, sp.eos_id, sp.pad_id, sp.vocab_size) == (1, 2, 2, 400)  # no pad of its own: EOS
    assert build_tokenizer(DataConfig(tokenizer=str(tmp_path / "a"))).hash == bpe.hash  # the folder does as well


def test_decode_inverts_encode_for_any_text():
    bpe, sp = HuggingFaceTokenizer(json.dumps(BPE).encode()), SentencePieceTokenizer(SP)

    @given(st.text())
    def check(text):
        assert bpe.decode(bpe.encode(text)) == text
        if "\0" not in text and "\u2581" not in text:  # SentencePiece writes a space as U+2581
            assert sp.decode(sp.encode(text)) == text

    check()


def test_bytes_text_and_batches_have_the_same_ids(tokenizer):
    texts = [TEXT[:500], "", "é漢\n  x", " a", "a"]
    one_by_one = [tokenizer.encode(text).tolist() for text in texts]
    assert [tokenizer.encode(text.encode()).tolist() for text in texts] == one_by_one
    batch = tokenizer.encode_batch([text.encode() for text in texts])
    assert [ids.tolist() for ids in batch] == one_by_one and one_by_one[1] == []
    assert {ids.dtype for ids in batch} == {tokenizer.encode("a").dtype, np.dtype(np.uint16)}
    assert tokenizer.encode_batch([]) == []


def test_batches_are_the_same_with_one_thread(tokenizer, monkeypatch):
    expected = [ids.tolist() for ids in tokenizer.encode_batch([TEXT.encode()] * 3)]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert [ids.tolist() for ids in tokenizer.encode_batch([TEXT.encode()] * 3)] == expected


def test_ids_fit_their_dtype():
    assert ids_dtype(2**16) is np.uint16 and ids_dtype(2**16 + 1) is np.uint32


@pytest.mark.parametrize("text", ["a<|eos|>b", "<|bos|><|pad|>", "</s> <s>", "<unk>"])
def test_the_text_of_a_special_token_is_text(tokenizer, text):
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert not special & set(tokenizer.encode(text).tolist())
    assert not special & set(tokenizer.encode_batch([text.encode()])[0].tolist())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_drops_special_ids_and_those_outside(tokenizer):
    ids = tokenizer.encode("x = 1").tolist()
    special = [tokenizer.bos_id, tokenizer.pad_id, -1, 400, 2**40]
    assert tokenizer.decode([*special, *ids, tokenizer.eos_id]) == "x = 1"
    assert tokenizer.decode(np.array([ids], np.int32)) == "x = 1" and tokenizer.decode([]) == ""


def test_broken_characters_decode_to_the_replacement(tokenizer):
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("\u9f8d")[:-1])  # three bytes


def test_pickled_tokenizers_are_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.hash == tokenizer.hash and copy.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert (copy.bos_id, copy.eos_id, copy.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)


@pytest.mark.parametrize("how", ["encode", "batch"])
def test_bytes_that_are_no_utf8_are_refused_with_their_offset(tokenizer, how):
    assert not tokenizer.takes_bytes
    with pytest.raises(ValueError, match=r"byte 3 \(0xff\).*data\.tokenizer='bytes'"):
        tokenizer.encode(b"abc\xffd") if how == "encode" else tokenizer.encode_batch([b"fine", b"abc\xffd"])
    assert text_of("é".encode()) == "é"


def test_a_long_line_takes_linear_time(tokenizer):
    def seconds(size):
        start = time.process_time()
        tokenizer.encode(line[:size])
        return time.process_time() - start

    line = (TEXT.replace("\n", " ") + "x" * 1000) * 100
    tokenizer.encode(line[:1000])
    assert len(line) > 1_000_000 and seconds(1_000_000) < 60 * seconds(50_000) + 0.5  # 20 if linear, 400 if quadratic


def test_the_hash_is_that_of_contents_and_special_ids(read):
    first, copy = read({"a/tokenizer.json": BPE}), read({"b/other.json": BPE})
    retold = read({"c/tokenizer.json": BPE, "c/tokenizer_config.json": {"eos_token": "<|bos|>"}})
    spaced = read({"d/tokenizer.json": json.dumps(BPE, indent=1).encode()})
    assert first.hash == copy.hash and len({first.hash, retold.hash, spaced.hash}) == 3
    assert len(first.hash) == 64 and read({"e/x.model": SP}).hash != first.hash


def test_building_bytes_needs_neither_library():
    code = ("import sys\nfrom mtp_jax.config import DataConfig\nfrom mtp_jax.data import build_tokenizer\n"
            "build_tokenizer(DataConfig())\nprint({'tokenizers', 'sentencepiece'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


# Hugging Face's files.

def test_truncation_padding_and_dropout_of_the_file_are_off(read):
    stored = BPE | {
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 2000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2,
                    "pad_type_id": 0, "pad_token": "<|pad|>"},
        "model": BPE["model"] | {"dropout": 0.9}}
    tokenizer, plain = read({"a/tokenizer.json": stored}), read({"b/tokenizer.json": BPE})
    assert tokenizer.encode(TEXT).tolist() == plain.encode(TEXT).tolist() and len(plain.encode(TEXT)) > 2000
    assert tokenizer.encode("ab").tolist() == plain.encode("ab").tolist()


def test_special_tokens_of_a_post_processor_are_not_added(read):
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
                                                         {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}}}
    assert 0 not in read({"tokenizer.json": BPE | {"post_processor": template}}).encode("hello").tolist()


def test_the_tokenizer_config_beside_names_the_special_tokens(read):
    special = ("<s>", "</s>", "<one>", "<two>")
    given = {"bos_token": "<one>", "eos_token": {"content": "<two>", "lstrip": False}, "pad_token": None}
    tokenizer = read({"tokenizer.json": bpe_json(special), "tokenizer_config.json": given})
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 3, 3)


def test_a_token_that_is_missing_is_another(read):
    only_eos = read({"a/tokenizer.json": bpe_json(["<|endoftext|>"])})  # GPT-2's file
    assert (only_eos.bos_id, only_eos.eos_id, only_eos.pad_id) == (0, 0, 0)
    only_bos = read({"b/tokenizer.json": bpe_json(["<unk>", "<bos>", "<pad>"])})
    assert (only_bos.bos_id, only_bos.eos_id, only_bos.pad_id) == (1, 1, 2)
    # what the config leaves out is left out, even where the vocabulary has a well-known name for it
    told = read({"c/tokenizer.json": bpe_json(["<s>", "</s>", "<pad>"]),
                 "c/tokenizer_config.json": {"bos_token": None, "eos_token": "</s>", "pad_token": "<not there>"}})
    assert (told.bos_id, told.eos_id, told.pad_id) == (1, 1, 1)


def test_a_token_of_the_model_itself_may_be_named(read):
    tokenizer = read({"tokenizer.json": bpe_json([]), "tokenizer_config.json": {"eos_token": "~"}})
    assert tokenizer.eos_id == tokenizer.encode("~")[0]  # its text is its id, then
    assert tokenizer.decode([*tokenizer.encode("x = 1"), tokenizer.eos_id]) == "x = 1"


def test_neither_bos_nor_eos_is_refused_with_the_remedy(read):
    with pytest.raises(ValueError, match=r"tokenizer\.json' has neither a BOS nor an EOS.*tokenizer_config\.json"):
        read({"tokenizer.json": bpe_json(["<unk>"])})


def test_an_ordinary_merge_is_no_special_token(read):
    stored = bpe_json(["<unk>"])
    stored["model"]["vocab"]["<s>"] = 400
    stored["model"]["vocab"]["<s"] = 401
    stored["model"]["merges"] += [["<", "s"], ["<s", ">"]]
    with pytest.raises(ValueError, match="neither a BOS nor an EOS"):
        read({"tokenizer.json": stored})


def test_a_special_token_that_the_file_does_not_call_special_is_text_too(read):
    stored = json.loads(json.dumps(BPE))
    stored["added_tokens"][1]["special"] = False
    tokenizer = read({"tokenizer.json": stored})
    assert tokenizer.eos_id == 1 and 1 not in tokenizer.encode("a<|eos|>b").tolist()
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a<|eos|>b").tolist() == tokenizer.encode("a<|eos|>b").tolist()


def test_ids_count_up_to_the_largest_with_holes_and_added_tokens(read):
    stored = json.loads(json.dumps(BPE))
    stored["added_tokens"].append(stored["added_tokens"][0] | {"id": 400, "content": "<more>", "special": False})
    tokenizer = read({"a/tokenizer.json": stored})
    assert tokenizer.vocab_size == 401 and tokenizer.encode("<more>").tolist() == [400]
    stored = json.loads(json.dumps(BPE))
    stored["model"]["vocab"]["~~"] = 70_000
    stored["model"]["merges"].append(["~", "~"])
    tokenizer = read({"b/tokenizer.json": stored})
    assert tokenizer.vocab_size == 70_001 and tokenizer.encode("~~").tolist() == [70_000]
    assert tokenizer.encode("~~").dtype == np.uint32 and tokenizer.encode_batch([b"~~"])[0].dtype == np.uint32


def test_ids_that_the_library_would_change_are_refused(read):
    stored = json.loads(json.dumps(BPE))
    stored["added_tokens"].append(stored["added_tokens"][0] | {"id": 70_000, "content": "<far>"})
    with pytest.raises(ValueError, match=r"'<far>' the id 70000.*as 400.*without a gap"):
        read({"tokenizer.json": stored})


@pytest.mark.parametrize("content, message", [
    (b"{", "is no tokenizer.json"), (b"", "is no tokenizer.json"), (b"\xff\x00", "is no tokenizer.json"),
    ({"bos_token": "<s>"}, "is no tokenizer.json.*train_tokenizer"), ([], "is no tokenizer.json"),
    (BPE | {"model": {"type": "Other"}}, "is no tokenizer.json")])
def test_a_bad_json_is_refused(read, content, message):
    with pytest.raises(ValueError, match=rf"data\.tokenizer='.*tokenizer\.json' {message}"):
        read({"tokenizer.json": content})


@pytest.mark.parametrize("content, message", [
    ({"eos_token": "<|eot|>"}, r"no token '<\|eot\|>'.*Did you mean \"<\|eos\|>\""),
    (b"{", "tokenizer_config.json beside it that cannot be read"), ([], "cannot be read"),
    ({"eos_token": 7}, "cannot be read"), ({"eos_token": {"text": "x"}}, "cannot be read")])
def test_a_bad_tokenizer_config_is_refused(read, content, message):
    with pytest.raises(ValueError, match=rf"data\.tokenizer='.*{message}"):
        read({"tokenizer.json": BPE, "tokenizer_config.json": content})


# SentencePiece's files.

def test_sentencepiece_without_bos_or_eos(read):
    no_bos = read({"a.model": sp_model(bos_id=-1, pad_id=3)})
    assert (no_bos.bos_id, no_bos.eos_id, no_bos.pad_id) == (no_bos.eos_id, no_bos.eos_id, 3)
    with pytest.raises(ValueError, match=r"b\.model' has neither a BOS nor an EOS.*eos_id"):
        read({"b.model": sp_model(bos_id=-1, eos_id=-1)})


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"IQ== 0\nIg== 1\n", SP[:-2000]])
def test_a_bad_model_is_refused(read, content):
    with pytest.raises(ValueError, match=r"data\.tokenizer='.*x\.model' is no SentencePiece model.*tokenizer\.json"):
        read({"x.model": content})


# Paths.

@pytest.mark.parametrize("name, message", [
    ("tokenizer.jsn", 'no file. Did you mean ".*tokenizer.json"'), ("tokeniser.json", 'exist. Did you mean ".*r.json"'),
    ("nowhere/x.model", "does not exist"), ("notes.txt", "end in .json and .model"),
    ("empty", "a folder with neither tokenizer.json nor tokenizer.model in it: name the file")])
def test_a_path_that_is_no_tokenizer_says_what_would_be(read, tmp_path, name, message):
    read({"tokenizer.json": BPE, "notes.txt": b"hello"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"data\.tokenizer='.*{name}' .*{message}"):
        build_tokenizer(DataConfig(tokenizer=str(tmp_path / name)))


def test_a_file_that_cannot_be_read_says_why(read, monkeypatch):
    from etils import epath

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(epath.Path(".")), "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"data\.tokenizer='.*' cannot be read \(Permission denied\): make it"):
        read({"tokenizer.json": BPE})


def test_a_bucket_whose_library_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match=r"data\.tokenizer='gs://bucket/tokenizer\.json' cannot be read \("):
        build_tokenizer(DataConfig(tokenizer="gs://bucket/tokenizer.json"))
