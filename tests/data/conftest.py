"""A small folder of text and its config, shared by the tests of data."""

import numpy as np
import pytest

from mtp_jax.config import DataConfig


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
