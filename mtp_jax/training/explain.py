"""What every device holds: a line for each parameter, for `--config.parallel.explain=true`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax

from mtp_jax.training.program import Program
from mtp_jax.training.state import flatten_params

MIB = 2**20


def explain(program: Program) -> str:
    """Returns a table of the train state: shapes, axes, the mesh axes that split them, and bytes on one device.

    Args:
      program: of the run; nothing is computed.

    Returns:
      A line a parameter with the columns
        parameter   its path
        shape       of the whole array, with its dtype
        axes        logical, one for each axis of the shape
        split by    mesh axes larger than 1 that split it, as axis=names of mesh axes; - where every device has it whole
        bytes       of the parameter on one device
        moments     of what the optimizer keeps for it, on one device
      and the totals, beside those of all devices were nothing split.
    """
    mesh = program.layout.mesh
    moments = _moments(program)
    rows: list[Sequence[str]] = [("parameter", "shape", "axes", "split by", "bytes", "moments")]
    axes = flatten_params(program.spec.axes)
    totals = [0, 0]
    for path, leaf in flatten_params(program.state.params).items():
        split = []
        for logical, names in zip(axes[path], _names(leaf)):
            used = [name for name in names if mesh.shape[name] > 1]
            if used:
                split.append(f"{logical}={'+'.join(used)}")
        held = (_bytes_on_device(leaf), sum(map(_bytes_on_device, moments.get(path, ()))))
        totals = [total + part for total, part in zip(totals, held)]
        rows.append((path, f"{'x'.join(map(str, leaf.shape))} {leaf.dtype}", " ".join(axes[path]),
                     " ".join(split) or "-", f"{held[0]:,}", f"{held[1]:,}"))
    rest = program.state_bytes() - sum(totals)
    rows.append(("in all", "", "", "", f"{totals[0]:,}", f"{totals[1]:,}"))
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state))
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "1 device"
    return "\n".join([
        f"on a device (mesh {sizes}), bytes:", *_aligned(rows),
        f"the state is {program.state_bytes():,} bytes a device ({program.state_bytes() / MIB:,.1f} MiB), counters of "
        f"{rest:,} bytes among them; whole it is {whole:,} ({whole / MIB:,.1f} MiB)"])


def _moments(program: Program) -> dict[str, list[Any]]:
    """Returns for each parameter's path what the optimizer keeps of its shape: the leaves under the same names."""
    found: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.opt_state):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        found.setdefault("/".join(names), []).append(leaf)
    return found


def _names(leaf: Any) -> list[tuple[str, ...]]:
    """Returns the mesh axes that split each axis of an array."""
    spec = (*leaf.sharding.spec, *[None] * (len(leaf.shape) - len(leaf.sharding.spec)))
    return [() if part is None else (part,) if isinstance(part, str) else tuple(part) for part in spec]


def _bytes_on_device(leaf: Any) -> int:
    """Returns the bytes of a device's part of an array."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows as lines, columns under each other: texts to the left, the last two, numbers, to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 2
    return ["  ".join(text.rjust(width) if column >= last else text.ljust(width)
                      for column, (text, width) in enumerate(zip(row, widths))) for row in rows]
