"""JSONL: every line once whatever the pieces, in every compression; and what is said of lines that will not do."""

import bz2
import gzip
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus
from mtp_jax.data.reading import Skipped
from mtp_jax.data.sources import jsonl
from mtp_jax.data.sources.paths import File

COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress,
            ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}


def write(folder, *lines, name="a.jsonl"):
    """Writes lines, of bytes or of what JSON can say, and returns the path of the file."""
    path = folder / name
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return str(path)


def questions(excerpts):
    lines = (excerpts / "gsm8k.jsonl").read_text().splitlines()
    return [json.loads(line)["question"].encode() for line in lines]


def test_a_real_file(excerpts, read_all):
    texts = read_all(source="jsonl", path=str(excerpts / "gsm8k.jsonl"), field="question")
    assert list(texts.values()) == questions(excerpts) and len(texts) == 12
    assert list(texts)[:2] == ["gsm8k.jsonl@0", f"gsm8k.jsonl@{(excerpts / 'gsm8k.jsonl').read_bytes().index(10) + 1}"]


def test_a_real_compressed_file(excerpts, read_all):
    path = excerpts / "humaneval.jsonl.gz"
    texts = read_all(source="jsonl", path=str(path), field="prompt")
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert list(texts.values()) == [json.loads(line)["prompt"].encode() for line in lines] and len(texts) == 8
    assert list(texts)[1] == f"humaneval.jsonl.gz@{len(lines[0]) + 1}"


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json"])
def test_endings_and_compressions(excerpts, tmp_path, read_all, kind, ending):
    data = (excerpts / "gsm8k.jsonl").read_bytes()
    name = f"some.{kind}{ending}"
    (tmp_path / name).write_bytes(COMPRESS[ending](data))
    (tmp_path / "LICENSE").write_text("not JSON")
    for path in (tmp_path, tmp_path / name, tmp_path / "some.*"):
        texts = read_all(source="jsonl", path=str(path), field="question")
        assert list(texts.values()) == questions(excerpts)
        assert all(text.startswith(f"{name}@") for text in texts)


def test_files_of_several_members(excerpts, tmp_path, read_all):
    head, tail = (excerpts / "gsm8k.jsonl").read_bytes()[:1000], (excerpts / "gsm8k.jsonl").read_bytes()[1000:]
    for ending in (".gz", ".bz2", ".zst"):
        (tmp_path / f"a.jsonl{ending}").write_bytes(COMPRESS[ending](head) + COMPRESS[ending](tail))
        texts = read_all(source="jsonl", path=str(tmp_path / f"a.jsonl{ending}"), field="question")
        assert list(texts.values()) == questions(excerpts)


def test_a_bucket_is_cut_as_well(excerpts, bucket, read_all, monkeypatch):
    bucket.pipe("gs://mine/gsm8k.jsonl", (excerpts / "gsm8k.jsonl").read_bytes())
    bucket.pipe("gs://mine/gsm8k.jsonl.zst", COMPRESS[".zst"]((excerpts / "gsm8k.jsonl").read_bytes()))
    monkeypatch.setattr(jsonl, "PIECE_BYTES", 500)
    assert len(jsonl.jsonl(DataConfig(source="jsonl", path="gs://mine"))) == 16
    texts = read_all(source="jsonl", path="gs://mine", field="question")
    assert list(texts.values()) == questions(excerpts) * 2


def test_each_line_can_be_held_out_by_itself(excerpts):
    config = DataConfig(source="jsonl", path=str(excerpts / "gsm8k.jsonl"), field="question", validation_fraction=0.25,
                        seq_len=64, batch_size=1)
    corpus = open_corpus(config)
    assert corpus.parts["jsonl"].num_groups == {"train": 9, "validation": 3}
    assert "gsm8k.jsonl: 12 documents (9 to train on, 3 held out), 3,124 tokens" in corpus.summary()


text_lines = st.lists(st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.sampled_from(["", "é\u2028x", "😀" * 5, "x" * 60])), max_size=12)


@settings(max_examples=150, deadline=None)
@given(texts=text_lines, ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\r\n"]), min_size=12),
       last=st.sampled_from([b"", b"\n", b"\r\n"]), size=st.integers(1, 200), plain=st.booleans())
@example(texts=["a", "b"], ends=[b"\n"] * 12, last=b"", size=14, plain=True)  # {"text": "a"}\n has 14 bytes
@example(texts=["a", "b"], ends=[b"\n"] * 12, last=b"\n", size=13, plain=True)
def test_pieces_of_any_size_yield_each_line_once(tmp_path_factory, texts, ends, last, size, plain):
    lines = [json.dumps({"text": text}, ensure_ascii=not plain).encode() for text in texts]
    data = b"".join(line + end for line, end in zip(lines, ends))
    if lines:
        data = data[:len(data) - len(ends[len(lines) - 1])] + last
    path = tmp_path_factory.getbasetemp() / "property.jsonl"
    path.write_bytes(data)
    config = DataConfig(source="jsonl", path=str(path))
    pieces = list(jsonl.cut(File("p.jsonl", str(path), len(data)), config, size))
    assert [piece.name for piece in pieces] == sorted({piece.name for piece in pieces})
    assert sum(piece.size for piece in pieces) == len(data) and all(piece.size <= size for piece in pieces)
    documents = [document for piece in pickle.loads(pickle.dumps(pieces)) for document in piece.documents()]
    assert [document.read() for document in documents] == [text.encode() for text in texts]
    for document, line in zip(documents, lines):
        offset = int(document.name.removeprefix("p.jsonl@"))
        assert data[offset:offset + len(line)] == line and document.group == document.name


def test_fields_inside_others_and_null(tmp_path, read_all):
    path = write(tmp_path, {"a": {"b": "one"}}, {"a.b": "two", "a": {"b": "three"}}, {"a": {"b": None}},
                 {"a": {"b": ""}})
    skipped = Skipped()
    assert list(read_all(skipped, source="jsonl", path=path, field="a.b").values()) == [b"one", b"two"]
    assert str(skipped) == "1 empty skipped (such as a.jsonl@75), 1 without a text skipped (such as a.jsonl@56)"


def test_a_byte_order_mark_is_no_text(tmp_path, read_all):
    path = write(tmp_path, b'\xef\xbb\xbf{"text": "one"}\n', {"text": "two"})
    assert list(read_all(source="jsonl", path=path, takes_bytes=False).values()) == [b"one", b"two"]


GOOD = {"text": "good"}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("lines, message", [
    ([GOOD, b"\n", b"{]\n"], r"a\.jsonl{}, line 3 is not JSON \(Expecting property name.*\): a line must hold "),
    ([GOOD, b'{"text": "cut sh'], r"line 2 is not JSON \(Unterminated string starting at: character 10\)"),
    ([b'{\n  "text": "x"\n}\n'], r"line 1 is not JSON .*`jq -c \.` makes lines of objects that span several"),
    ([b"[" * 100_000 + b"\n"], r"line 1 is not JSON \(maximum recursion"),
    ([[GOOD, GOOD]], r"line 1 holds a list: a line must hold one object.*`jq -c \"\.\[\]\"` makes lines"),
    ([GOOD, "text"], r"line 2 holds a string: a line must hold one object"),
    ([GOOD, {"txt": "a", "meta": {"title": "b"}}], r"a\.jsonl{}, line 2 has no data\.field='text', but 'txt', "
     r"'meta\.title'\. Did you mean \"txt\"\? Set data\.field to the one that holds the text, or "
     "leave this file out by a glob"),
    ([GOOD, {}], "line 2 has no data.field='text', but no field at all"),
    ([GOOD] * 3 + [{"text": 3}], "line 4 has a number, no string, as data.field='text'"),
    ([GOOD, {"text": ["a"]}], "line 2 has a list, no string"),
    ([GOOD, {"text": {"b": "a"}}], "line 2 has an object, no string"),
    ([GOOD, {"text": True}], "line 2 has a boolean, no string"),
])
def test_bad_lines_are_told_with_file_and_number(tmp_path, read_all, lines, message, ending):
    path = write(tmp_path, *lines)
    data = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / f"a.jsonl{ending}").write_bytes(COMPRESS[ending](data))
    with pytest.raises(ValueError, match=message.replace("{}", ending.replace(".", r"\."))):
        read_all(source="jsonl", path=path + ending)


def test_the_line_number_does_not_depend_on_the_pieces(tmp_path, read_all, monkeypatch):
    path = write(tmp_path, *[GOOD, b"\r\n"] * 50, b"no\n", *[GOOD] * 50)
    for size in (10, 33, 10_000):
        monkeypatch.setattr(jsonl, "PIECE_BYTES", size)
        with pytest.raises(ValueError, match="line 101 is not JSON"):
            read_all(source="jsonl", path=path)


def test_invalid_utf8(tmp_path, read_all):
    line = b'{"text": "caf\xe9"}\n'
    path = write(tmp_path, GOOD, line, GOOD)
    config = dict(source="jsonl", path=path)
    assert list(read_all(**config).values()) == [b"good", b"caf\xe9", b"good"]  # bytes are fine
    with pytest.raises(ValueError, match=r"a\.jsonl is no UTF-8 at byte 30 \(0xe9\): convert it.*data\.skip_invalid="
                                         "True.*data.tokenizer=bytes"):
        read_all(**config, takes_bytes=False)
    assert (tmp_path / "a.jsonl").read_bytes()[30] == 0xe9
    for takes_bytes in (False, True):
        skipped = Skipped()
        assert len(read_all(skipped, takes_bytes, **config, skip_invalid=True)) == 2
        assert str(skipped) == "1 not UTF-8 skipped (such as a.jsonl@17)"


def test_invalid_utf8_where_no_text_can_be_found(tmp_path, read_all):
    path = write(tmp_path, '{"text": "wide"}\n'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"a\.jsonl is no UTF-8 at byte 0 \(0xff\): convert it, leave its "
                                         r"file out by data\.path, "):
        read_all(source="jsonl", path=path)


def test_half_a_surrogate_pair(tmp_path, read_all):
    path = write(tmp_path, GOOD, b'{"text": "smile \\ud83d\\ude00, half \\ud83d!"}\n')
    for takes_bytes in (False, True):
        with pytest.raises(ValueError, match=r"line 2 holds \\ud83d at character 14 of data\.field='text', half a "
                                             r"surrogate pair.*data\.skip_invalid=True to skip such documents\.$"):
            read_all(None, takes_bytes, source="jsonl", path=path)
    assert list(read_all(source="jsonl", path=path, skip_invalid=True).values()) == [b"good"]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_compressed_files_that_are_cut_short_or_damaged(excerpts, tmp_path, read_all, ending):
    rng = np.random.default_rng(0)
    data = COMPRESS[ending]((excerpts / "gsm8k.jsonl").read_bytes())
    noise = data[:len(data) // 2] + rng.bytes(len(data) - len(data) // 2)
    for broken in (data[:-20], noise, b"plain text\n"):
        (tmp_path / f"a.jsonl{ending}").write_bytes(broken)
        with pytest.raises(ValueError, match=rf"a\.jsonl\{ending} is cut short, damaged, or not compressed.*fetch it "):
            read_all(source="jsonl", path=str(tmp_path), field="question")
