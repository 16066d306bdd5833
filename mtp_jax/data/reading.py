"""From what a source lists to documents that can be tokenized: read, filtered, checked, counted.

The same code reads a corpus into memory, prepares it on disk and trains a tokenizer on it, so all three see the same
documents.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from mtp_jax.config import DataConfig
from mtp_jax.data.sources import Document, Piece, find


@dataclasses.dataclass(frozen=True)
class Text:
    """A document whose content is at hand.

    Attributes:
      name: of the document.
      group: what the split keeps together.
      content: UTF-8 bytes (any bytes for a tokenizer that takes them), or ids [tokens].
    """

    name: str
    group: str
    content: bytes | np.ndarray

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return hashlib.sha256(content_bytes(self.content)).digest()


class Skipped:
    """Counts documents that are left out, by reason, with one example each. Pickles, and adds up over processes."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.example: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts one document."""
        self.count[reason] += 1
        self.example[reason] = min(name, self.example.get(reason, name))

    def update(self, other: Skipped) -> None:
        """Adds the counts of another part of the corpus."""
        self.count.update(other.count)
        for reason, name in other.example.items():
            self.example[reason] = min(name, self.example.get(reason, name))

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason} skipped (such as {self.example[reason]})"
                         for reason, count in sorted(self.count.items()))


def where(config: DataConfig) -> str:
    """Returns the field that names the corpus, for messages."""
    return f"data.path={config.path!r}" if config.path else f"data.source={config.source!r}"


def find_pieces(config: DataConfig) -> list[Piece]:
    """Returns the pieces of a source sorted by name, contents not yet read.

    Args:
      config: of one source.

    Raises:
      ValueError: the source is unknown, cannot find what `config.path` names, or lists two pieces of one name.
    """
    pieces = sorted((item if isinstance(item, Piece) else _alone(item) for item in find(config)),
                    key=lambda piece: piece.name)
    for first, second in zip(pieces, pieces[1:]):
        if first.name == second.name:
            raise ValueError(f"{where(config)} yields two documents named {first.name!r}: names must differ.")
    return pieces


def read_piece(piece: Piece, config: DataConfig, skipped: Skipped, *, takes_bytes: bool) -> Iterator[Text]:
    """Yields the documents of a piece that pass the filters; duplicates are left in (see `duplicates`).

    Args:
      piece: of a source.
      config: of the source; its filters.
      skipped: counts what is left out.
      takes_bytes: the tokenizer takes any bytes; otherwise a document that is no UTF-8 is an error, or skipped with
        config.skip_invalid.

    Raises:
      ValueError: a document cannot be read or is no UTF-8; names the file and the offset.
    """
    for document in _documents(piece, config):
        content = _read(document, config)
        reason = _reason_to_skip(document, content, config, takes_bytes)
        if reason:
            skipped.add(reason, document.name)
        else:
            yield Text(document.name, document.group, content)


def content_bytes(content: bytes | np.ndarray) -> bytes:
    """Returns what stands for a document's content in hashes: its bytes, or its ids as little-endian int64."""
    return content if isinstance(content, bytes) else content.astype("<i8").tobytes()


def _alone(document: Document) -> Piece:
    """Returns the piece of one document."""
    return Piece(document.name, 0, functools.partial(_only, document))


def _only(document: Document) -> Iterator[Document]:
    yield document


def _documents(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of a piece.

    Raises:
      ValueError: its file cannot be read.
    """
    try:
        yield from piece.documents()
    except OSError as error:
        raise _unreadable(piece.name, config, error) from error


def _read(document: Document, config: DataConfig) -> bytes | np.ndarray:
    """Returns the content of a document.

    Raises:
      ValueError: it cannot be read.
    """
    try:
        return document.read()
    except OSError as error:
        raise _unreadable(document.name, config, error) from error


def _unreadable(name: str, config: DataConfig, error: OSError) -> ValueError:
    return ValueError(f"{where(config)}: {name} cannot be read ({error.strerror or error}): make it readable for this "
                      "user, move it out of the corpus, or name a glob that leaves it out.")


def _reason_to_skip(document: Document, content: bytes | np.ndarray, config: DataConfig, takes_bytes: bool) -> str:
    """Returns why a document is left out, or an empty string.

    Raises:
      ValueError: it is no UTF-8 and the tokenizer needs UTF-8.
    """
    size = len(content) if isinstance(content, bytes) else content.nbytes
    if not len(content):
        return "empty"
    if size < config.min_bytes:
        return f"below data.min_bytes={config.min_bytes}"
    if 0 < config.max_bytes < size:
        return f"above data.max_bytes={config.max_bytes}"
    if not isinstance(content, bytes):
        return ""
    if b"\0" in content:
        return "binary"
    if takes_bytes and not config.skip_invalid:
        return ""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        if config.skip_invalid:
            return "not UTF-8"
        raise ValueError(f"{where(config)}: {document.name} is no UTF-8 at byte {error.start} "
                         f"(0x{content[error.start]:02x}): convert it, leave it out by data.path or data.extensions, "
                         "set data.skip_invalid=True to skip such documents, or train on bytes with "
                         "data.tokenizer='bytes'.") from error
    return ""


def read_corpus(config: DataConfig, skipped: Skipped, *, takes_bytes: bool, threads: int = 8) -> Iterator[Text]:
    """Yields all documents of a source that pass the filters, in the order of their pieces, duplicates left out.

    Args:
      config: of one source.
      skipped: counts what is left out.
      takes_bytes: see `read_piece`.
      threads: pieces read at a time, which hides the latency of files in a bucket.

    Raises:
      ValueError: the source, a file or a document is not usable; see `find_pieces` and `read_piece`.
    """
    def read(piece: Piece) -> tuple[list[Text], Skipped]:
        part = Skipped()
        return list(read_piece(piece, config, part, takes_bytes=takes_bytes)), part

    seen: set[bytes] = set()
    with futures.ThreadPoolExecutor(threads) as executor:
        pieces = iter(find_pieces(config))
        ahead = collections.deque(executor.submit(read, piece) for piece in itertools.islice(pieces, 2 * threads))
        while ahead:
            texts, part = ahead.popleft().result()
            ahead.extend(executor.submit(read, piece) for piece in itertools.islice(pieces, 1))
            skipped.update(part)
            for text in texts:
                if config.drop_duplicates:
                    if text.digest in seen:
                        skipped.add("duplicate", text.name)
                        continue
                    seen.add(text.digest)
                yield text
