"""Starting a run from the parameters of another: its trunk, and the heads that one names.

    source = load_params("runs/code_bytes", like=params)
    params = initialise_from(source.params, params, heads=(1, 2, "fresh"))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from mtp_jax.checkpoints import errors, integrity, reading, structure
from mtp_jax.config import nearest
from mtp_jax.model.heads import get_head_kind

FRESH = "fresh"  # the word for a head that keeps its random initial values
_GATE = "gate/"  # the exit gate, which only a trunk with several loops has
_PARAMS = structure.PARAMS
_KIND = "parallel"  # where a caller, or what was saved, names no kind


@dataclasses.dataclass(frozen=True)
class LoadedParams:
    """The parameters of a checkpoint, without its optimizer state."""

    params: dict[str, Any]  # nested dict of arrays
    step: int
    extra: dict[str, Any]  # what was saved beside the state, among it the config
    path: epath.Path  # of the checkpoint


def load_params(path: epath.PathLike, *, like: Any = None, heads: int | None = None,
                verify: bool = True) -> LoadedParams:
    """Reads the parameters of another run.

    Args:
      path: a workdir (its newest undamaged checkpoint), its `checkpoints`, or one `checkpoints/<step>`.
      like: parameters, or their ShapeDtypeStructs, whose leaves' shardings those of the same path take; one that does
        not divide the stored shape (another number of heads) is replicated over the same devices instead. None: numpy
        arrays on the host, or with `heads` jax arrays on one device.
      heads: read the parameters of the first so many heads only, and of their unembeddings where each has its own; the
        others are neither read nor held. None: of all. (A checkpoint of before this could be asked for is read in
        larger pieces; only those heads are held.)
      verify: compare every file with its checksum first.

    Returns:
      The parameters with the dtypes and shapes that are stored.

    Raises:
      CheckpointError: there is no checkpoint, it is damaged (for a workdir: each is), or it holds no parameters.
      ValueError: `heads` is below 1, or more than there are.
    """
    checkpoint = locate(path, verify=verify)
    stored = {name.removeprefix(_PARAMS): leaf for name, leaf in reading.stored_leaves(checkpoint).items()
              if name.startswith(_PARAMS)}
    if not stored:
        raise errors.CheckpointError(f"The checkpoint {checkpoint} holds no parameters (nothing under {_PARAMS}): name "
                                     "a checkpoint that mtp_jax wrote.")
    if heads is not None:
        kind = reading.read_extra(checkpoint).get("config", {}).get("model", {}).get("head_kind", _KIND)
        stored = _first_heads(stored, heads, get_head_kind(kind).first_own)
    wanted: dict[str, Any] = dict(stored)
    if like is not None or heads is not None:
        targets = structure.flatten(like)
        wanted = {name: structure.placed(leaf, _sharding(leaf, targets.get(name))) for name, leaf in stored.items()}
    arrays = reading.read_arrays(checkpoint, {_PARAMS + name: leaf for name, leaf in wanted.items()},
                                 first_rows=heads is not None)
    params = structure.nest({name.removeprefix(_PARAMS): array for name, array in arrays.items()})
    return LoadedParams(params, int(checkpoint.name), reading.read_extra(checkpoint), checkpoint)


def load_extra(path: epath.PathLike) -> dict[str, Any]:
    """Returns what was saved beside the state of the newest undamaged checkpoint; `path` as for `load_params`."""
    return reading.read_extra(locate(path, verify=False))


def initialise_from(source: Mapping[str, Any], target: Mapping[str, Any], *, heads: Sequence[Any] = (),
                    head_kind: str = _KIND) -> dict:
    """Returns the new model's parameters, taken from another model's.

    All but the heads must match by path, shape and dtype. The heads, and an unembedding of their own, are mapped. An
    exit gate that the source lacks keeps its initial values, with even chances after each loop; one that the new model
    has no use for is left behind. Either is told in the log.

    Args:
      source: parameters of the other model, nested dict of arrays.
      target: freshly initialised parameters of the new model, with its shardings; ShapeDtypeStructs do if no head and
        no exit gate is fresh.
      heads: for each head of the new model the source's head, from 1, or "fresh" for the initial values of `target`.
        Empty: heads 1, 2, ... of the source.
      head_kind: of both; it says from which head on they have parameters.

    Returns:
      Nested dict like `target`.

    Raises:
      ValueError: `heads` has a wrong length, number or word.
      CheckpointMismatch: a leaf is missing, too many, misshapen or mistyped.
    """
    old, new = structure.flatten(source), structure.flatten(target)
    first_own = get_head_kind(head_kind).first_own
    rows = _match(old, new, heads, first_own)
    gates = [any(name.startswith(_GATE) for name in leaves) for leaves in (old, new)]
    if gates == [False, True]:
        logging.warning("The source of init_from has no exit gate, for it runs its trunk once: the gate starts fresh, "
                        "with even chances to leave after each loop.")
    elif gates == [True, False]:
        logging.warning("The source of init_from has an exit gate and model.loops=1 has none: it is left behind.")
    result = {}
    for name, leaf in new.items():
        if name.startswith(_GATE) and name not in old:
            result[name] = _concrete(name, leaf)
        elif not _mapped(name, old, new):
            result[name] = _place(old[name], leaf)
        elif not _used(own := _own_rows(name, rows, first_own)):
            result[name] = _concrete(name, leaf)
        else:
            result[name] = _map_heads(name, old[name], leaf, own)
    return structure.nest(result)


def check_source(path: epath.PathLike, target: Mapping[str, Any], *, heads: Sequence[Any], head_kind: str) -> None:
    """Checks that a model can start from another run's parameters, without reading an array.

    Args:
      path: as for `load_params`.
      target: parameters of the new model, or their ShapeDtypeStructs.
      heads: as for `initialise_from`.
      head_kind: of the new model; heads of another kind may have the same shapes and would mean something else.

    Raises:
      ValueError: as `load_params` (but for the checksums) and `initialise_from`, or the head kinds differ.
    """
    checkpoint = locate(path, verify=False)
    stored = {name.removeprefix(_PARAMS): leaf for name, leaf in reading.stored_leaves(checkpoint).items()
              if name.startswith(_PARAMS)}
    new, first_own = structure.flatten(target), get_head_kind(head_kind).first_own
    kind = reading.read_extra(checkpoint).get("config", {}).get("model", {}).get("head_kind", head_kind)
    if kind != head_kind and (not heads or any(entry != FRESH for entry in heads)):
        raise ValueError(f"init_from.path={os.fspath(path)!r} holds {kind!r} heads and model.head_kind={head_kind!r}: "
                         f"set model.head_kind={kind!r}, or every entry of init_from.heads to {FRESH!r}.")
    _match(stored, new, heads, first_own)


def _absolute(path: epath.PathLike) -> epath.Path:
    """Returns the path as Orbax reads it."""
    path = epath.Path(path).expanduser()
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _mapped(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tells whether a parameter has one entry a head, which init_from.heads maps."""
    return all(structure.has_head_axis(name, leaf) for leaf in (old.get(name), new.get(name)) if leaf is not None)


def _own_rows(name: str, rows: list[int | None], first_own: int) -> list[int | None]:
    """Returns `rows` as a parameter counts them: one entry a head that has it, each the source's row of it."""
    skipped = first_own - 1 if name.startswith("heads/") else 0  # unembeddings have a row for every head
    return [None if row is None else row - skipped for row in rows[skipped:]]


def _used(rows: list[int | None]) -> bool:
    """Tells whether anything is taken from the source."""
    return any(row is not None for row in rows)


def _match(old: Mapping[str, Any], new: Mapping[str, Any], heads: Sequence[Any], first_own: int) -> list[int | None]:
    """Checks that the source's leaves fit the new model's; returns what `_resolve_heads` does."""
    rows = _resolve_heads(tuple(heads), _count_heads(old, first_own), _count_heads(new, first_own), first_own)
    _check_trunk(old, new)
    strict_old, strict_new = ({name: leaf for name, leaf in leaves.items()
                               if not name.startswith(_GATE) or (name in old and name in new)} for leaves in (old, new))
    for leaves in (strict_old, strict_new):
        for name in [name for name in leaves if _mapped(name, old, new)]:
            if not _used(_own_rows(name, rows, first_own)):  # not even that the source has heads matters
                del leaves[name]
            else:
                leaves[name] = structure.Leaf(tuple(leaves[name].shape[1:]), leaves[name].dtype)
    structure.check_same(
        strict_old, strict_new, where="The source of init_from",
        remedy="Only the number of heads may differ (heads are compared here without their leading axis): set the "
               "other fields of config.model (d_model, unembedding, tie_embedding, qk_norm, param_dtype, ...) as in "
               "the source's config.json.")
    return rows


def locate(path: epath.PathLike, *, verify: bool) -> epath.Path:
    """Returns the directory of the undamaged checkpoint that `path` means; see `load_params`."""
    path = _absolute(path)
    if path.name.isdecimal() and any((path / name).exists() for name in (reading.STATE, integrity.MANIFEST)):
        faults = integrity.find_faults(path, verify=verify)
        if faults:
            raise errors.CheckpointError(
                f"The checkpoint {path} is damaged: {integrity.describe(faults)}. Restore it from a backup, or name "
                "another step, or the workdir to have the newest undamaged one.")
        return path
    directory = path / "checkpoints" if (path / "checkpoints").exists() else path
    found = reading.newest_undamaged(directory, verify=verify)
    if found.step is None:
        raise errors.CheckpointError(f"There is no checkpoint in {path}: init_from.path must be the workdir of a run "
                                     "that has saved, or one of its checkpoints/<step>.")
    return directory / str(found.step)


def _sharding(stored: structure.Leaf, target: Any) -> Any:
    """Returns the target's sharding if it fits the stored shape, else full copies on the same devices."""
    sharding = getattr(target, "sharding", None)
    if sharding is None:
        return None
    if len(stored.shape) == len(target.shape) and _divides(sharding, stored.shape):
        return sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.sharding.SingleDeviceSharding(min(sharding.device_set, key=lambda device: device.id))


def _divides(sharding: Any, shape: tuple[int, ...]) -> bool:
    """Tells whether a sharding fits a shape, which it says by raising only."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def _first_heads(stored: Mapping[str, structure.Leaf], heads: int, first_own: int) -> dict[str, structure.Leaf]:
    """Returns the leaves with the first so many entries of those that have one a head; without those of no entry."""
    there = _count_heads(stored, first_own)
    if not 1 <= heads <= there:
        raise ValueError(f"heads={heads}, but the checkpoint has {there}: ask for 1 to {there}.")
    return structure.first_heads(stored, heads, first_own)


def _count_heads(leaves: Mapping[str, Any], first_own: int) -> int:
    """Returns N, by the leading axis of the heads' parameters; 0 where head 1 should have some and there are none."""
    own = next((leaf.shape[0] for name, leaf in leaves.items() if name.startswith("heads/")), 0)
    return own + first_own - 1


def _resolve_heads(heads: tuple[Any, ...], old: int, new: int, first_own: int) -> list[int | None]:
    """Returns for each head of the new model the source's head from 0, or None for a fresh one."""
    if not heads:
        if new > old:
            example = tuple(range(1, old + 1)) + (FRESH,) * (new - old)
            raise ValueError(f"init_from.heads=() takes the source's heads in order, but the source has {old} and "
                             f"model.num_heads={new}: name the new ones, as in init_from.heads={example}.")
        return list(range(new))
    if len(heads) != new:
        raise ValueError(f"init_from.heads={heads} has {len(heads)} entries for model.num_heads={new}: give one for "
                         f"each head of the new model, a number from 1 to {old} or {FRESH!r}.")
    rows: list[int | None] = []
    for number, entry in enumerate(heads, 1):
        if isinstance(entry, str) and entry.isdecimal():
            entry = int(entry)  # a flag cannot mix numbers and words
        if entry == FRESH:
            rows.append(None)
        elif isinstance(entry, str):
            raise ValueError(f"init_from.heads={heads} holds {entry!r}, which is neither a number nor {FRESH!r}."
                             f"{nearest(entry, (FRESH,))}")
        elif isinstance(entry, bool) or not isinstance(entry, int) or not 1 <= entry <= old:
            raise ValueError(f"init_from.heads={heads} holds {entry!r}, but the source's heads are numbered from 1 to "
                             f"{old}: use one of these, or {FRESH!r} for random initial values.")
        elif entry != number and min(entry, number) < first_own:
            raise ValueError(f"init_from.heads={heads} takes head {number} from head {entry}, but of this kind only "
                             f"heads from {first_own} on have parameters: give {first_own - 1} at place "
                             f"{first_own - 1}, and a number from {first_own} or {FRESH!r} after it.")
        else:
            rows.append(entry - 1)
    return rows


def _check_trunk(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises CheckpointMismatch where the trunks differ in depth, which follows from other fields."""
    depths = [next((leaf.shape[0] for name, leaf in leaves.items() if name.startswith("trunk/")), 0)
              for leaves in (old, new)]
    if depths[0] == depths[1]:
        return
    more = depths[0] - depths[1]
    change = f"raise model.extra_trunk_layers or model.num_layers by {more}" if more > 0 else \
        f"lower model.num_layers (or model.extra_trunk_layers) by {-more}"
    raise errors.CheckpointMismatch(
        f"The source's trunk has {depths[0]} layers and the new model's {depths[1]}: model.num_layers counts trunk and "
        f"heads together, so that another model.num_heads changes the trunk. To make them equal, {change}.")


def _concrete(name: str, leaf: Any) -> Any:
    """Returns `leaf`, which must be an array."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"What starts {FRESH} needs initial values for {name}: pass initialised parameters as target.")
    return leaf


def _place(value: Any, target: Any) -> Any:
    """Returns `value` laid out like `target`."""
    sharding = getattr(target, "sharding", None)
    return np.asarray(value) if sharding is None and isinstance(target, np.ndarray) else jax.device_put(value, sharding)


def _map_heads(name: str, old: Any, new: Any, rows: Sequence[int | None]) -> Any:
    """Returns [N, ...] with each head taken from `old` [N', ...] or, if fresh, left as in `new`."""
    taken = np.array([0 if row is None else row for row in rows])
    fresh = np.array([row is None for row in rows]).reshape(-1, *[1] * (len(new.shape) - 1))
    if isinstance(new, np.ndarray):
        return np.where(fresh, new, np.asarray(old)[taken])
    sharding = getattr(new, "sharding", None)
    if not fresh.any():
        return jax.jit(lambda a: jnp.take(a, taken, axis=0), out_shardings=sharding)(old)
    _concrete(name, new)
    return jax.jit(lambda a, b: jnp.where(fresh, b, jnp.take(a, taken, axis=0)), out_shardings=sharding)(old, new)
