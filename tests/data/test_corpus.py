"""Opening a corpus: contents, hash, split, determinism, and every refusal."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mtp_jax.config import DataConfig, MixtureConfig
from mtp_jax.data import Document, open_corpus, register_source, sources


def rows_of(corpus):
    """Returns {"train", "validation"} -> rows of a corpus of one source."""
    (part,) = corpus.parts.values()
    return part.rows


def documents_of(corpus, split):
    """Returns the texts of a split, read back from the token stream."""
    rows = rows_of(corpus)[split]
    return [bytes(rows.tokens[start + 1:stop - 1].astype(np.uint8))
            for start, stop in zip(rows.bounds[:-1], rows.bounds[1:])]


def test_splits_are_disjoint_and_hold_every_text(config, text_files):
    corpus = open_corpus(config)
    train, validation = documents_of(corpus, "train"), documents_of(corpus, "validation")
    assert sorted(train + validation) == sorted(data for data in text_files.values() if data)
    assert corpus.parts["files"].num_groups == {"train": 8, "validation": 3}  # a quarter of the 11 that hold text
    assert (len(train), len(validation)) == (8, 3)
    assert corpus.num_tokens == sum(len(data) + 2 for data in text_files.values() if data)
    assert corpus.num_documents == 11


def test_more_documents_than_are_tokenized_at_a_time(write_folder):
    files = {f"{i:03d}": f"text {i}".encode() for i in range(600)}
    corpus = open_corpus(DataConfig(source="files", path=write_folder(files), validation_path=write_folder(files, "b")))
    assert sorted(documents_of(corpus, "train")) == sorted(documents_of(corpus, "validation")) == sorted(files.values())


def test_each_document_stands_between_bos_and_eos(config):
    corpus = open_corpus(config)
    for rows in rows_of(corpus).values():
        assert np.all(rows.tokens[rows.bounds[:-1]] == 256) and np.all(rows.tokens[rows.bounds[1:] - 1] == 257)
        assert np.sum(rows.tokens >= 256) == 2 * (len(rows.bounds) - 1)


def test_num_rows(config):
    corpus = open_corpus(config)
    assert corpus.num_rows("train") == -(-len(rows_of(corpus)["train"].tokens) // 32)
    with pytest.raises(ValueError, match=r"split='valid'.*Did you mean \"validation\""):
        corpus.num_rows("valid")


def test_rows_do_not_depend_on_anything_but_data_fields(config):
    def tokens(**changes):
        return rows_of(open_corpus(dataclasses.replace(config, **changes)))["train"].tokens

    assert np.array_equal(tokens(), tokens(batch_size=2, num_workers=2, validation_batches=1))
    assert not np.array_equal(tokens(), tokens(seed=4))


def test_summary_is_one_plain_line(config):
    summary = open_corpus(config).summary()
    assert "\n" not in summary
    assert "11 files (8 to train on, 3 held out), 11 documents" in summary and "1 empty skipped" in summary


def test_hash_follows_names_and_bytes_but_not_the_place(write_folder, text_files):
    def digest(files, folder):
        return open_corpus(DataConfig(source="files", path=write_folder(files, folder), batch_size=1)).hash

    original = digest(text_files, "here")
    assert digest(text_files, "there") == original
    name = max(text_files, key=lambda name: len(text_files[name]))
    changed = bytearray(text_files[name])
    changed[7] ^= 1
    assert digest({**text_files, name: bytes(changed)}, "byte") != original
    renamed = {f"z{key}" if key == name else key: data for key, data in text_files.items()}
    assert digest(renamed, "name") != original
    # Names and contents end to end are the same bytes here.
    assert digest({"a": "xy", "b": "zw"}, "before") != digest({"ax": "y", "b": "zw"}, "after")


def test_binary_files_are_skipped_and_counted(write_folder, text_files, caplog):
    path = write_folder({**text_files, "image.png": b"\x89PNG\0\0", "other.bin": b"a\0"})
    corpus = open_corpus(DataConfig(source="files", path=path, seq_len=32, batch_size=1))
    assert corpus.num_documents == 11
    assert "2 binary skipped (such as image.png), 1 empty skipped" in corpus.summary()
    assert "2 binary skipped" in caplog.text


def test_a_corpus_without_text_of_two_tokens(write_folder):
    with pytest.raises(ValueError, match=r"data\.path='.*' holds no document longer than one token \(3 documents"):
        open_corpus(DataConfig(source="files", path=write_folder({"a": "x", "b": "y", "c": "z", "d": ""})))
    with pytest.raises(ValueError, match=r"no document longer than one token \(0 documents; 1 binary skipped"):
        open_corpus(DataConfig(source="files", path=write_folder({"a": b"\0\0"}, "binary")))


@pytest.mark.parametrize("error, reason", [
    (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied"),
    (OSError("the bucket is gone"), "the bucket is gone"),
])
def test_a_document_that_cannot_be_read_is_named(error, reason, config, monkeypatch):
    def fail():
        raise error  # patched in, for a superuser reads everything

    documents = [document for piece in sources.files(config) for document in piece.documents()]
    first, *rest = documents
    monkeypatch.setitem(sources.SOURCES, "files", lambda _: [dataclasses.replace(first, read=fail), *rest])
    with pytest.raises(ValueError, match="make it readable.*or name a glob") as caught:
        open_corpus(config)
    assert f"data.path={config.path!r}: {first.name} cannot be read ({reason})" in str(caught.value)


def test_a_corpus_of_one_file(write_folder):
    path = write_folder({"only.txt": "text", "empty.txt": ""})
    with pytest.raises(ValueError, match=r"data\.path='.*' holds one file of text only \(only\.txt; 1 empty skipped.*"
                                         "two are needed.*add text"):
        open_corpus(DataConfig(source="files", path=path))
    with pytest.raises(ValueError, match="holds one file of text only"):
        open_corpus(DataConfig(source="files", path=f"{path}/only.txt"))


def test_documents_of_one_name(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    register_source("twins")(lambda config: [Document("twin", str(i), b"text".__add__) for i in range(2)])
    register_source("twins")(lambda config: [Document("twin", str(i), "text".encode) for i in range(2)])
    with pytest.raises(ValueError, match=r"data\.source='twins' yields two documents named 'twin'"):
        open_corpus(DataConfig(source="twins"))


def test_an_error_names_the_source_of_a_mixture(write_folder):
    parts = (MixtureConfig("good", source="files", path=write_folder({"a": "text", "b": "text"})),
             MixtureConfig("bad", source="files", path="/nowhere/at/all"))
    with pytest.raises(ValueError, match=r"^data\.mixture of 'bad': data\.path='/nowhere/at/all' does not exist"):
        open_corpus(DataConfig(mixture=parts))


def test_a_corpus_smaller_than_a_batch_warns_and_repeats(write_folder, caplog):
    corpus = open_corpus(DataConfig(source="files", path=write_folder({"a": "one two", "b": "six ten"}),
                                    batch_size=4, seq_len=8))
    assert "gives 2 training rows of data.seq_len=8, fewer than data.batch_size=4" in caplog.text
    assert corpus.num_rows("train") == 2
    with corpus.train_batches() as batches:
        rows = [tuple(row) for _ in range(3) for row in next(batches)["tokens"].tolist()]
    assert len(set(rows)) == 2 and all(rows.count(row) == 6 for row in rows)  # whole epochs, each row as often


PROBE = """
import json, sys
from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus
corpus = open_corpus(DataConfig(**json.loads(sys.argv[1])))
slow = [name for name in ("jax", "grain", "tensorflow", "tensorflow_datasets", "ml_collections") if name in sys.modules]
with corpus.train_batches() as batches:
    rows = [next(batches)["tokens"].tolist() for _ in range(5)]
validation = [batch["tokens"].tolist() for batch in corpus.validation_batches()["files"]]
print(json.dumps([slow, corpus.hash, rows, validation]))
"""


def test_two_processes_agree_and_opening_imports_nothing_slow(config):
    def probe(hash_seed):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run([sys.executable, "-c", PROBE, json.dumps(dataclasses.asdict(config))], text=True,
                                env=environment, capture_output=True, check=True)
        return json.loads(result.stdout)

    first, second = probe("1"), probe("2")
    assert first == second
    assert first[0] == []
