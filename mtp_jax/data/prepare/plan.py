"""Which documents go into which shard, decided before anything is read.

The plan depends on the corpus and the settings alone, not on the number of processes or machines, and every shard can
be written on its own: the runners (this machine's processes, or Beam) only decide who writes which when.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mtp_jax.config import DataConfig
from mtp_jax.data.manifest import FORMAT
from mtp_jax.data.reading import find_pieces, held_out, prepared_threshold, where
from mtp_jax.data.sources import Piece
from mtp_jax.data.split import shuffled_names
from mtp_jax.data.tokenizer import build_tokenizer

NUM_SHARDS = 64  # aimed at: enough to keep the processes of one machine busy to the end
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 4 * 10**6, 128 * 10**6  # of the source; one shard is in memory at a time
UNKNOWN_SIZE = 8192  # bytes that a document counts for, where the source does not say how large it is

# Fields of the config that decide the output, beside the tokenizer, of which the content does and not the name.
FIELDS = ("source", "path", "field", "validation_path", "validation_fraction", "extensions", "min_bytes", "max_bytes",
          "drop_duplicates", "skip_invalid", "seed")


@dataclasses.dataclass(frozen=True)
class NumberedPiece:
    """A piece and its place among all pieces of the corpus.

    Attributes:
      number: pieces of validation_path come first, then those of path, each by name. Of documents with the same
        content, the one at the lowest (number, place in the piece) is kept.
      piece: of the source.
      size: bytes on disk that it counts for.
    """

    number: int
    piece: Piece
    size: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is written in one go.

    Attributes:
      index: from 0.
      split: "train" or "validation" that all documents belong to; "" where each document's group decides.
      pieces: to read, in this order.
    """

    index: int
    split: str
    pieces: tuple[NumberedPiece, ...]

    @property
    def size(self) -> int:
        """Bytes on disk of its pieces."""
        return sum(piece.size for piece in self.pieces)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every shard needs to know of the plan; small, to go along with each of them to another process.

    Attributes:
      config: of one source.
      num_shards: of the plan.
      threshold: of the split; see `is_held_out`.
      facts: everything that decides the output, as JSON: fields of the config, tokenizer, format, pieces.
    """

    config: DataConfig
    num_shards: int
    threshold: int
    facts: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hex sha256 of `facts`."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Plan:
    """All shards of a corpus.

    Attributes:
      settings: that all shards share.
      shards: by index.
    """

    settings: Settings
    shards: tuple[Shard, ...]

    @property
    def hash(self) -> str:
        """Hex sha256 over everything that decides the output."""
        return self.settings.hash

    @property
    def size(self) -> int:
        """Bytes on disk of all shards."""
        return sum(shard.size for shard in self.shards)


def make_plan(config: DataConfig, *, min_shard_bytes: int = MIN_SHARD_BYTES,
              max_shard_bytes: int = MAX_SHARD_BYTES) -> Plan:
    """Lists the source and shares its pieces out to shards, by a hash of their names.

    Args:
      config: of one source; its filters, split, tokenizer and seed.
      min_shard_bytes: a shard holds so much of the source, but for the last.
      max_shard_bytes: and about so much at most; a piece is never cut.

    Raises:
      ValueError: the source or the tokenizer is unknown, the path names nothing, or a setting is out of range.
    """
    if config.mixture:
        raise ValueError("data.mixture is not prepared as one: prepare each source into a folder of its own, and name "
                         "the folders in the mixture.")
    config.validate(num_heads=0)
    tokenizer = build_tokenizer(config)
    pieces = {"": find_pieces(config)}
    other = held_out(config)
    if other:
        pieces = {"validation": find_pieces(other), "train": pieces[""]}
    if not any(pieces.values()):
        raise ValueError(f"{where(config)} is empty: name a corpus of text.")
    numbered: dict[str, list[NumberedPiece]] = {}
    start = 0
    for split, found in pieces.items():
        numbered[split] = [NumberedPiece(start + i, piece, piece.size or UNKNOWN_SIZE) for i, piece in enumerate(found)]
        start += len(found)
    everything = [piece for of_split in numbered.values() for piece in of_split]
    size = sum(piece.size for piece in everything)
    target = min(max(size // NUM_SHARDS, min_shard_bytes), max_shard_bytes)
    shards: list[Shard] = []
    for split, of_split in numbered.items():
        by_name = {piece.piece.name: piece for piece in of_split}
        order = shuffled_names(by_name, seed=config.seed, purpose="pieces")
        for group in _groups([by_name[name] for name in order], target):
            shards.append(Shard(len(shards), split, tuple(group)))
    listing = hashlib.sha256()
    for piece in everything:
        listing.update(json.dumps([piece.piece.name, piece.piece.size]).encode() + b"\n")
    facts = {"format": FORMAT, **{name: getattr(config, name) for name in FIELDS},
             "extensions": list(config.extensions), "tokenizer": tokenizer.hash, "shard_bytes": target,
             "pieces": f"{len(everything):,} pieces of {size:,} bytes ({listing.hexdigest()[:16]})"}
    threshold = prepared_threshold([piece.piece for piece in everything], config)
    return Plan(Settings(config, len(shards), threshold, facts), tuple(shards))


def differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns what differs between the facts of two plans in words, "" for nothing."""
    names = [name for name in now if name != "shard_bytes" and then.get(name) != now[name]]
    return "; ".join(f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in names) or (
        "" if then == now else "the size of shards differs")


def _groups(pieces: Sequence[NumberedPiece], target: int) -> list[list[NumberedPiece]]:
    """Cuts a list of pieces where about `target` bytes are reached, into parts of about the same size."""
    total = sum(piece.size for piece in pieces)
    count = max(round(total / target), 1)
    groups: list[list[NumberedPiece]] = []
    end, done = -1, 0
    for piece in pieces:
        part = min((done + piece.size // 2) * count // max(total, 1), count - 1)  # where its middle lies
        if part > end:
            groups.append([])
            end = part
        groups[-1].append(piece)
        done += piece.size
    return groups
