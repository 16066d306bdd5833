"""Rows of a prepared corpus, read from disk as they are asked for; see `manifest` for the files.

Opening reads the manifest and the sizes of the files. What stays in memory is every 512th bound of the index; the
others are read with the row. (A memory map of the index would count every page that was touched as memory in use, and
random rows touch all.)
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import threading
import weakref
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import numpy as np

from mtp_jax.config import DataConfig
from mtp_jax.data.manifest import INDEX_STEP, RECORD_TOKENS, Manifest, ShardFile, SplitFiles, index_size, read_manifest
from mtp_jax.data.rows import Row, make_row
from mtp_jax.data.sources import Document, register_source
from mtp_jax.data.tokenizer import Tokenizer

READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
OPEN_READERS = 128  # shards that one process keeps open, of all corpora: macOS lets it have 256 files
ALREADY_APPLIED = ("field", "validation_path", "extensions", "min_bytes", "max_bytes", "drop_duplicates",
                   "skip_invalid")  # by prepare

# By path and content: a folder may be prepared anew while the process lives. The one used last is at the end.
_readers: dict[tuple[str, str], Any] = {}
_lock = threading.Lock()  # held while a row is read: a reader in use is not closed


@register_source("prepared")
def prepared(config: DataConfig) -> list[Document]:
    """A folder of `python -m mtp_jax.data.prepare`: tokens, not documents, so that only training reads it."""
    raise ValueError(f"data.source='prepared' (data.path={config.path!r}) holds tokens and no documents: name the "
                     "source that it was prepared from.")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared corpus, opened.

    Attributes:
      manifest: of the folder.
      rows: {"train", "validation"}.
    """

    manifest: Manifest
    rows: dict[str, PreparedRows]


def open_prepared(config: DataConfig, tokenizer: Tokenizer) -> Prepared:
    """Opens the folder that `config.path` names, and checks it against its manifest.

    Args:
      config: of one source.
      tokenizer: that the run decodes with; must be the one that the corpus was prepared with.

    Raises:
      ValueError: the folder is not a finished corpus, a file is missing or cut short, the tokenizer is another, or a
        setting is given that took effect when the corpus was prepared.
    """
    from etils import epath

    if not config.path:
        raise ValueError("data.path='' is empty, but data.source='prepared' reads it: set it to a folder that "
                         "python -m mtp_jax.data.prepare wrote.")
    folder = epath.Path(config.path).expanduser()
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"data.path={config.path!r} has no manifest.json, so it is " + (
            "not a prepared corpus, or not finished: run its `python -m mtp_jax.data.prepare` again." if folder.exists()
            else "not a prepared corpus; the folder does not exist."))
    _check_settings(config, manifest)
    if tokenizer.hash != manifest.tokenizer["hash"]:
        file = manifest.tokenizer["file"]
        remedy = shlex.quote(os.fspath(folder / file) if file else manifest.tokenizer["name"])
        raise ValueError(f"data.tokenizer={config.tokenizer!r} has the hash {tokenizer.hash[:16]}, but {config.path} "
                         f"was prepared with {manifest.tokenizer['name']!r}, {manifest.tokenizer['hash'][:16]}: its "
                         f"ids mean other text. Set --config.data.tokenizer={remedy}, or prepare the corpus anew.")
    _check_sizes(folder, manifest)
    with _lock:
        for key in [key for key in _readers if key[0].startswith(f"{os.fspath(folder)}/")]:
            _readers.pop(key).close()  # the files may have been replaced since
    return Prepared(manifest, {
        name: PreparedRows(os.fspath(folder), split, dtype=manifest.dtype, seq_len=config.seq_len,
                           bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id)
        for name, split in manifest.splits.items()})


class PreparedRows:
    """Random access to the rows of one split, equal to `Rows` of the same documents.

    Files are opened when a row first needs them, in each process anew; threads take turns.
    """

    def __init__(self, folder: str, split: SplitFiles, *, dtype: str, seq_len: int, bos_id: int, pad_id: int):
        """Opens nothing yet.

        Args:
          folder: of the corpus; may lie in a bucket, from which its files are copied as they are needed.
          split: of the manifest.
          dtype: of ids on disk, "uint16" or "uint32".
          seq_len: L, tokens a row.
          bos_id: that every document begins with.
          pad_id: fills the last row.
        """
        self._folder, self._split, self._seq_len = folder, split, seq_len
        self._bos_id, self._pad_id = bos_id, pad_id
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._ends = np.cumsum([shard.tokens for shard in split.shards])
        self._index: _Index | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream."""
        return self._split.tokens

    def __len__(self) -> int:
        return -(-self.num_tokens // self._seq_len)

    def __getitem__(self, row: int) -> Row:
        """Returns one row; see `Rows`.

        Args:
          row: from 0; rows past the last are all padding.

        Raises:
          ValueError: a file is missing or damaged; names it.
        """
        start = row * self._seq_len
        stop = min(start + self._seq_len, self.num_tokens)
        if start >= stop:
            return make_row(np.empty(0), np.empty(0), seq_len=self._seq_len, pad_id=self._pad_id)
        with _lock:
            if self._index is None:
                self._index = _Index(self._path(self._split.index), self._split)
            begins = self._index.begins(start, stop)
            tokens = self._tokens(start, stop)
        if np.any(tokens[begins[begins >= 0]] != self._bos_id):
            raise self._damaged(self._split.index,
                                f"the shards hold other documents at the tokens {start:,} to {stop:,}")
        return make_row(tokens, begins, seq_len=self._seq_len, pad_id=self._pad_id)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_index": None}

    def _tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop) of the stream."""
        parts = []
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left"))
        for number in range(first, last + 1):
            shard = self._split.shards[number]
            begin = int(self._ends[number]) - shard.tokens
            parts.append(self._read(number, max(start - begin, 0), min(stop - begin, shard.tokens)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read(self, number: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop) of one shard.

        Raises:
          ValueError: it is damaged.
        """
        shard = self._split.shards[number]
        first, last = start // RECORD_TOKENS, (stop - 1) // RECORD_TOKENS
        try:
            joined = b"".join(self._reader(shard).read(list(range(first, last + 1))))
        except (RuntimeError, IndexError) as error:  # what the library raises
            _readers.pop(self._key(shard), None)  # the file may be put back
            raise self._damaged(shard.file, str(error)) from error
        end = min((last + 1) * RECORD_TOKENS, shard.tokens)
        if len(joined) != (end - first * RECORD_TOKENS) * self._dtype.itemsize:
            raise self._damaged(shard.file, f"records {first} to {last} have {len(joined):,} bytes")
        return np.frombuffer(joined, self._dtype)[start - first * RECORD_TOKENS:stop - first * RECORD_TOKENS]

    def _reader(self, shard: ShardFile) -> Any:
        """Returns the reader of a shard, opened now if it is not open."""
        from array_record.python.array_record_module import ArrayRecordReader

        reader = _readers.pop(self._key(shard), None)
        if reader is None:
            while len(_readers) >= OPEN_READERS:
                _readers.pop(next(iter(_readers))).close()
            path = self._path(shard.file)
            os.close(_open(path))  # of a file that it cannot open the library says nothing, and finds no record in it
            reader = ArrayRecordReader(path, READER_OPTIONS)
            if reader.num_records() != shard.records:
                raise self._damaged(shard.file, f"{reader.num_records():,} records, {shard.records:,} were written")
        _readers[self._key(shard)] = reader
        return reader

    def _key(self, shard: ShardFile) -> tuple[str, str]:
        return f"{self._folder}/{shard.file}", shard.sha256

    def _path(self, file: str) -> str:
        """Returns where a file of the folder lies on this machine."""
        if "://" not in self._folder:
            return os.path.join(self._folder, file)
        from mtp_jax.data.sources.local_copy import local_copy

        return os.fspath(local_copy(f"{self._folder}/{file}"))

    def _damaged(self, file: str, why: str) -> ValueError:
        return ValueError(f"{self._folder}/{file} is damaged ({why}): copy it anew from where it is whole, or prepare "
                          "the corpus anew.")


def _open(path: str) -> int:
    """Returns the descriptor of a file, opened to read.

    Raises:
      ValueError: it cannot be.
    """
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): " + (
            "let the process open more files (ulimit -n)." if error.errno == errno.EMFILE else
            "put it back, or prepare the corpus anew.")) from error


class _Index:
    """The bounds of documents: every `INDEX_STEP`-th in memory, the others on disk."""

    def __init__(self, path: str, split: SplitFiles):
        self._path, self._tokens, self._count = path, split.tokens, split.documents + 1
        self._file = _open(path)
        weakref.finalize(self, os.close, self._file)
        self._coarse = self._bounds(self._count, self._count + (self._count - 1) // INDEX_STEP + 1)
        ends = self._bounds(self._count - 1, self._count)
        if self._coarse[0] != 0 or ends[-1] != split.tokens or np.any(np.diff(self._coarse) < 1):
            raise self._damaged()

    def begins(self, start: int, stop: int) -> np.ndarray:
        """Returns the beginnings, counted from `start`, of the documents that have tokens in [start, stop).

        Raises:
          ValueError: the index is damaged.
        """
        first = int(np.searchsorted(self._coarse, start, side="right")) - 1
        last = int(np.searchsorted(self._coarse, stop, side="left"))
        bounds = self._bounds(first * INDEX_STEP, min(last * INDEX_STEP + 1, self._count))
        begin = int(np.searchsorted(bounds, start, side="right")) - 1
        end = int(np.searchsorted(bounds, stop, side="left"))
        found = bounds[begin:end]
        if begin < 0 or end == len(bounds) or np.any(np.diff(found) < 1):
            raise self._damaged()
        return found - start

    def _bounds(self, start: int, stop: int) -> np.ndarray:
        """Reads numbers [start, stop) of the file."""
        data = os.pread(self._file, 8 * (stop - start), 8 * start)
        if len(data) != 8 * (stop - start):
            raise self._damaged()
        return np.frombuffer(data, "<i8")

    def _damaged(self) -> ValueError:
        return ValueError(f"{self._path} is damaged: copy it anew from where it is whole, or prepare the corpus anew.")


def _check_settings(config: DataConfig, manifest: Manifest) -> None:
    """Raises ValueError for settings that would have no effect, because they took effect in prepare."""
    default = DataConfig()
    names = [name for name in ALREADY_APPLIED if getattr(config, name) != getattr(default, name)]
    fraction = manifest.settings["validation_fraction"]
    if config.validation_fraction not in (default.validation_fraction, fraction):
        names.append("validation_fraction")
    if names:
        raise ValueError(f"data.{names[0]}={getattr(config, names[0])!r} has no effect on data.source='prepared': it "
                         f"took effect when {config.path} was prepared, with {manifest.settings[names[0]]!r}. Leave it "
                         "out, or prepare the corpus anew.")


def _check_sizes(folder: Any, manifest: Manifest) -> None:
    """Raises ValueError for a file that is missing or has another size than it was written with."""
    expected = {split.index: index_size(split.documents) for split in manifest.splits.values()}
    expected |= {shard.file: shard.size for split in manifest.splits.values() for shard in split.shards}

    def size_of(file: str) -> int | None:
        try:
            return (folder / file).stat().length
        except FileNotFoundError:
            return None

    with futures.ThreadPoolExecutor(16) as executor:  # in a bucket each takes a while
        for file, size in zip(expected, executor.map(size_of, expected)):
            if size is None:
                raise ValueError(f"{folder / file} is missing: copy the whole folder, or prepare the corpus anew.")
            if size != expected[file]:
                raise ValueError(f"{folder / file} has {size:,} bytes, but {expected[file]:,} were written: it was cut "
                                 "short or changed. Copy it anew from where it is whole, or prepare the corpus anew.")
