"""Parquet: every row once by row groups, the one column that is read, and files that will not do."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus, sources
from mtp_jax.data.reading import Skipped
from mtp_jax.data.sources import parquet


@pytest.fixture
def records(excerpts):
    """Twelve records of two strings."""
    return [json.loads(line) for line in (excerpts / "gsm8k.jsonl").read_text().splitlines()]


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes columns into a file and returns its path."""
    def write(name="a.parquet", row_group_size=None, **columns):
        pq.write_table(pa.table(columns), tmp_path / name, row_group_size=row_group_size)
        return str(tmp_path / name)

    return write


def column(records, name="question"):
    return [record[name] for record in records]


def test_real_text_in_row_groups(write, records, read_all, tmp_path):
    path = write(row_group_size=5, question=column(records), answer=column(records, "answer"))
    for where in (path, str(tmp_path), f"{tmp_path}/*.parquet"):
        texts = read_all(source="parquet", path=where, field="question")
        assert texts == {f"a.parquet@{i}": text.encode() for i, text in enumerate(column(records))}
    config = DataConfig(source="parquet", path=path, field="answer", seq_len=32, batch_size=1, validation_fraction=0.25)
    assert open_corpus(config).parts["parquet"].num_groups == {"train": 9, "validation": 3}


@pytest.mark.parametrize("piece_bytes, expected", [(1, [0, 5, 10]), (3500, [0, 10]), (10**9, None)])
def test_pieces_are_whole_row_groups(write, records, monkeypatch, piece_bytes, expected):
    path = write(row_group_size=5, question=column(records), answer=column(records, "answer"))
    monkeypatch.setattr(parquet, "PIECE_BYTES", piece_bytes)
    pieces = sources.find(DataConfig(source="parquet", path=path, field="question"))
    names = [f"a.parquet@{row:015d}" for row in expected] if expected else ["a.parquet"]
    assert [piece.name for piece in pieces] == names
    documents = [document for piece in pickle.loads(pickle.dumps(pieces)) for document in piece.documents()]
    assert [document.name for document in documents] == [f"a.parquet@{i}" for i in range(12)]
    assert [document.read().decode() for document in documents] == column(records)
    metadata = pq.ParquetFile(path).metadata
    sizes = [metadata.row_group(i).column(0).total_compressed_size for i in range(3)]
    assert sum(piece.size for piece in pieces) == sum(sizes)  # of the column, not of the file


def test_other_columns_stay_unread(write, records, read_all):
    path = write(question=column(records), answer=column(records, "answer"))
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    with open(path, "r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(b"\xff" * chunk.total_compressed_size)
    assert len(read_all(source="parquet", path=path, field="question")) == 12
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file, cut short, or damaged \(.*\): fetch it"):
        read_all(source="parquet", path=path, field="answer")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
                                  pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_types_and_nulls(write, read_all, kind):
    skipped = Skipped()
    values = pa.array(["one", None, "zwölf", "", "one"], pa.string())
    path = write(text=values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind))
    assert list(read_all(skipped, source="parquet", path=path).values()) == [b"one", "zwölf".encode(), b"one"]
    assert str(skipped) == "1 empty skipped (such as a.parquet@3), 1 without a text skipped (such as a.parquet@1)"


def test_columns_inside_others(write, read_all):
    path = write(n=[1, 2, 3], a=[{"c": "no", "b": {"text": "one"}}, None, {"c": "no", "b": {"text": "two"}}],
                 b=["no"] * 3)
    skipped = Skipped()
    assert list(read_all(skipped, source="parquet", path=path, field="a.b.text").values()) == [b"one", b"two"]
    assert skipped.count == {"without a text": 1}


def test_columns_that_will_not_do(write):
    path = write(question=["a"], number=[1], meta=[{"title": "b", "tags": ["c"]}])
    for field, message in [
        ("questions", r"a\.parquet has no data\.field='questions', but 'question', 'number', 'meta\.title', "
                      r"'meta\.tags'\. Did you mean \"question\"\?"),
        ("number", "a.parquet has int64, no string, as data.field='number'"),
        ("meta.tags", r"a\.parquet has list<.*>, no string"),
        ("meta", r"has no data\.field='meta'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sources.find(DataConfig(source="parquet", path=path, field=field))


def test_text_that_is_no_utf8(write, read_all):
    path = write(text=pa.array([b"good", b"caf\xe9"], pa.binary()))
    assert list(read_all(source="parquet", path=path).values()) == [b"good", b"caf\xe9"]
    with pytest.raises(ValueError, match=r"a\.parquet@1 is no UTF-8 at byte 3 \(0xe9\): convert it"):
        read_all(source="parquet", path=path, takes_bytes=False)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_files_that_are_cut_short(write, records, keep):
    path = write(question=column(records))
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(data[:int(keep * len(data))])
    with pytest.raises(ValueError, match=r"data\.path='.*': a\.parquet is no Parquet file, cut short, or damaged "):
        open_corpus(DataConfig(source="parquet", path=path, field="question"))


def test_a_bucket(write, records, bucket, read_all):
    with open(write(row_group_size=5, question=column(records)), "rb") as file:
        bucket.pipe("gs://mine/data/part-0.parquet", file.read())
    texts = read_all(source="parquet", path="gs://mine/data", field="question")
    assert [text.decode() for text in texts.values()] == column(records)


def test_more_rows_than_are_read_at_a_time(write, read_all):
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(97, 123, 8).astype(np.uint8)).decode() for _ in range(3 * parquet.ROWS + 7)]
    found = read_all(source="parquet", path=write(text=texts, row_group_size=parquet.ROWS + 3))
    assert found == {f"a.parquet@{i}": text.encode() for i, text in enumerate(texts)}
