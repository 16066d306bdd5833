"""Finding the newest undamaged checkpoint and reading it. Nothing here writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from mtp_jax.checkpoints import errors, integrity, structure

STATE, EXTRA = "state", "extra"  # the two items of a checkpoint, each a directory
_COMMIT_FILE = "commit_success.txt"  # Orbax's, written just before our manifest


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of looking for a checkpoint."""

    step: int | None  # of the newest undamaged one; None: the directory holds none at all
    damaged: tuple[int, ...]  # newer ones that were passed over


def finished_steps(directory: epath.Path) -> list[int]:
    """Returns the steps that have a finished checkpoint in `directory`, ascending. Their content is not looked at."""
    if not directory.exists():
        return []
    steps = sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    if str(directory).startswith("gs://"):  # a bucket has no rename: a save that still runs has the step's name already
        steps = [step for step in steps if any((directory / str(step) / name).exists()
                                               for name in (_COMMIT_FILE, integrity.MANIFEST))]
    return steps


def newest_undamaged(directory: epath.Path, *, verify: bool) -> Found:
    """Finds the checkpoint to go on from; warns of each damaged one that it passes over.

    Process 0 looks and tells the others, so that all agree and the files are read once.

    Raises:
      CheckpointError: there are checkpoints and each is damaged; or one has a newer format.
    """
    if jax.process_count() == 1:
        return _newest_undamaged(directory, verify=verify)
    from jax.experimental import multihost_utils

    found, error = Found(None, ()), None
    if jax.process_index() == 0:
        try:
            found = _newest_undamaged(directory, verify=verify)
        except errors.CheckpointError as caught:  # the others must hear of it before this process raises
            error = caught
    code = -2 if error else -1 if found.step is None else found.step
    code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
    if error:
        raise error
    if code == -2:
        raise errors.CheckpointError(f"No checkpoint in {directory} can be used: process 0 says why.")
    return Found(None if code == -1 else code, found.damaged)


def _newest_undamaged(directory: epath.Path, *, verify: bool) -> Found:
    """Does the looking of `newest_undamaged` in this process."""
    damaged: dict[int, str] = {}
    for step in reversed(finished_steps(directory)):
        faults = integrity.find_faults(directory / str(step), verify=verify)
        if not faults:
            if damaged:
                logging.warning("Using checkpoint %d, the newest undamaged one in %s.", step, directory)
            return Found(step, tuple(damaged))
        damaged[step] = integrity.describe(faults)
        logging.warning("Checkpoint %d in %s is damaged and not used: %s.", step, directory, damaged[step])
    if damaged:
        listed = "\n  ".join(f"{step}: {text}" for step, text in damaged.items())
        raise errors.CheckpointError(
            f"Every checkpoint in {directory} is damaged:\n  {listed}\n"
            "Restore these files from a backup, or start anew in another workdir.")
    return Found(None, ())


def stored_leaves(checkpoint: epath.Path) -> dict[str, structure.Leaf]:
    """Returns {path: shape and dtype} of the state in a checkpoint, without reading its arrays."""
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointHandler().metadata(checkpoint / STATE).tree
    return {path: structure.Leaf(tuple(leaf.shape), leaf.dtype) for path, leaf in structure.flatten(tree).items()}


def read_extra(checkpoint: epath.Path) -> dict[str, Any]:
    """Returns the facts that were saved beside the state."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return dict(reader.restore(checkpoint / EXTRA, args=ocp.args.JsonRestore()))


def read_arrays(checkpoint: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct | structure.Leaf], *,
                first_rows: bool = False) -> dict[str, Any]:
    """Reads some leaves of a checkpoint's state.

    Args:
      checkpoint: directory of one checkpoint.
      wanted: {path: ShapeDtypeStruct with a sharding} for a jax array laid out so, or {path: Leaf} for a numpy array.
      first_rows: a jax array may be shorter than the stored one and is its first rows then; of parameters with one row
        a head the others are not read, where this version of mtp_jax saved them.

    Returns:
      {path: array}, in the order of `wanted`.
    """
    import orbax.checkpoint as ocp

    def arguments(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype,
                                        strict=not first_rows)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    items = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in wanted.items()}
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(checkpoint / STATE, args=ocp.args.PyTreeRestore(
            item=structure.nest(items), partial_restore=True,
            restore_args=structure.nest({path: arguments(leaf) for path, leaf in wanted.items()})))
    read = structure.flatten(tree)
    return {path: read[path] for path in wanted}
