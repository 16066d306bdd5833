"""A small folder of text and its config, shared by the tests of data."""

import pathlib

import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from mtp_jax.config import DataConfig
from mtp_jax.data.reading import Skipped, read_corpus

EXCERPTS = pathlib.Path(__file__).parent / "excerpts"


@pytest.fixture
def write_folder(tmp_path):
    """Returns a function that writes {relative name: bytes or text} into a folder and returns its path."""
    def write(files, folder="corpus"):
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(tmp_path / folder)

    return write


@pytest.fixture
def text_files():
    """Twelve files of 0 to 399 printable characters; the seed is fixed."""
    rng = np.random.default_rng(0)
    lengths = [0, 1, 2, 31, 32, 33, *rng.integers(100, 400, 6)]
    return {f"part{i % 3}/file{i}.txt": bytes(rng.integers(32, 127, n).astype(np.uint8))
            for i, n in enumerate(lengths)}


@pytest.fixture
def config(write_folder, text_files):
    """A config of 4 rows of 32 tokens a batch over `text_files`."""
    return DataConfig(source="files", path=write_folder(text_files), batch_size=4, seq_len=32, seed=3,
                      validation_fraction=0.25, validation_batches=3)


@pytest.fixture
def read_all():
    """Returns a function that reads what a config names: {document's name: content}, in the order of reading."""
    def read(skipped=None, takes_bytes=True, vocab_size=259, **fields):
        skipped = Skipped() if skipped is None else skipped
        texts = list(read_corpus(DataConfig(**fields), skipped, takes_bytes=takes_bytes, vocab_size=vocab_size))
        assert len({text.name for text in texts}) == len(texts)
        return {text.name: text.content for text in texts}

    return read


@pytest.fixture
def excerpts():
    """The folder of real files: gsm8k.jsonl, humaneval.jsonl.gz, shakespeare.txt, wikitext.txt."""
    return EXCERPTS


class Bucket(MemoryFileSystem):
    """A bucket in memory; like the real ones it walks without the scheme."""

    store: dict = {}
    pseudo_dirs: list = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket where gs:// paths lead; `bucket.pipe(path, content)` writes a file."""
    empty = type("EmptyBucket", (Bucket,), {"store": {}, "pseudo_dirs": [""]})
    fs = empty(skip_instance_cache=True)
    monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda self, path: fs)
    return fs
