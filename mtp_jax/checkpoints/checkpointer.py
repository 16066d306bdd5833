"""Saving a run's state without stopping it, and going on from the newest undamaged checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from mtp_jax.checkpoints import errors, integrity, reading, structure
from mtp_jax.config import CheckpointConfig

_TIMEOUT = 2 * 60 * 60  # seconds for a save in the background, the checksums of a large model included
_METADATA = "_CHECKPOINT_METADATA"  # Orbax's facts about a checkpoint
_FORMAT = "format_version"  # key added to `extra`


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read."""

    step: int
    state: Any  # of the type, structure and shardings asked for
    extra: dict[str, Any]  # what was passed to `Checkpointer.save`, and "format_version"


class Checkpointer:
    """Writes and reads the checkpoints of one run; all processes of the run call it alike.

    A save copies the state to the host before it returns, so that the next step may donate the state's buffers, and
    writes in the background. It counts once every file and then the manifest of checksums are written; only then are
    older checkpoints deleted. What a killed save leaves has a temporary name and is removed by the next save.

        with Checkpointer(workdir / "checkpoints", config.checkpoint) as checkpointer:
            restored = checkpointer.restore(abstract_state)  # None in a new workdir
            ...
            checkpointer.save(step, state, extra)  # once the step's loss is known to be finite

    Args:
      directory: where the checkpoints lie, `workdir/checkpoints`; made at the first save.
      config: what is kept, and how it is written.
    """

    def __init__(self, directory: epath.PathLike, config: CheckpointConfig):
        config.validate()
        self._directory = epath.Path(os.path.abspath(directory) if "://" not in str(directory) else directory)
        self._config = config
        self._manager: Any = None
        self._pending: tuple[int, int] | None = None  # step and bytes of a save that nobody has waited for
        self._current: int | None = None  # step saved or restored last
        self._damaged: set[int] = set()  # steps that restore() passed over
        import orbax.checkpoint  # noqa: F401  takes seconds: here, so that the first save does not stop the loop for it

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> bool:
        """Starts to save a state; waits for the save before it.

        Args:
          step: optimizer steps done, the checkpoint's name.
          state: pytree of jax arrays. Its buffers may be donated or deleted once this has returned.
          extra: facts that JSON can hold: data position, config, mesh, versions.

        Returns:
          False if this step is already saved, or is the one restored, and nothing was done; else True.

        Raises:
          CheckpointError: this save, or the one before it, failed (a full disk is named as such), or a later step has
            a checkpoint here. The checkpoints before it are untouched.
          ValueError: `extra` is not JSON, or a leaf of `state` is no array.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step == self._current:
            return False
        leaves = structure.flatten(state)
        try:
            extra = json.loads(json.dumps({**extra, _FORMAT: integrity.FORMAT_VERSION}))
        except TypeError as error:
            raise ValueError(f"The `extra` of checkpoint {step} is not JSON ({error}): pass dicts, lists, strings and "
                             "numbers only.") from error
        manager = self._writer()
        latest = manager.latest_step()
        if latest is not None and latest >= step:
            raise errors.CheckpointError(
                f"Checkpoint {step} cannot be saved: {self._directory} holds checkpoint {latest} already. Restore it "
                "and go on from there, or use another workdir.")
        needed = structure.nbytes(leaves)
        free = _free_bytes(self._directory)
        if free is not None and free < needed:
            logging.warning("Checkpoint %d needs up to %s and %s has %s free: the save may fail.", step,
                            errors.readable_bytes(needed), self._directory, errors.readable_bytes(free))
        try:
            manager.save(step, force=True, args=ocp.args.Composite(**{
                reading.STATE: ocp.args.PyTreeSave(structure.nest(leaves), save_args=_save_args(leaves)),
                reading.EXTRA: ocp.args.JsonSave(extra)}))
        except Exception as error:
            raise self._failure(error, step, needed) from error
        self._pending = (step, needed)
        if not self._config.asynchronous:
            self.wait()
        return True

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          CheckpointError: it failed.
        """
        if self._pending is None:
            return
        step, needed = self._pending
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._pending = None
            raise self._failure(error, step, needed) from error
        self._current, self._pending = step, None  # only now, for Ctrl-C may end the waiting

    def close(self) -> None:
        """Waits for the last save and ends the threads that write.

        Raises:
          CheckpointError: the last save failed.
        """
        self.wait()  # a failed save has closed the manager already
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def steps(self) -> list[int]:
        """Returns the steps with a finished checkpoint, ascending; a save that still runs is not among them."""
        return reading.finished_steps(self._directory)

    def latest_step(self) -> int | None:
        """Returns the last of `steps()`, or None."""
        return max(self.steps(), default=None)

    def restore(self, abstract_state: Any) -> Restored | None:
        """Reads the newest undamaged checkpoint.

        A damaged one is named in a warning and the one before it used; the next save renames it to `damaged-<step>`.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with shardings (of this run's mesh, which need not be that of
            the run that saved).

        Returns:
          The checkpoint, or None if the directory holds none.

        Raises:
          CheckpointError: every checkpoint is damaged, or the newest one is of a newer format.
          CheckpointMismatch: a leaf is missing, too many, misshapen or mistyped; no older checkpoint is tried.
        """
        self.close()  # the next save looks at the directory anew, for damaged checkpoints may have to go
        found = reading.newest_undamaged(self._directory, verify=self._config.verify)
        if found.step is None:
            return None
        self._damaged.update(found.damaged)
        checkpoint = self._directory / str(found.step)
        wanted = structure.flatten(abstract_state)
        structure.check_same(
            reading.stored_leaves(checkpoint), wanted, where=f"The checkpoint {checkpoint}",
            remedy="Set the model and the optimizer as they were (config.json in the workdir holds them), use another "
                   "workdir, or start from these parameters with init_from.path.")
        arrays = reading.read_arrays(checkpoint, {path: structure.placed(leaf) for path, leaf in wanted.items()})
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), list(arrays.values()))
        extra = reading.read_extra(checkpoint)
        self._current = found.step
        return Restored(found.step, state, extra)

    def _writer(self) -> Any:
        """Returns Orbax's manager, made at the first save, with damaged checkpoints out of its way."""
        if self._manager is None:
            for step in sorted(self._damaged):  # known to process 0 alone; the others wait for it in _manager
                self._set_aside(step)
            self._damaged.clear()
            self._manager = _manager(self._directory, self._config)
        return self._manager

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that it neither counts as one to keep nor stops a save of its step."""
        source, target = self._directory / str(step), self._directory / f"damaged-{step}"
        if not source.exists():
            return
        if target.exists():
            target.rmtree()
        source.rename(target)
        logging.warning("Renamed the damaged checkpoint %s to %s; delete it when you need it no more.", source, target)

    def _failure(self, error: Exception, step: int, needed: int) -> errors.CheckpointError:
        """Returns the error of a failed save of `needed` bytes, after removing what it left."""
        free = _free_bytes(self._directory)  # before the half-written files go, for it is the state that failed
        manager, self._manager = self._manager, None  # a new one at the next save: Orbax raises some errors twice
        try:
            manager.close()
        except Exception as again:
            logging.info("Closing Orbax's manager after the failed checkpoint %d: %s", step, again)
        if jax.process_index() == 0:
            for leftover in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                try:
                    leftover.rmtree()
                except OSError as problem:  # a writer may still be at it; the next save of the step, or run, removes it
                    logging.warning("Could not remove the half-written %s: %s", leftover, problem)
        kept = self.latest_step()
        last = f"The last good checkpoint is {kept}, untouched." if kept is not None else "There is no earlier one."
        space = "" if free is None else (
            f"; the state needs up to {errors.readable_bytes(needed)} ({needed} bytes) and "
            f"{errors.readable_bytes(free)} ({free} bytes) were free")
        if errors.is_disk_full(error):
            return errors.CheckpointError(
                f"The disk is full: checkpoint {step} could not be written to {self._directory}{space}. {last} Free "
                "space, or lower checkpoint.keep_last or checkpoint.keep_every, and run the same command again.")
        return errors.CheckpointError(
            f"Checkpoint {step} could not be written to {self._directory}{space}: {type(error).__name__}: {error}. "
            f"{last} Remove the cause and run the same command again.")


def _free_bytes(directory: epath.Path) -> int | None:
    """Returns the free bytes of the disk that holds `directory`, or None for a bucket."""
    path = os.fspath(directory)
    if "://" in path:
        return None
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def _save_args(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how each leaf is cut into pieces: the parameters of each head apart, so that some can be read alone, and
    the entries of a `LazyLeaf` that are written one at a time, for each would be put into the whole array otherwise."""
    import orbax.checkpoint as ocp

    def apart(path: str, leaf: Any) -> bool:
        if getattr(leaf, "stacked", False):
            return True
        return path.startswith(structure.PARAMS) and structure.has_head_axis(path.removeprefix(structure.PARAMS), leaf)

    return structure.nest({path: ocp.SaveArgs(shard_axes=(0,) if apart(path, leaf) else ())
                           for path, leaf in leaves.items()})


def _manager(directory: epath.Path, config: CheckpointConfig) -> Any:
    """Returns the Orbax manager that keeps what `config` says and commits by way of a manifest."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers, path

    policies: list[Any] = [checkpoint_managers.LatestN(config.keep_last)]
    if config.keep_every:
        policies.append(checkpoint_managers.EveryNSteps(config.keep_every))
    base: Any = path.atomicity_defaults.get_default_temporary_path_class(directory)

    class CheckedPath(base):
        """Orbax's way of committing on this storage, with the manifest as the last file before the commit."""

        store: Any = None  # of Orbax's facts; None for the items inside a checkpoint

        @classmethod
        def from_final(cls, final_path, *, checkpoint_metadata_store=None, **options):
            made = super().from_final(final_path, checkpoint_metadata_store=checkpoint_metadata_store, **options)
            made.store = checkpoint_metadata_store
            return made

        async def finalize(self):
            if self.store is None:
                await super().finalize()
                return
            temporary, final = self.get(), self.get_final()
            self.store.update(file_path=temporary / _METADATA, commit_timestamp_nsecs=time.time_ns())
            self.store.wait_until_finished()  # it writes in a thread, and nothing may change after the checksums
            commit = temporary / path.atomicity.COMMIT_SUCCESS_FILE
            commit.write_text(f"Checkpoint commit was successful to {final}")
            integrity.write_manifest(temporary)
            if temporary != final:  # they are one in a bucket, which cannot rename
                temporary.rename(final)

    return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        temporary_path_class=CheckedPath,
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        # Directories before save() returns: where a full disk stops one from being made in the background, Orbax's
        # other threads wait for it for five minutes, and so does the end of the process.
        async_options=ocp.options.AsyncOptions(timeout_secs=_TIMEOUT, create_directories_asynchronously=False)))
