"""From rows to batches: shuffled, repeated, shared out to hosts, and resumed from one number.

The global run is one endless sequence of rows: all training rows in a shuffled order, then all of them in another, and
so on. Batch s of a run that starts at row r0 is rows [r0 + s B, r0 + (s + 1) B). Of each batch a host reads the rows
that its devices hold (mtp_jax/parallel/rows.py), so that the global array equals the batch that one host would read.
The place in the data is therefore the number of the next row alone, whatever the number of hosts, their devices and
workers was or will be.

Batches are formed *before* Grain deals work out to worker processes. The other way round each worker would fill batches
from its own rows, and the order would depend on their number.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from mtp_jax.data.mixture import Mixture
from mtp_jax.data.rows import RowSource
from mtp_jax.data.split import derived_seed

PREFETCHED_BATCHES = 8  # read ahead of the train step, in all

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Share:
    """One host's rows of every batch, one after the other; Grain's selection map, and pickled to worker processes.

    Attributes:
      start: number of the global row that the first batch begins with.
      batch_size: B, rows of a batch over all hosts.
      rows: of a batch, those that the host reads.
    """

    start: int
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return (sys.maxsize - self.start) // self.batch_size * len(self.rows)

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Returns (0, the only dataset to choose from; the global row)."""
        batch, row = divmod(number, len(self.rows))
        return 0, self.start + batch * self.batch_size + self.rows[row]


class TrainBatches(Iterator[Batch]):
    """An iterator of one host's share of the training batches; endless, unless a mixture limits epochs.

    Each item is {"tokens", "segments", "positions"}, int32 [rows of the host, L]. `close()`, or leaving a `with`
    block, stops its thread or its worker processes. Worker processes are spawned, so the script that asks for them
    needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, rows: RowSource | Mixture, *, batch_size: int, seed: int, share: Iterable[int] | None = None,
                 next_row: int = 0, num_workers: int = 0):
        """Starts at global row `next_row`, without reading what lies before it.

        Args:
          rows: the rows of one epoch, or a mixture of several sources.
          batch_size: B, rows of a batch over all hosts.
          seed: of the order; every epoch has another.
          share: which rows of a batch this host reads, from 0, ascending; None: all B.
          next_row: that of a saved state; 0 starts anew.
          num_workers: processes that form batches; 0: one thread of this process.

        Raises:
          ValueError: a number is out of range.
        """
        held = check_share(share, batch_size)
        if next_row < 0:
            raise ValueError(f"next_row={next_row} must be at least 0.")
        import grain  # slow to import, and only a run that reads data needs it

        self._batch_size = batch_size
        self._next_row = next_row
        self._copy = num_workers > 0
        self._mixture = rows if isinstance(rows, Mixture) else Mixture.create({"rows": rows})
        self._length = self._mixture.length
        order = self._mixture.dataset(seed)
        read = grain.MapDataset.select_from_datasets([order], _Share(next_row, batch_size, held))
        # Without drop_remainder Grain rounds the endless length up, past what Python can index, for batches of one row.
        batches = read.batch(len(held), drop_remainder=True)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=-(-PREFETCHED_BATCHES // max(num_workers, 1)))
        dataset = batches.to_iter_dataset(ahead)
        if num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads its own here; a notebook parsed none
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), _start_worker)
        self._iterator: Iterator[Batch] | None = iter(dataset)
        self._stop = weakref.finalize(self, self._iterator.close)  # also runs where an error ends the process

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise ValueError("these training batches were closed: ask the corpus for new ones at state()['next_row'].")
        if self._length is not None and self._next_row + self._batch_size > self._length:
            raise ValueError(self._mixture.too_short(self._batch_size))
        batch = next(self._iterator)
        self._next_row += self._batch_size
        # Workers hand over shared memory; a copy is 0.01 ms and leaves nothing to unlink when Python shuts down.
        return {name: np.array(values) for name, values in batch.items()} if self._copy else batch

    def state(self) -> dict[str, int]:
        """Returns {"next_row": the first global row that no `next()` has returned yet}, for the checkpoint."""
        return {"next_row": self._next_row}

    def close(self) -> None:
        """Stops reading ahead; `next()` then raises."""
        self._stop()
        self._iterator = None

    def __enter__(self) -> TrainBatches:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Makes a worker process live exactly as long as the process that trains."""
    del worker_index, worker_count
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group, and the trainer still reads and saves
        signal.signal(number, signal.SIG_IGN)

    def exit_with(trainer: Any) -> None:
        trainer.join()
        os._exit(1)  # the trainer was killed: Grain's workers would wait for it for ever

    threading.Thread(target=exit_with, args=(multiprocessing.parent_process(),), daemon=True).start()


@dataclasses.dataclass(frozen=True)
class ValidationBatches(Sequence[Batch]):
    """One host's share of the validation batches, the same at every pass.

    The batches hold a fixed random choice of the validation rows, each row at most once. Where the split has fewer rows
    than the batches asked for, there are fewer batches, and rows of padding alone (segment 0, so in no mean) fill the
    last one: nothing is counted twice, and every batch has at least one real row on some host.

    Attributes:
      rows: the validation rows.
      order: [batches x B] int64, numbers of the rows to read; a number past the last row stands for padding.
      batch_size: B, rows of a batch over all hosts.
      share: of a batch, the rows that this host reads.
    """

    rows: RowSource
    order: np.ndarray
    batch_size: int
    share: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(f"validation batch {index} of {len(self)}")
        start = index % len(self) * self.batch_size
        rows = [self.rows[self.order[start + row]] for row in self.share]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def validation_batches(rows: RowSource, *, batch_size: int, seed: int, max_batches: int,
                       share: Iterable[int] | None = None) -> ValidationBatches:
    """Returns the validation batches of one host.

    Args:
      rows: the validation rows.
      batch_size: B, rows of a batch over all hosts.
      seed: of the choice of rows.
      max_batches: batches of a pass, if there are rows for as many.
      share: which rows of a batch this host reads, from 0, ascending; None: all B.

    Raises:
      ValueError: a number is out of range.
    """
    import grain

    held = check_share(share, batch_size)
    chosen = min(len(rows), max_batches * batch_size)
    shuffled = grain.MapDataset.range(len(rows)).shuffle(seed=derived_seed(seed, "validation rows"))
    order = np.full(-(-chosen // batch_size) * batch_size, len(rows), np.int64)
    order[:chosen] = [shuffled[i] for i in range(chosen)]
    return ValidationBatches(rows, order, batch_size, held)


def check_share(share: Iterable[int] | None, batch_size: int) -> tuple[int, ...]:
    """Returns the rows of a batch that one host reads, as Python's integers.

    Raises:
      ValueError: they are none, not ascending, or not among the B rows of a batch.
    """
    rows = tuple(range(batch_size)) if share is None else tuple(int(row) for row in share)
    if not rows or list(rows) != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= batch_size:
        raise ValueError(f"a host cannot read the rows {list(rows)} of data.batch_size={batch_size}: give ascending "
                         f"numbers from 0 to {batch_size - 1}, at least one.")
    return rows
