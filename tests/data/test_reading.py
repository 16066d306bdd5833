"""Filters, what is left out and counted, held-out paths, and errors of reading that name their place."""

import dataclasses
import pathlib
import pickle

import numpy as np
import pytest

from mtp_jax.config import DataConfig
from mtp_jax.data import Document, Piece, open_corpus, sources
from mtp_jax.data.reading import Skipped, find_pieces, held_out, read_corpus, read_piece


def contents(corpus, split):
    """Returns the texts of a split, sorted."""
    (part,) = corpus.parts.values()
    rows = part.rows[split]
    return sorted(bytes(rows.tokens[start + 1:stop - 1].astype(np.uint8))
                  for start, stop in zip(rows.bounds[:-1], rows.bounds[1:]))


@pytest.mark.parametrize("fields, kept, left_out", [
    (dict(), "abcde", ""),
    (dict(min_bytes=2), "bcde", "1 below data.min_bytes=2 skipped (such as a)"),
    (dict(max_bytes=3), "abc", "2 above data.max_bytes=3 skipped (such as d)"),
    (dict(min_bytes=2, max_bytes=2), "b", "3 above data.max_bytes=2"),
    (dict(extensions=("b", "d")), "bd", ""),
])
def test_sizes(write_folder, read_all, fields, kept, left_out):
    skipped = Skipped()
    path = write_folder({"a": "1", "b": "22", "c": "3é", "d": "4444", "e": "55555"})
    assert "".join(read_all(skipped, source="files", path=path, **fields)) == kept
    assert left_out in str(skipped) and bool(left_out) == bool(skipped.count)


def test_duplicates_the_first_in_reading_order_is_kept(write_folder, read_all):
    files = {f"{i:03d}.txt": f"text {i % 7}" for i in range(100)}
    path = write_folder({**files, "000.bin": "text 3\0"})
    assert len(read_all(source="files", path=path)) == 100
    for _ in range(3):  # threads read ahead; the order does not depend on them
        skipped = Skipped()
        assert list(read_all(skipped, source="files", path=path, drop_duplicates=True)) == sorted(files)[:7]
        assert str(skipped) == "1 binary skipped (such as 000.bin), 93 duplicate skipped (such as 007.txt)"


def test_duplicates_by_the_line(tmp_path, read_all):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two", "more": 1}\n{"text": "one", "more": 2}\n')
    texts = read_all(source="jsonl", path=str(tmp_path), drop_duplicates=True)
    assert texts == {"a.jsonl@0": b"one", "a.jsonl@16": b"two"}


def test_text_that_is_no_utf8(write_folder, read_all):
    path = write_folder({"good": "text", "latin": "ab\ncafé".encode("latin-1"), "wide": "ab".encode("utf-16-le")})
    config = dict(source="files", path=path)
    skipped = Skipped()
    assert set(read_all(skipped, **config)) == {"good", "latin"}  # bytes are fine
    assert str(skipped) == "1 binary skipped (such as wide)"
    with pytest.raises(ValueError, match=r"data\.path='.*': latin is no UTF-8 at byte 6 \(0xe9\): convert it, leave "
                                         r"its file out by data\.path or data\.extensions, set data\.skip_inv"):
        read_all(takes_bytes=False, **config)
    for takes_bytes in (False, True):
        skipped = Skipped()
        assert set(read_all(skipped, takes_bytes, skip_invalid=True, **config)) == {"good"}
        assert skipped.count == {"binary": 1, "not UTF-8": 1}


def test_nothing_is_left_by_the_filters(write_folder):
    path = write_folder({"a": "1", "b": "22", "c": "4444", "d": "55555", "e": "", "f": "\0", "g": b"\xff\xff\xff"})
    with pytest.raises(ValueError) as caught:
        open_corpus(DataConfig(source="files", path=path, min_bytes=3, max_bytes=3, skip_invalid=True))
    assert str(caught.value) == (
        f"data.path={path!r} holds no document longer than one token (0 documents; 2 above data.max_bytes=3 skipped "
        "(such as c), 2 below data.min_bytes=3 skipped (such as a), 1 binary skipped (such as f), 1 empty skipped "
        "(such as e), 1 not UTF-8 skipped (such as g)): nothing can be predicted from it; name a corpus of UTF-8 text, "
        "and check its filters.")


def test_counts_add_up_over_processes():
    parts = [Skipped(), Skipped()]
    for part, name in zip(parts, "zb"):
        part.add("empty", name)
    total = pickle.loads(pickle.dumps(parts[0]))
    total.update(parts[1])
    assert str(total) == "2 empty skipped (such as b)"


@pytest.fixture
def two_folders(write_folder):
    """A config with 6 files to train on and 2 others held out, one of each with the same name and text."""
    train = write_folder({f"{i}.txt": f"train {i}" for i in range(5)} | {"same.txt": "on both sides"})
    held = write_folder({"same.txt": "on both sides", "held.txt": "held out"}, "held")
    return DataConfig(source="files", path=train, validation_path=held, batch_size=1, seq_len=8,
                      validation_fraction=0.9)


def test_validation_path_is_held_out_and_the_rest_trained_on(two_folders, caplog):
    corpus = open_corpus(two_folders)
    assert "1 documents are in data.validation_path=" in caplog.text and "too (such as same.txt)" in caplog.text
    assert contents(corpus, "validation") == [b"held out", b"on both sides"]
    assert contents(corpus, "train") == [b"on both sides", *(f"train {i}".encode() for i in range(5))]
    assert corpus.parts["files"].num_groups == {"train": 6, "validation": 2} and corpus.num_documents == 8
    assert "8 files (6 to train on, 2 held out), 8 documents" in corpus.summary()
    alone = open_corpus(dataclasses.replace(two_folders, validation_path=""))
    assert alone.hash != corpus.hash
    assert held_out(two_folders) == dataclasses.replace(two_folders, path=two_folders.validation_path,
                                                        validation_path="")
    assert held_out(held_out(two_folders)) is None


def test_duplicates_stay_held_out(two_folders, caplog):
    corpus = open_corpus(dataclasses.replace(two_folders, drop_duplicates=True))
    assert "data.validation_path" not in caplog.text
    assert contents(corpus, "validation") == [b"held out", b"on both sides"]
    assert contents(corpus, "train") == [f"train {i}".encode() for i in range(5)]
    assert "1 duplicate skipped (such as same.txt)" in corpus.summary()


def test_one_file_of_text_and_one_held_out(two_folders, write_folder):
    path = write_folder({"all.txt": "all of the text"}, "one")
    config = dataclasses.replace(two_folders, path=f"{path}/all.txt")
    assert contents(open_corpus(config), "train") == [b"all of the text"]
    with pytest.raises(ValueError, match="holds one file of text only .*or name held-out text by data.validation_path"):
        open_corpus(dataclasses.replace(config, validation_path=""))
    (pathlib.Path(path) / "one.jsonl").write_text('{"text": "all of the text"}\n')
    with pytest.raises(ValueError, match=r"holds one document of text only \(one.jsonl@0\)"):
        open_corpus(DataConfig(source="jsonl", path=f"{path}/one.jsonl"))


def test_a_validation_path_that_will_not_do(two_folders, write_folder):
    missing = dataclasses.replace(two_folders, validation_path=f"{two_folders.validation_path}s")
    with pytest.raises(ValueError, match=r"data\.validation_path, read like data\.path: .*helds' does not exist\. Did"):
        open_corpus(missing)
    with pytest.raises(ValueError, match=r"data\.validation_path='x' is not read by data\.source='stdlib': leave it"):
        open_corpus(DataConfig(source="stdlib", validation_path="x"))
    empty = write_folder({"a.txt": ""}, "empty")
    with pytest.raises(ValueError, match=r"data\.validation_path='.*empty' holds no document that passes the filters; "
                                         r"1 empty skipped \(such as a\.txt\): name text to hold out"):
        open_corpus(dataclasses.replace(two_folders, validation_path=empty))
    with pytest.raises(ValueError, match=r"data\.path='.*empty' holds no document that passes the filters.*to train "):
        open_corpus(dataclasses.replace(two_folders, path=empty))


def test_pieces_are_in_the_order_of_their_names(monkeypatch):
    def piece(name):
        return Piece(name, 1, lambda: iter([Document(f"{name}/{i}", name, name.encode) for i in range(2)]))

    listed = [piece("c"), Document("b", "b", "b".encode), piece("a")]
    monkeypatch.setitem(sources.SOURCES, "mine", lambda config: listed)
    config = DataConfig(source="mine")
    assert [piece.name for piece in find_pieces(config)] == ["a", "b", "c"]
    texts = list(read_corpus(config, Skipped(), takes_bytes=True))
    assert [text.name for text in texts] == ["a/0", "a/1", "b", "c/0", "c/1"]
    listed.append(piece("a"))
    with pytest.raises(ValueError, match=r"data\.source='mine' yields two documents named 'a': names must differ"):
        find_pieces(config)


@pytest.mark.parametrize("ids, message", [
    (np.array([[1, 2]]), r"shape \(1, 2\): token ids are whole numbers in a row"),
    (np.array([0.5]), "an array of float64 .*: token ids are whole numbers"),
])
def test_ids_that_are_none(ids, message):
    piece = Piece("p", 1, lambda: iter([Document("d", "d", lambda: ids)]))
    with pytest.raises(ValueError, match=message):
        list(read_piece(piece, DataConfig(), Skipped(), takes_bytes=True, vocab_size=259))


def test_sizes_where_a_source_of_ones_own_gives_ids():
    piece = Piece("p", 1, lambda: iter([Document("d", "d", lambda: np.arange(3))]))
    with pytest.raises(ValueError, match=r"data\.min_bytes=2 and data\.max_bytes=0 are sizes of text.*set both to 0"):
        list(read_piece(piece, DataConfig(min_bytes=2), Skipped(), takes_bytes=True, vocab_size=259))


def test_errors_of_a_source_of_ones_own_keep_their_class():
    def fail():
        raise KeyError("a mistake")

    for piece in (Piece("p", 1, fail), Piece("p", 1, lambda: iter([Document("d", "d", fail)]))):
        with pytest.raises(KeyError, match="a mistake"):
            list(read_piece(piece, DataConfig(), Skipped(), takes_bytes=True))
