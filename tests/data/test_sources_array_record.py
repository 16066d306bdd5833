"""ArrayRecord: records of text and of token ids, copies of files in a bucket, and files that will not do."""

import dataclasses
import logging
import pickle
import resource

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus, sources
from mtp_jax.data.reading import Skipped
from mtp_jax.data.sources import array_record, local_copy


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes records into a file and returns its path."""
    def write(records, name="a.array_record"):
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return str(tmp_path / name)

    return write


@pytest.fixture
def speeches(excerpts):
    """The speeches of a real text."""
    return (excerpts / "shakespeare.txt").read_bytes().split(b"\n\n")


def test_real_text(write, speeches, read_all, tmp_path):
    path = write(speeches)
    write(speeches[:3], "other.arrayrecord")
    texts = {f"a.array_record@{i}": text for i, text in enumerate(speeches)}
    assert read_all(source="array_record", path=path) == texts and len(texts) > 5
    assert len(read_all(source="array_record", path=str(tmp_path))) == len(texts) + 3
    config = DataConfig(source="array_record", path=path, seq_len=32, batch_size=1, validation_fraction=0.25)
    assert sum(open_corpus(config).parts["array_record"].num_groups.values()) == len(texts)


def test_pieces_of_any_size(write, speeches, monkeypatch):
    path = write(speeches * 10)
    config = DataConfig(source="array_record", path=path)
    monkeypatch.setattr(array_record, "RECORDS", 7)
    for piece_bytes in (1, 10_000, 10**9):
        monkeypatch.setattr(array_record, "PIECE_BYTES", piece_bytes)
        pieces = sources.find(config)
        names = [piece.name for piece in pieces]
        assert names == sorted(set(names)) and 1 <= len(pieces) <= 10 * len(speeches)
        assert (len(pieces) == 1) == (piece_bytes == 10**9)
        documents = [document for piece in pickle.loads(pickle.dumps(pieces)) for document in piece.documents()]
        assert [document.read() for document in documents] == speeches * 10
        assert [document.name for document in documents] == [f"a.array_record@{i}" for i in range(10 * len(speeches))]


@pytest.mark.parametrize("kind", ["uint16", "uint32", "int32", "int64"])
def test_token_ids(write, kind):
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 259, n) for n in (5, 17, 1, *range(300, 600))]  # more than are tokenized at a time
    path = write([part.astype(np.dtype(kind).newbyteorder("<")).tobytes() for part in ids] + [b""])
    corpus = open_corpus(DataConfig(source="array_record", path=path, field=kind, seq_len=16, batch_size=1))
    found = {}
    for rows in corpus.parts["array_record"].rows.values():
        for start, stop in zip(rows.bounds[:-1], rows.bounds[1:]):
            found[int(stop - start) - 2] = rows.tokens[start + 1:stop - 1]
    assert sorted(found) == sorted(len(part) for part in ids)
    assert all(np.array_equal(found[len(part)], part) for part in ids)
    assert "1 empty skipped (such as a.array_record@303)" in corpus.summary()


@pytest.mark.parametrize("ids, said", [([5, 259, 3], "the id 259 at place 1"), ([5, 6, -1], "the id -1 at place 2"),
                                       ([70_000], "the id 70000 at place 0")])
def test_ids_that_the_tokenizer_has_not(write, ids, said):
    path = write([np.array(part, "<i4").tobytes() for part in ([1, 2], [258, 0], ids)])
    with pytest.raises(ValueError, match=rf"record a\.array_record@2 holds {said}, but data\.tokenizer='bytes' has "
                                         "259 ids, from 0: set data.tokenizer to that which made the ids"):
        open_corpus(DataConfig(source="array_record", path=path, field="int32"))


def test_ids_where_text_is_needed(write, read_all):
    path = write([np.arange(5, dtype="<i4").tobytes()])
    with pytest.raises(ValueError, match="holds token ids, but text is needed here"):
        read_all(source="array_record", path=path, field="int32", vocab_size=None)


def test_duplicates_of_ids(write, read_all):
    skipped = Skipped()
    path = write([np.array(part, "<u2").tobytes() for part in ([1, 2], [3], [1, 2])])
    found = read_all(skipped, source="array_record", path=path, field="uint16", drop_duplicates=True)
    assert [part.tolist() for part in found.values()] == [[1, 2], [3]]
    assert str(skipped) == "1 duplicate skipped (such as a.array_record@2)"


@pytest.mark.parametrize("sizes", [dict(min_bytes=3), dict(max_bytes=3)])
def test_sizes_of_text_are_none_of_ids(write, sizes):
    path = write([b"12345678"] * 2)
    with pytest.raises(ValueError, match=r"data\.min_bytes=\d and data\.max_bytes=\d are sizes of text.*set both to 0"):
        open_corpus(DataConfig(source="array_record", path=path, field="int32", **sizes))


def test_fields_and_records_that_will_not_do(write):
    config = DataConfig(source="array_record", path=write([b"\0" * 8, b"\0" * 7]), field="uint23")
    with pytest.raises(ValueError, match=r"data\.field='uint23' is not one of .*'int32'.*Did you mean \"uint32\"\?"):
        open_corpus(config)
    with pytest.raises(ValueError, match=r"record 1, has 7 bytes, no whole number of data\.field='uint16'"):
        open_corpus(dataclasses.replace(config, field="uint16"))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 0.95])
def test_files_that_are_cut_short(write, speeches, keep):
    path = write([b"".join(np.random.default_rng(i).bytes(1000) for i in range(100)), *speeches])
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(data[:int(keep * len(data))])
    with pytest.raises(ValueError, match=r"a\.array_record is no ArrayRecord file, cut short, or damaged \(.+\)"):
        open_corpus(DataConfig(source="array_record", path=path))


def test_a_file_with_a_damaged_block(write, read_all):
    path = write([np.random.default_rng(i).bytes(1000) for i in range(300)])
    with open(path, "r+b") as file:
        file.seek(100_000)
        file.write(b"\xff" * 1000)
    with pytest.raises(ValueError, match=r"a\.array_record is no ArrayRecord file, cut short, or damaged \(.+\)"):
        read_all(source="array_record", path=path)


def test_a_file_without_records(write):
    with pytest.raises(ValueError, match=r"holds no document longer than one token \(0 documents"):
        open_corpus(DataConfig(source="array_record", path=write([])))


def test_ids_that_are_read_as_text(write):
    path = write([np.arange(9, dtype="<u2").tobytes()] * 3)
    with pytest.raises(ValueError, match="3 binary skipped .*or set data.field to the type of its records' ids"):
        open_corpus(DataConfig(source="array_record", path=path))


@pytest.fixture
def cache(tmp_path, monkeypatch, caplog):
    """The empty folder of copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    return tmp_path / "cache" / "mtp_jax" / "data"


def test_files_of_a_bucket_are_copied_once(write, speeches, bucket, read_all, cache, caplog):
    with open(write(speeches), "rb") as file:
        data = file.read()
    bucket.pipe("gs://mine/data/a.array_record", data)
    config = dict(source="array_record", path="gs://mine/data")
    (piece,) = sources.find(DataConfig(**config))
    assert piece.size == len(data) and not cache.exists()  # listing copies nothing
    for _ in range(2):
        assert list(read_all(**config).values()) == speeches
    (copy,) = [path for path in cache.rglob("*") if path.is_file()]
    assert copy.name == "a.array_record" and copy.read_bytes() == data
    assert caplog.text.count("Copying gs://mine/data/a.array_record") == 1
    with open(write(speeches[:2]), "rb") as file:
        bucket.pipe("gs://mine/data/a.array_record", file.read() + b"\0" * 65536)
    with pytest.raises(ValueError, match="a.array_record is no ArrayRecord file"):  # copied anew, for its size differs
        read_all(**config)


def test_local_files_are_not_copied(write, speeches, cache):
    path = write(speeches)
    assert str(local_copy(path)) == path and not cache.exists()


def test_a_disk_that_is_full(bucket, cache, read_all):
    bucket.pipe("gs://mine/a.array_record", b"x" * 100_000)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(ValueError, match=r"cannot be copied to .*mtp_jax.data \(File too large\): free some"):
            read_all(source="array_record", path="gs://mine")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_copy_that_breaks_off(bucket, cache, read_all, monkeypatch):
    bucket.pipe("gs://mine/a.array_record", b"x" * 100)
    info = type(bucket).info
    monkeypatch.setattr(type(bucket), "info", lambda self, path, **_: {**info(self, path), "size": 101})
    with pytest.raises(ValueError, match="gs://mine/a.array_record has 101 bytes, but 100 came: start again"):
        read_all(source="array_record", path="gs://mine")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_take_a_copy(bucket, tmp_path, monkeypatch, read_all):
    (tmp_path / "full").write_text("a file, where a folder is needed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    bucket.pipe("gs://mine/a.array_record", b"x")
    with pytest.raises(ValueError, match=r"gs://mine/a\.array_record cannot be copied to .*full.*set XDG_CACHE_HOME"):
        read_all(source="array_record", path="gs://mine")
