"""One shard: its pieces read, filtered, split, shuffled, tokenized and written. Any process or machine may do it."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mtp_jax.config import DataConfig
from mtp_jax.data.manifest import RECORD_TOKENS, ShardFile
from mtp_jax.data.prepare.plan import NumberedPiece, Settings, Shard
from mtp_jax.data.reading import SPLITS, Skipped, Text, read_piece
from mtp_jax.data.split import is_held_out, name_digest
from mtp_jax.data.tokenizer import Tokenizer, build_tokenizer, ids_dtype

WORK = "unfinished"  # folder in the output with what is needed until the last shard is done
BATCH_BYTES = 2**20  # of text that is tokenized in one call

Dropped = Mapping[int, frozenset[int]]  # {number of a piece: places of documents in it that are duplicates}
Report = Callable[[int], None]  # is told bytes of the source that were done


@dataclasses.dataclass(frozen=True)
class ShardSplit:
    """What one shard has of one split.

    Attributes:
      file: as the manifest will list it.
      bytes: of text.
      own_groups: documents that are groups of their own.
      groups: hashes of other groups, which may go on in other shards.
    """

    file: ShardFile
    bytes: int
    own_groups: int
    groups: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What `write_shard` wrote; its JSON in the folder marks the shard as done.

    Attributes:
      index: of the shard.
      settings: hash of the plan's settings.
      splits: {"train", "validation"} -> files; a split without documents in this shard is left out.
      skipped: {reason: count}.
      skipped_example: {reason: name of a document}.
    """

    index: int
    settings: str
    splits: dict[str, ShardSplit]
    skipped: dict[str, int]
    skipped_example: dict[str, str]

    def to_json(self) -> str:
        """Returns it as text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> ShardInfo:
        """Returns what `to_json` wrote."""
        content = json.loads(text)
        splits = {name: ShardSplit(**{**split, "file": ShardFile(**split["file"]), "groups": tuple(split["groups"])})
                  for name, split in content["splits"].items()}
        return ShardInfo(**{**content, "splits": splits})


def shard_file(split: str, index: int, count: int) -> str:
    """Returns the name of a shard's file."""
    return f"{split}-{index:05d}-of-{count:05d}.array_record"


def info_file(index: int) -> str:
    """Returns the name, in `WORK`, of the JSON that marks a shard as done."""
    return f"{index:05d}.json"


def lengths_file(split: str, index: int) -> str:
    """Returns the name, in `WORK`, of the lengths (int64) of a shard's documents."""
    return f"{split}-{index:05d}.lengths"


def write_shard(settings: Settings, shard: Shard, dropped: Dropped, output: Any,
                report: Report = lambda done: None) -> ShardInfo:
    """Writes the files of one shard, and last the JSON that marks it as done. Writing it again changes nothing.

    Args:
      settings: of the plan.
      shard: of the plan.
      dropped: documents to leave out as duplicates.
      output: folder of the prepared corpus; a path, may lie in a bucket.
      report: called now and then with the bytes of the source done since.

    Raises:
      ValueError: a document cannot be read or used; names it.
      OSError: the disk is full, or the folder cannot be written.
    """
    from etils import epath

    folder = epath.Path(output)
    tokenizer = _tokenizer(settings.config)
    skipped = Skipped()
    streams = {split: _Stream(tokenizer, settings.config) for split in SPLITS}
    for piece in shard.pieces:
        for place, text in enumerate(_reported(piece, settings.config, skipped, tokenizer, report)):
            if place in dropped.get(piece.number, ()):
                skipped.add("duplicate", text.name)
                continue
            split = shard.split or SPLITS[is_held_out(text.group, threshold=settings.threshold,
                                                      seed=settings.config.seed)]
            streams[split].add(text)
    splits = {}
    for split, stream in streams.items():
        tokens, lengths = stream.lay_out()
        if not len(lengths):
            continue
        name = shard_file(split, shard.index, settings.num_shards)
        with replacing(folder / WORK / lengths_file(split, shard.index)) as path:
            path.write_bytes(lengths.tobytes())
        with replacing(folder / name) as path:
            records = _write_records(path, tokens)
            size = path.stat().st_size
        content = hashlib.sha256(lengths.tobytes())
        content.update(tokens.data)
        splits[split] = ShardSplit(
            ShardFile(name, len(lengths), len(tokens), records, size, content.hexdigest()), stream.bytes,
            stream.own_groups, tuple(sorted(stream.groups)))
    info = ShardInfo(shard.index, settings.hash, splits, dict(sorted(skipped.count.items())),
                     dict(sorted(skipped.example.items())))
    with replacing(folder / WORK / info_file(shard.index)) as path:
        path.write_text(info.to_json())
    return info


def read_info(settings: Settings, shard: Shard, output: Any) -> ShardInfo | None:
    """Returns what is known of a shard that is done, or None for one that is to be written.

    A file that is missing or has another size than was written (a machine that lost power) makes it undone.
    """
    from etils import epath

    folder = epath.Path(output)
    path = folder / WORK / info_file(shard.index)
    if not path.exists():
        return None
    info = ShardInfo.from_json(path.read_text())
    sizes = {folder / split.file.file: split.file.size for split in info.splits.values()}
    sizes |= {folder / WORK / lengths_file(name, shard.index): 8 * split.file.documents
              for name, split in info.splits.items()}
    whole = info.settings == settings.hash and all(
        path.exists() and path.stat().length == size for path, size in sizes.items())
    return info if whole else None


def digests(settings: Settings, shard: Shard, report: Report = lambda done: None) -> dict[int, bytes]:
    """Returns {number of a piece: 16 bytes for each document that passes the filters, in order} to find duplicates.

    Args:
      settings: of the plan.
      shard: of the plan.
      report: see `write_shard`.

    Raises:
      ValueError: see `write_shard`.
    """
    tokenizer = _tokenizer(settings.config)
    return {piece.number: b"".join(text.digest[:16] for text in _reported(
        piece, settings.config, Skipped(), tokenizer, report)) for piece in shard.pieces}


def find_duplicates(of_pieces: Mapping[int, bytes]) -> dict[int, frozenset[int]]:
    """Returns the places of documents whose content a piece of a lower number, or an earlier place, has.

    Args:
      of_pieces: what `digests` returned for all shards, together.
    """
    seen: set[bytes] = set()
    dropped: dict[int, frozenset[int]] = {}
    for number in sorted(of_pieces):
        joined, places = of_pieces[number], []
        for start in range(0, len(joined), 16):
            digest = joined[start:start + 16]
            if digest in seen:
                places.append(start // 16)
            seen.add(digest)
        if places:
            dropped[number] = frozenset(places)
    return dropped


@contextlib.contextmanager
def replacing(target: Any) -> Iterator[pathlib.Path]:
    """Yields a local path to write to, which then takes the target's place at once; nothing is left of a failure.

    Args:
      target: an epath.Path, local or in a bucket.
    """
    local = "://" not in os.fspath(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(target.parent if local else tempfile.gettempdir())
    path = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        yield path
        if local:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # or a machine that loses power has the name without the content
            path.replace(target)
        else:  # the object is there when it is whole, or has another size than what marks the shard as done says
            with path.open("rb") as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 22)
    finally:
        path.unlink(missing_ok=True)


class _Stream:
    """The documents of one split of a shard: tokens and keys of their order, in few large arrays."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self._tokenizer = tokenizer
        self._dtype = np.dtype(ids_dtype(tokenizer.vocab_size)).newbyteorder("<")  # on disk
        self._config = config
        self._waiting: list[Text] = []  # not tokenized yet
        self._waiting_bytes = 0
        self._tokens: list[np.ndarray] = []
        self._lengths = array.array("q")  # tokens of each document, BOS and EOS not counted
        self._keys = array.array("Q")
        self.bytes = 0
        self.own_groups = 0
        self.groups: set[str] = set()

    def add(self, text: Text) -> None:
        """Takes one document."""
        self.bytes += text.num_bytes
        if text.group == text.name:
            self.own_groups += 1
        else:
            self.groups.add(name_digest(text.group, seed=0, purpose="group").hex()[:32])
        key = name_digest(text.name, seed=self._config.seed, purpose="documents")
        self._keys.append(int.from_bytes(key[:8], "big"))
        self._waiting.append(text)
        self._waiting_bytes += text.num_bytes
        if self._waiting_bytes >= BATCH_BYTES:
            self._tokenize()

    def lay_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens [S] of all documents, shuffled, each as BOS + ids + EOS; lengths [documents] int64)."""
        self._tokenize()
        order = np.argsort(np.frombuffer(self._keys, np.uint64), kind="stable")
        lengths = np.frombuffer(self._lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        from_tokens = np.concatenate(self._tokens) if self._tokens else np.empty(0, self._dtype)
        self._tokens.clear()
        bounds = np.zeros(len(order) + 1, np.int64)
        np.cumsum(lengths[order] + 2, out=bounds[1:])
        tokens = np.empty(bounds[-1], from_tokens.dtype)
        tokens[bounds[:-1]] = self._tokenizer.bos_id
        tokens[bounds[1:] - 1] = self._tokenizer.eos_id
        for to, start, length in zip(bounds.tolist(), starts[order].tolist(), lengths[order].tolist()):
            tokens[to + 1:to + 1 + length] = from_tokens[start:start + length]
        return tokens, (lengths[order] + 2).astype("<i8")

    def _tokenize(self) -> None:
        """Tokenizes what waits."""
        if not self._waiting:
            return
        texts = [text.content for text in self._waiting if isinstance(text.content, bytes)]
        encoded = iter(self._tokenizer.encode_batch(texts))
        tokens = []
        for text in self._waiting:
            ids = next(encoded) if isinstance(text.content, bytes) else text.content
            self._lengths.append(len(ids))
            tokens.append(ids.astype(self._dtype))
        self._tokens.append(np.concatenate(tokens))  # many small arrays would take more memory than their content
        self._waiting.clear()
        self._waiting_bytes = 0


def _reported(piece: NumberedPiece, config: DataConfig, skipped: Skipped, tokenizer: Tokenizer,
              report: Report) -> Iterator[Text]:
    """Yields the documents of a piece and reports, as they are taken, `piece.size` bytes in all."""
    done = 0
    for text in read_piece(piece.piece, config, skipped, takes_bytes=tokenizer.takes_bytes,
                           vocab_size=tokenizer.vocab_size):
        yield text
        step = min(text.num_bytes, piece.size - done)
        done += step
        report(step)
    report(piece.size - done)


def _write_records(path: pathlib.Path, tokens: np.ndarray) -> int:
    """Writes tokens as an ArrayRecord; returns the number of records.

    Raises:
      OSError: the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    records = range(0, len(tokens), RECORD_TOKENS)
    try:
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for start in records:
            writer.write(tokens[start:start + RECORD_TOKENS].tobytes())
        writer.close()
    except RuntimeError as error:  # all that the library raises
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise
    return len(records)


@functools.lru_cache(maxsize=1)
def _tokenizer(config: DataConfig) -> Tokenizer:
    """Returns the tokenizer, which a process builds once."""
    return build_tokenizer(config)
