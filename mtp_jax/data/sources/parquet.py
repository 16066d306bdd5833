"""Documents of Parquet files: a row is one, its text in the column `data.field`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

from mtp_jax.config import DataConfig
from mtp_jax.data.sources.base import Document, Piece, register_source, where
from mtp_jax.data.sources.fields import missing, no_string
from mtp_jax.data.sources.paths import File, find_files, is_remote, open_binary, refuse

PIECE_BYTES = 32 * 1024**2  # of the column, decompressed; row groups below it share a piece
ROWS = 1024  # read at a time


@register_source("parquet")
def parquet(config: DataConfig) -> Sequence[Piece]:
    """The rows of Parquet files; each is a document, and a group of the split of its own. Other columns stay unread."""
    refuse(config, "extensions")
    found = find_files(config, "Parquet files", (".parquet", ".pq"))
    with futures.ThreadPoolExecutor(8) as executor:  # each file's footer is read, to learn its row groups
        return [piece for pieces in executor.map(functools.partial(_cut, config=config), found) for piece in pieces]


def _cut(file: File, config: DataConfig) -> list[Piece]:
    """Returns the pieces of a file, whole row groups each.

    Raises:
      ValueError: the file is no Parquet, or has no such column, or no strings in it.
    """
    with _open(file, config) as parquet_file:
        _check_column(parquet_file.schema_arrow, file, config)
        metadata = parquet_file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    spans: list[tuple[list[int], int, int]] = []  # (row groups, first row, bytes on disk)
    row, held = 0, PIECE_BYTES
    for index, group in enumerate(groups):
        columns = [group.column(i) for i in range(group.num_columns)]
        column = next(column for column in columns if column.path_in_schema == config.field)
        if held + column.total_uncompressed_size > PIECE_BYTES:
            spans.append(([], row, 0))
            held = 0
        indices, first, size = spans[-1]
        spans[-1] = [*indices, index], first, size + column.total_compressed_size
        held += column.total_uncompressed_size
        row += group.num_rows
    return [Piece(file.name if len(spans) == 1 else f"{file.name}@{first:015d}", size,
                  functools.partial(_documents, file, indices, first, config)) for indices, first, size in spans]


def _documents(file: File, row_groups: list[int], first: int, config: DataConfig) -> Iterator[Document]:
    """Yields a document a row, named by its number in the file."""
    import pyarrow as pa

    row = first
    with _open(file, config) as parquet_file:
        for batch in parquet_file.iter_batches(batch_size=ROWS, row_groups=row_groups, columns=[config.field]):
            column = _inside(batch, config.field)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            # As bytes, so that text that is no UTF-8 is told like that of other sources.
            for text in column.cast(pa.large_binary()).to_pylist():
                name = f"{file.name}@{row}"
                yield Document(name, name, functools.partial(_same, text))
                row += 1


def _same(text: bytes | None) -> bytes | None:
    return text


@contextlib.contextmanager
def _open(file: File, config: DataConfig) -> Iterator[Any]:
    """Opens a file as a pyarrow.parquet.ParquetFile.

    Raises:
      ValueError: it is no Parquet, or damaged; also while it is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_binary(file.path) as raw:
        try:
            yield pq.ParquetFile(raw)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno or is_remote(file.path)):
                raise  # of the file system; of damage pyarrow makes an OSError without a number
            raise ValueError(f"{where(config)}: {file.name} is no Parquet file, cut short, or damaged "
                             f"({' '.join(str(error).split())}): fetch it again, or take it out.") from error


def _check_column(schema: Any, file: File, config: DataConfig) -> None:
    """Raises ValueError unless the column exists and holds strings, or bytes."""
    import pyarrow as pa

    types = dict(_columns(schema))
    if config.field not in types:
        raise missing(config, f"{where(config)}: {file.name}", list(types))
    kind = types[config.field]
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(check(value) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
                                          pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)):
        raise no_string(config, f"{where(config)}: {file.name}", str(kind))


def _columns(fields: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (name, type) of columns, those inside structs as "a.b"."""
    import pyarrow as pa

    for field in fields:
        if pa.types.is_struct(field.type):
            yield from _columns([field.type.field(i) for i in range(field.type.num_fields)], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


def _inside(batch: Any, field: str) -> Any:
    """Returns the column of a batch that was read for `field` alone, out of the structs around it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = batch.column(0)
    name = batch.schema.field(0).name
    while pa.types.is_struct(column.type):
        inner = column.type.field(0).name
        column, name = pc.struct_field(column, inner), f"{name}.{inner}"
    return column
