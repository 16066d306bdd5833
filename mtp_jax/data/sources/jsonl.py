"""Documents of JSONL files: one JSON object a line, its text in the field `data.field`."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from mtp_jax.config import DataConfig
from mtp_jax.data.sources.base import Document, NotText, Piece, ranges, register_source, where
from mtp_jax.data.sources.fields import look_up, missing, names_of, no_string
from mtp_jax.data.sources.paths import File, find_files, open_binary, refuse

PIECE_BYTES = 8 * 1024**2  # so large that a piece costs nothing beside its lines, so small that many share the work
COMPRESSED = (".gz", ".bz2", ".zst")
ENDINGS = tuple(kind + compressed for kind in (".jsonl", ".ndjson", ".json") for compressed in ("", *COMPRESSED))
BOM = b"\xef\xbb\xbf"


@register_source("jsonl")
def jsonl(config: DataConfig) -> Sequence[Piece]:
    """The lines of JSONL files, compressed or not; each is a document, and a group of the split of its own."""
    refuse(config, "extensions")
    return [piece for file in find_files(config, "JSONL files", ENDINGS)
            for piece in cut(file, config, PIECE_BYTES)]


def cut(file: File, config: DataConfig, piece_bytes: int) -> Iterator[Piece]:
    """Yields the pieces of a file: equal ranges of at most `piece_bytes`, or the whole where it is compressed.

    A range owns the lines that start in it.
    """
    count = 1 if file.name.endswith(COMPRESSED) else max(-(-file.size // piece_bytes), 1)
    for start, stop in ranges(file.size, count):
        # Zeros in front, so that names in order are offsets in order.
        name, span = (file.name, None) if count == 1 else (f"{file.name}@{start:015d}", (start, stop))
        yield Piece(name, stop - start, functools.partial(_documents, file, span, config))


def _documents(file: File, span: tuple[int, int] | None, config: DataConfig) -> Iterator[Document]:
    """Yields a document a line, named by the offset where it starts, in the decompressed file."""
    for offset, line in _lines(file, span, config):
        name = f"{file.name}@{offset}"
        yield Document(name, name, functools.partial(_text, line, file, offset, config))


def _lines(file: File, span: tuple[int, int] | None, config: DataConfig) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, line) of the lines that start in `span`, blank ones left out; None: of the whole file."""
    with _open(file, config) as lines:
        offset, stop = span or (0, None)
        if offset:
            lines.seek(offset - 1)
            offset += len(lines.readline()) - 1  # the line that holds the byte before belongs to the piece before
        while stop is None or offset < stop:
            line = lines.readline()
            if not line:
                return
            if line.strip():
                yield offset, line
            offset += len(line)


@contextlib.contextmanager
def _open(file: File, config: DataConfig) -> Iterator[IO[bytes]]:
    """Opens a file to read what it holds when decompressed.

    Raises:
      ValueError: what is compressed is damaged.
    """
    with open_binary(file.path) as raw:
        try:
            yield _decompressed(file.name, raw)
        except (EOFError, OSError, zlib.error) as error:
            if not file.name.endswith(COMPRESSED):
                raise
            raise ValueError(f"{where(config)}: {file.name} is cut short, damaged, or not compressed as its name says "
                             f"({error}): fetch it again, or take it out.") from error


def _decompressed(name: str, raw: IO[bytes]) -> IO[bytes]:
    if name.endswith(".gz"):
        import gzip

        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 16)  # type: ignore[arg-type]
    if name.endswith(".bz2"):
        import bz2

        return bz2.open(raw)
    if name.endswith(".zst"):
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"), 1 << 16)
    return raw


def _text(line: bytes, file: File, offset: int, config: DataConfig) -> bytes | None:
    """Returns the text of a line as UTF-8, None for null.

    Raises:
      NotText: the line is no UTF-8, or the text holds half a surrogate pair.
      ValueError: the line is no JSON object, or has no such field, or no string in it.
    """
    if not offset and line.startswith(BOM):
        line, offset = line[len(BOM):], len(BOM)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotText(f"{where(config)}: {file.name} is no UTF-8 at byte {offset + error.start:,} "
                      f"(0x{line[error.start]:02x})", _broken_text(line, config)) from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}: character {error.pos + 1:,}" if isinstance(error, json.JSONDecodeError) else error
        raise ValueError(
            f"{_place(file, offset, config)} is not JSON ({reason}): a line must hold one object, such as "
            f'{{"{config.field}": "..."}}. `jq -c .` makes lines of objects that span several, `jq -c ".[]"` of an '
            "array.") from error
    if not isinstance(record, Mapping):
        raise ValueError(f"{_place(file, offset, config)} holds {_kind(record)}: a line must hold one object, such as "
                         f'{{"{config.field}": "..."}}. `jq -c ".[]"` makes lines of an array.')
    try:
        value = look_up(record, config.field)
    except KeyError:
        raise missing(config, _place(file, offset, config), names_of(record)) from None
    if value is None:
        return None
    if not isinstance(value, str):
        raise no_string(config, _place(file, offset, config), _kind(value))
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotText(f"{_place(file, offset, config)} holds \\u{ord(value[error.start]):04x} at character "
                      f"{error.start:,} of data.field={config.field!r}, half a surrogate pair, which no UTF-8 stands "
                      "for") from error


def _broken_text(line: bytes, config: DataConfig) -> bytes | None:
    """Returns the text of a line that is no UTF-8, its bytes as they are; None where there is no text to be found."""
    try:
        value = look_up(json.loads(line.decode("utf-8", "surrogateescape")), config.field)
        return value.encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _place(file: File, offset: int, config: DataConfig) -> str:
    """Returns the file and the number of the line that starts at `offset`, for messages; reads the file up to it."""
    number, left = 1, offset
    with _open(file, config) as lines:
        while left > 0 and (block := lines.read(min(left, 1 << 20))):
            number += block.count(b"\n")
            left -= len(block)
    return f"{where(config)}: {file.name}, line {number:,}"


def _kind(value: Any) -> str:
    """Returns in words what a value of JSON is."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
