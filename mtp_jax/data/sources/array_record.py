"""Documents of ArrayRecord files: a record is one, as UTF-8 or as token ids."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mtp_jax.config import DataConfig, check_choice
from mtp_jax.data.sources.base import Document, Piece, ranges, register_source, where
from mtp_jax.data.sources.local_copy import local_copy
from mtp_jax.data.sources.paths import File, find_files, is_remote, refuse

PIECE_BYTES = 32 * 1024**2
RECORDS = 1024  # read at a time
TEXT = "text"
ID_TYPES = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}  # little-endian on every machine


@register_source("array_record")
def array_record(config: DataConfig) -> Sequence[Piece]:
    """The records of ArrayRecord files; each is a document, and a group of the split of its own.

    `data.field` tells what a record is: "text", or the type of its token ids, such as "uint16".
    """
    refuse(config, "extensions")
    check_choice("data.field", config.field, (TEXT, *ID_TYPES))
    if config.field in ID_TYPES and (config.min_bytes or config.max_bytes):
        raise ValueError(f"data.min_bytes={config.min_bytes} and data.max_bytes={config.max_bytes} are sizes of text, "
                         f"but with data.field={config.field!r} records are token ids: set both to 0.")
    return [piece for file in find_files(config, "ArrayRecord files", (".array_record", ".arrayrecord"))
            for piece in _cut(file, config)]


def _cut(file: File, config: DataConfig) -> Iterator[Piece]:
    """Yields the pieces of a file, equal ranges of records; one that lies in a bucket is a piece as it is."""
    if is_remote(file.path):  # the number of records is known once it is copied
        yield Piece(file.name, file.size, functools.partial(_documents, file, None, config))
        return
    with _open(file, config) as reader:
        records = reader.num_records()
    count = min(-(-file.size // PIECE_BYTES), records)
    for start, stop in ranges(records, count):
        yield Piece(file.name if count == 1 else f"{file.name}@{start:015d}", file.size * (stop - start) // records,
                    functools.partial(_documents, file, (start, stop), config))


def _documents(file: File, span: tuple[int, int] | None, config: DataConfig) -> Iterator[Document]:
    """Yields a document a record, named by its number in the file."""
    with _open(file, config) as reader:
        start, stop = span or (0, reader.num_records())
        for first in range(start, stop, RECORDS):
            for index, record in enumerate(reader.read(first, min(first + RECORDS, stop)), first):
                name = f"{file.name}@{index}"
                yield Document(name, name, functools.partial(_content, record, file, index, config))


def _content(record: bytes, file: File, index: int, config: DataConfig) -> bytes | np.ndarray:
    """Returns the text of a record, or its ids.

    Raises:
      ValueError: its bytes are no whole number of ids.
    """
    if config.field == TEXT:
        return record
    dtype = np.dtype(ID_TYPES[config.field])
    if len(record) % dtype.itemsize:
        raise ValueError(f"{where(config)}: {file.name}, record {index}, has {len(record):,} bytes, no whole number of "
                         f"data.field={config.field!r}: set data.field to the type of the ids, or to 'text'.")
    return np.frombuffer(record, dtype)


@contextlib.contextmanager
def _open(file: File, config: DataConfig) -> Iterator[Any]:
    """Opens a file as an ArrayRecordReader.

    Raises:
      ValueError: it is no ArrayRecord file, or damaged; also while it is read.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    path = local_copy(file.path)
    with path.open("rb"):  # the reader does not say that it cannot open a file
        pass
    reader = ArrayRecordReader(str(path))
    try:
        if not reader.ok():
            reader.close()  # raises what is wrong, which opening does not
            raise RuntimeError("its end is not that of such a file")
        yield reader
        reader.close()
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{where(config)}: {file.name} is no ArrayRecord file, cut short, or damaged ({error}): fetch "
                         "or write it again, or take it out.") from error
