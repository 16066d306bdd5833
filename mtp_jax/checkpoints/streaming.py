"""A checkpoint whose arrays are made while it is written, one piece at a time: a model need not fit into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from mtp_jax.checkpoints import structure
from mtp_jax.checkpoints.checkpointer import Checkpointer
from mtp_jax.config import CheckpointConfig


@dataclasses.dataclass(frozen=True)
class LazyLeaf:
    """An array that is made when it is written.

    Attributes:
      shape: of the array.
      dtype: of the array, a numpy dtype.
      read: (index,) -> one entry of the first axis, or () -> the whole array.
      stacked: whether the first axis is written entry by entry.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[int, ...]], np.ndarray]
    stacked: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize


def save_params(directory: epath.PathLike, step: int, leaves: Mapping[str, LazyLeaf], extra: Mapping[str, Any]) -> None:
    """Writes a checkpoint of parameters alone: `load_params` and `init_from` read it, and no run goes on from it.

    Args:
      directory: `workdir/checkpoints`.
      step: its name.
      leaves: golden path -> array.
      extra: facts that JSON can hold, among them the config.

    Raises:
      CheckpointError: it could not be written.
      Whatever a leaf's `read` raises.
    """
    _register()
    failed: list[Exception] = []

    def guarded(leaf: LazyLeaf) -> LazyLeaf:
        def read(index: tuple[int, ...]) -> np.ndarray:
            try:
                return leaf.read(index)
            except Exception as error:
                failed.append(error)  # Orbax raises it as its own, with the cause lost in its threads
                raise

        return dataclasses.replace(leaf, read=read)

    state = structure.nest({structure.PARAMS + path: guarded(leaf) for path, leaf in leaves.items()})
    try:
        with (_no_message_below("CRITICAL"),  # Orbax logs an error from each of its threads; it is raised here, once
              Checkpointer(directory, CheckpointConfig(asynchronous=False)) as checkpointer):
            checkpointer.save(step, state, extra)
    except Exception as error:
        if failed:
            raise failed[0] from error
        raise


@contextlib.contextmanager
def _no_message_below(level: str) -> Iterator[None]:
    """Drops messages of absl, by which Orbax speaks, while the context lasts."""
    logger = logging.get_absl_logger()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def _register() -> None:
    """Tells Orbax how a LazyLeaf is written: as the numpy array that it stands for, whose handler takes it on."""
    import tensorstore as ts
    from orbax.checkpoint import type_handlers

    if type_handlers.has_type_handler(LazyLeaf):
        return

    class ArrayHandler(type_handlers.NumpyHandler):
        """Writes leaves one after the other, lazy ones piece by piece."""

        async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: Any) -> None:
            if not isinstance(value, LazyLeaf):
                await super()._open_and_write(value, tspec, ts_context)
                return
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            if not value.stacked:
                await store.write(value.read(()))
                return
            for i in range(value.shape[0]):
                await store[i].write(value.read((i,)))

        async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
            for value, info, arg in zip(values, infos, args or [None] * len(values)):
                await super()._background_serialize([value], [info], [arg])

    with _no_message_below("ERROR"):  # Orbax warns of the override, which is meant
        type_handlers.register_type_handler(np.ndarray, ArrayHandler(), override=True,
                                            func=lambda kind: issubclass(kind, (np.ndarray, LazyLeaf)))
