"""The row index: packing of documents into rows of exactly L tokens, as arithmetic on lengths.

Documents lie end to end in one stream and row r is stream[r L : (r + 1) L]. Nothing is packed ahead of time and any row
is found in O(log documents), so that the place in the data is one number and resuming costs nothing. Rows do not depend
on the number of prediction heads: targets lie inside the row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

Row = dict[str, np.ndarray]


class RowSource(Protocol):
    """Random access to rows, in memory (`Rows`) or on disk (`PreparedRows`); pickles to worker processes."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, padding left out."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Row:
        """Returns {"tokens", "segments", "positions"}, each [L] int32; a row past the last is all padding."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Random access to the rows of a token stream.

    Attributes:
      tokens: [S] ids of all documents end to end, BOS and EOS included; any integer dtype, may be an np.memmap.
      bounds: [documents + 1] int64, document d is tokens[bounds[d]:bounds[d + 1]]; may be an np.memmap.
      seq_len: L, tokens a row.
      pad_id: fills the last row.
    """

    tokens: np.ndarray
    bounds: np.ndarray
    seq_len: int
    pad_id: int

    def __post_init__(self):
        if len(self.bounds) < 2 or self.bounds[0] != 0 or self.bounds[-1] != len(self.tokens):
            raise ValueError(f"bounds must run from 0 to the {len(self.tokens)} tokens of the stream and hold at least "
                             "one document.")
        if np.any(np.diff(self.bounds) < 1):
            raise ValueError("bounds must rise: a document has at least one token (BOS).")

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream."""
        return len(self.tokens)

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.seq_len)

    def __getitem__(self, row: int) -> Row:
        """Returns one row.

        Args:
          row: from 0; rows past the last are all padding.

        Returns:
          {"tokens", "segments", "positions"}, each [L] int32: ids; number of the document piece in the row from 1, 0
          for padding; place in the piece from 0. A document that goes on from the row before starts a new piece at 0.
        """
        start = row * self.seq_len
        stop = min(start + self.seq_len, len(self.tokens))
        first = np.searchsorted(self.bounds, start, side="right") - 1
        end = np.searchsorted(self.bounds, stop, side="left")
        return make_row(self.tokens[start:stop], self.bounds[first:end] - start, seq_len=self.seq_len,
                        pad_id=self.pad_id)


def make_row(tokens: np.ndarray, begins: np.ndarray, *, seq_len: int, pad_id: int) -> Row:
    """Returns a row as `Rows` gives it.

    Args:
      tokens: [count] ids in the row, none for a row that is all padding.
      begins: where the documents in the row begin, counted from its start; the first one at or before it.
      seq_len: L.
      pad_id: fills the row up.
    """
    row = {"tokens": np.full(seq_len, pad_id, np.int32), "segments": np.zeros(seq_len, np.int32),
           "positions": np.zeros(seq_len, np.int32)}
    count = len(tokens)
    if count:
        edges = np.append(begins, count)  # where pieces begin in the row, then its end
        edges[0] = 0
        lengths = np.diff(edges)
        row["tokens"][:count] = tokens
        row["segments"][:count] = np.repeat(np.arange(1, len(edges)), lengths)
        row["positions"][:count] = np.arange(count) - np.repeat(edges[:-1], lengths)
    return row


def build_rows(documents: Sequence[np.ndarray], *, bos_id: int, eos_id: int, pad_id: int, seq_len: int,
               dtype: type = np.int32) -> Rows:
    """Lays documents end to end, each as BOS + its tokens + EOS.

    Args:
      documents: ids [tokens] of each document, in the order of the stream; may be empty arrays.
      bos_id: put before each document.
      eos_id: put after each document.
      pad_id: fills the last row.
      seq_len: L, tokens a row.
      dtype: of the stream in memory.

    Returns:
      The rows of the stream.
    """
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) + 2 for document in documents], out=bounds[1:])
    tokens = np.empty(bounds[-1], dtype)
    for start, stop, document in zip(bounds[:-1], bounds[1:], documents):
        tokens[start] = bos_id
        tokens[start + 1:stop - 1] = document
        tokens[stop - 1] = eos_id
    return Rows(tokens=tokens, bounds=bounds, seq_len=seq_len, pad_id=pad_id)
