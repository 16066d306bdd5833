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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures

import numpy as np

from mtp_jax.config import DataConfig
from mtp_jax.data.sources import Document, NotText, Piece, find
from mtp_jax.data.sources.base import where
from mtp_jax.data.sources.paths import comes_from_storage, remedy
from mtp_jax.data.split import split_groups, split_threshold

__all__ = ["HELD_OUT", "SPLITS", "Skipped", "Text", "content_bytes", "find_pieces", "held_out", "prepared_threshold",
           "read_both_paths", "read_corpus", "read_piece", "split_corpus", "where"]

SPLITS = ("train", "validation")
HELD_OUT = "validation:"  # before the names and groups of what data.validation_path holds


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

    @property
    def num_bytes(self) -> int:
        """Bytes of text, or of ids."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return hashlib.sha256(content_bytes(self.content)).digest()


class Skipped:
    """Counts documents that are left out, by reason, with one example each. Pickles, and adds up over processes."""

    def __init__(self, count: Mapping[str, int] | None = None, example: Mapping[str, str] | None = None) -> None:
        """Starts with what was counted before, {reason: count} and {reason: name of a document}; by default nothing."""
        self.count: collections.Counter[str] = collections.Counter(count)
        self.example: dict[str, str] = dict(example or {})

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


def held_out(config: DataConfig) -> DataConfig | None:
    """Returns the config that reads `config.validation_path` as a corpus, None where that is empty."""
    if not config.validation_path:
        return None
    return dataclasses.replace(config, path=config.validation_path, validation_path="")


def find_pieces(config: DataConfig) -> list[Piece]:
    """Returns the pieces of `config.path` sorted by name, contents not yet read; see `held_out` for the other path.

    Args:
      config: of one source.

    Raises:
      ValueError: the source is unknown, cannot find or reach what `config.path` names, or lists two pieces of one
        name.
    """
    try:
        found = find(config)
    except Exception as error:
        if not comes_from_storage(config.path, error):
            raise
        name = getattr(error, "filename", None) or config.path
        place = where(config) if name == config.path else f"{where(config)}: {name}"
        raise ValueError(f"{place} cannot be read ({_reason(error)}): {remedy(config.path, error)}.") from error
    pieces = sorted((item if isinstance(item, Piece) else _alone(item) for item in found),
                    key=lambda piece: piece.name)
    for first, second in zip(pieces, pieces[1:]):
        if first.name == second.name:
            raise ValueError(f"{where(config)} yields two documents named {first.name!r}: names must differ.")
    return pieces


def read_piece(piece: Piece, config: DataConfig, skipped: Skipped, *, takes_bytes: bool,
               vocab_size: int | None = None) -> Iterator[Text]:
    """Yields the documents of a piece that pass the filters; duplicates are left in, for they span pieces.

    Args:
      piece: of a source.
      config: of the source; its filters.
      skipped: counts what is left out.
      takes_bytes: the tokenizer takes any bytes; otherwise a document that is no UTF-8 is an error, or skipped with
        config.skip_invalid.
      vocab_size: ids of documents that are tokenized already must lie below it; None where only text will do.

    Raises:
      ValueError: a document cannot be read, is no UTF-8, or holds ids that the tokenizer has not; names the file and
        the place.
    """
    for document in _documents(piece, config):
        content = _read(document, config, takes_bytes)
        if isinstance(content, np.ndarray) and len(content):
            _check_ids(document, content, config, vocab_size)
        if isinstance(content, str):
            skipped.add(content, document.name)
        elif reason := _reason_to_skip(content, config):
            skipped.add(reason, document.name)
        else:
            yield Text(document.name, document.group, content)


def content_bytes(content: bytes | np.ndarray) -> bytes:
    """Returns what stands for a document's content in hashes: its bytes, or its ids as little-endian int64."""
    return content if isinstance(content, bytes) else content.astype("<i8").tobytes()


def _alone(document: Document) -> Piece:
    """Returns the piece of one document."""
    return Piece(document.name, 0, functools.partial(_only, document), document.group)


def _only(document: Document) -> Iterator[Document]:
    yield document


def _documents(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of a piece.

    Raises:
      ValueError: its file cannot be read.
    """
    try:
        yield from piece.documents()
    except Exception as error:
        if not comes_from_storage(config.path, error):
            raise
        raise _unreadable(piece.name, config, error) from error


def _read(document: Document, config: DataConfig, takes_bytes: bool) -> bytes | np.ndarray | str:
    """Returns the content of a document, or as a string the reason why it is left out.

    Raises:
      ValueError: it cannot be read, or is no UTF-8 where the tokenizer needs that.
    """
    try:
        content = document.read()
        if content is None:
            return "without a text"
        if isinstance(content, bytes) and b"\0" not in content and (config.skip_invalid or not takes_bytes):
            _check_utf8(document, content, config)
        return content
    except NotText as error:
        if config.skip_invalid:
            return "not UTF-8"
        if takes_bytes and error.content is not None:
            return error.content
        by = "data.path or data.extensions" if config.source == "files" else "data.path"
        raise ValueError(f"{error}: convert it, leave its file out by {by}, set data.skip_invalid=True to skip such "
                         "documents"
                         f"{' or train on bytes by data.tokenizer=bytes' if error.content is not None else ''}."
                         ) from error
    except Exception as error:
        if not comes_from_storage(config.path, error):
            raise
        raise _unreadable(document.name, config, error) from error


def _check_utf8(document: Document, content: bytes, config: DataConfig) -> None:
    """Raises NotText unless the content is UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotText(f"{where(config)}: {document.name} is no UTF-8 at byte {error.start:,} "
                      f"(0x{content[error.start]:02x})", content) from error


def _unreadable(name: str, config: DataConfig, error: Exception) -> ValueError:
    return ValueError(f"{where(config)}: {name} cannot be read ({_reason(error)}): {remedy(config.path, error)}.")


def _reason(error: Exception) -> str:
    """Returns what an error says, on one line."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(said.split())


def _reason_to_skip(content: bytes | np.ndarray, config: DataConfig) -> str:
    """Returns why a document is left out, or an empty string."""
    if not len(content):
        return "empty"
    if not isinstance(content, bytes):
        return ""
    if b"\0" in content:
        return "binary"
    if len(content) < config.min_bytes:
        return f"below data.min_bytes={config.min_bytes}"
    if 0 < config.max_bytes < len(content):
        return f"above data.max_bytes={config.max_bytes}"
    return ""


def _check_ids(document: Document, ids: np.ndarray, config: DataConfig, vocab_size: int | None) -> None:
    """Raises ValueError unless the ids of a document are below the tokenizer's vocabulary size, and none is wanted."""
    if config.min_bytes or config.max_bytes:
        raise ValueError(f"data.min_bytes={config.min_bytes} and data.max_bytes={config.max_bytes} are sizes of text, "
                         f"but {where(config)} holds token ids: set both to 0.")
    if vocab_size is None:
        raise ValueError(f"{where(config)} holds token ids, but text is needed here: name a corpus of text.")
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 1:
        raise ValueError(f"{where(config)}: {document.name} holds an array of {ids.dtype} with shape {ids.shape}: "
                         "token ids are whole numbers in a row.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        at = int(np.argmax((ids < 0) | (ids >= vocab_size)))
        raise ValueError(f"{where(config)}: record {document.name} holds the id {ids[at]} at place {at:,}, but "
                         f"data.tokenizer={config.tokenizer!r} has {vocab_size:,} ids, from 0: set data.tokenizer to "
                         "that which made the ids, and check data.field, their type.")


def read_corpus(config: DataConfig, skipped: Skipped, *, takes_bytes: bool, vocab_size: int | None = None,
                threads: int = 8, seen: set[bytes] | None = None,
                pieces: Sequence[Piece] | None = None) -> Iterator[Text]:
    """Yields all documents of `config.path` that pass the filters, in the order of their pieces.

    Args:
      config: of one source.
      skipped: counts what is left out.
      takes_bytes: see `read_piece`.
      vocab_size: see `read_piece`.
      threads: pieces read at a time, which hides the latency of files in a bucket.
      seen: with config.drop_duplicates, digests of documents whose like is left out; grows by those that are yielded.
      pieces: what `find_pieces` returned, where that was asked before.

    Raises:
      ValueError: the source, a file or a document is not usable; see `find_pieces` and `read_piece`.
    """
    def read(piece: Piece) -> tuple[list[Text], Skipped]:
        part = Skipped()
        return list(read_piece(piece, config, part, takes_bytes=takes_bytes, vocab_size=vocab_size)), part

    seen = set() if seen is None else seen
    with futures.ThreadPoolExecutor(threads) as executor:
        left = iter(find_pieces(config) if pieces is None else pieces)
        ahead = collections.deque(executor.submit(read, piece) for piece in itertools.islice(left, 2 * threads))
        while ahead:
            texts, part = ahead.popleft().result()
            ahead.extend(executor.submit(read, piece) for piece in itertools.islice(left, 1))
            skipped.update(part)
            for text in texts:
                if config.drop_duplicates:
                    if text.digest in seen:
                        skipped.add("duplicate", text.name)
                        continue
                    seen.add(text.digest)
                yield text


def read_both_paths(config: DataConfig, skipped: Skipped, *, takes_bytes: bool,
                    vocab_size: int | None = None) -> Iterator[Text]:
    """Yields the documents of `config.validation_path`, marked as such in name and group, and then those of the path.

    In this order a document that is on both sides stays held out, where duplicates are dropped.

    Args: see `read_corpus`.
    """
    read = functools.partial(read_corpus, skipped=skipped, takes_bytes=takes_bytes, vocab_size=vocab_size, seen=set())
    other = held_out(config)
    pieces = find_pieces(config)  # before anything is read, to tell of a wrong path at once
    if other is not None:
        try:
            for text in read(other):
                yield Text(HELD_OUT + text.name, HELD_OUT + text.group, text.content)
        except ValueError as error:
            raise ValueError(f"data.validation_path, read like data.path: {error}") from error
    yield from read(config, pieces=pieces)


def split_corpus(groups: Iterable[str], config: DataConfig, skipped: Skipped) -> dict[str, frozenset[str]]:
    """Returns {"train", "validation"} -> groups: a share of all held out, or those of `config.validation_path`.

    Args:
      groups: of the documents that `read_both_paths` yields.
      config: of one source.
      skipped: what was left out, for messages.

    Raises:
      ValueError: one of both has none.
    """
    everything = frozenset(groups)
    left_out = f"; {skipped}" if skipped.count else ""
    if not config.validation_path:
        if len(everything) < 2:
            kind = "file" if config.source in ("files", "stdlib") else "document"
            raise ValueError(f"{where(config)} holds one {kind} of text only ({min(everything)}{left_out}), "
                             "but two are needed, one to train on and one to hold out: add text, cut this one in two, "
                             "or name held-out text by data.validation_path.")
        return dict(zip(SPLITS, split_groups(sorted(everything), fraction=config.validation_fraction,
                                             seed=config.seed)))
    held = frozenset(group for group in everything if group.startswith(HELD_OUT))
    if not held or held == everything:
        field = "path" if held else "validation_path"
        raise ValueError(f"data.{field}={getattr(config, field)!r} holds no document that passes the filters"
                         f"{left_out}: name text to {'train on' if held else 'hold out'}.")
    return {"train": everything - held, "validation": held}


def prepared_threshold(pieces: Sequence[Piece], config: DataConfig) -> int:
    """Returns what `is_held_out` takes when a corpus is prepared, where no machine knows all its documents.

    Of files the share is exact; of others, such as lines, each is drawn by itself.

    Args:
      pieces: of the corpus.
      config: of one source.
    """
    # Empty files are in no split; where no size is known, all are counted.
    groups = [piece.group for piece in pieces if piece.size] or [piece.group for piece in pieces]
    return split_threshold(groups if all(groups) else None, fraction=config.validation_fraction, seed=config.seed)
