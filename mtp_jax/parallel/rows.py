"""Which rows of a batch each process reads: those that its devices hold.

Processes whose devices hold the same rows (another part of the model, or of the positions) read the same ones. The
rows of a process need not lie together: that is up to the order of the devices in the mesh, which on a TPU follows its
wires.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


def rows_of_processes(sharding: Sharding, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Returns the rows that the devices of each process hold.

    Args:
      sharding: of a global array whose first axis is rows; on devices that exist, or on those of a topology.
      shape: of the global array.

    Returns:
      {process: ascending numbers of its rows, int64}, in the order of the processes.

    Raises:
      ValueError: two processes would read a different number of rows, or share some of their rows and not the others.
    """
    held: dict[int, set[tuple[int, int]]] = {}
    indices: Mapping[Any, Any] = sharding.devices_indices_map(shape)
    for device, index in indices.items():
        start, stop, _ = index[0].indices(shape[0])
        held.setdefault(device.process_index, set()).add((start, stop))
    rows = {process: np.unique(np.concatenate([np.arange(*part) for part in held[process]]))
            for process in sorted(held)}
    readers: dict[int, tuple[int, np.ndarray]] = {}  # row -> the first process that reads it, and all its rows
    (first, share), *others = rows.items()
    for process, own in rows.items():
        for row in own:
            other, theirs = readers.setdefault(int(row), (process, own))
            if not np.array_equal(theirs, own):
                raise _uneven(shape[0], rows, other, process)
    for process, own in others:
        if len(own) != len(share):
            raise _uneven(shape[0], rows, first, process)
    return rows


def local_part(index: slice, rows: np.ndarray, num_rows: int) -> slice:
    """Returns where the rows of one device lie among those of its process.

    Args:
      index: the device's rows of the global array.
      rows: ascending numbers of all rows of the process.
      num_rows: rows of the global array.
    """
    start, stop, _ = index.indices(num_rows)
    first, end = np.searchsorted(rows, (start, stop))
    return slice(int(first), int(end))


def put_rows(local: np.ndarray, sharding: Sharding, rows: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """Makes a global array of the rows that this process has read; no process holds the others'.

    Args:
      local: [len(rows), ...], whole rows, also where the devices hold parts of them.
      sharding: of the global array.
      rows: ascending numbers of the rows in `local`.
      shape: of the global array.
    """
    def part(index: Any) -> np.ndarray:
        return local[(local_part(index[0], rows, shape[0]), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)


def _uneven(batch_size: int, rows: dict[int, np.ndarray], first: int, second: int) -> ValueError:
    """Returns the error of two processes that cannot share out the rows."""
    return ValueError(
        f"parallel.mesh does not share out the rows of data.batch_size={batch_size} evenly over {len(rows)} processes: "
        f"process {first} would read {_ranges(rows[first])} and process {second} {_ranges(rows[second])}. Choose data "
        f"and fsdp so that their product divides {len(rows)}, or is a multiple of it.")


def _ranges(rows: np.ndarray) -> str:
    """Returns "rows 0-3 and 8-11"."""
    parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return "rows " + " and ".join(f"{part[0]}-{part[-1]}" for part in parts)
