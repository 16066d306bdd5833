"""What a sweep keeps beside its cells: seconds, attempts, and the job that a cell was handed over as; and its lock."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from etils import epath

from mtp_jax import files

RECORD_FILE = "sweep.json"


@dataclasses.dataclass
class CellRecord:
    """What is known of a cell that its workdir does not tell.

    Attributes:
      seconds: that its attempts on this machine took, in all.
      attempts: that were begun, here or by an engine.
      status: of the last one: "", "failed", "stopped" or "submitted".
      engine: that it was handed over to; empty: none.
      job: its name there.
    """

    seconds: float = 0.0
    attempts: int = 0
    status: str = ""
    engine: str = ""
    job: str = ""


class SweepRecord:
    """The file sweep.json of a sweep's folder; cells that an earlier grid had stay in it.

    Args:
      folder: of the sweep; may not exist yet. None: nothing is known, and nothing can be written.

    Raises:
      ValueError: the file is damaged.
    """

    def __init__(self, folder: epath.PathLike | None):
        self._path = None if folder is None else epath.Path(folder) / RECORD_FILE
        self._cells: dict[str, CellRecord] = {}
        if self._path is not None and self._path.exists():
            try:
                self._cells = {name: CellRecord(**values) for name, values in
                               json.loads(self._path.read_text())["cells"].items()}
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{self._path} is damaged ({error}): delete it; what is lost is the cells' seconds "
                                 "and which of them were handed to an engine.") from error

    def __getitem__(self, name: str) -> CellRecord:
        """Returns what is known of a cell, to be changed and written."""
        return self._cells.setdefault(name, CellRecord())

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        if self._path is None:
            raise ValueError("This record has no folder.")
        files.replace(self._path, json.dumps({"cells": {name: dataclasses.asdict(cell) for name, cell in
                                                  self._cells.items()}}, indent=2).encode() + b"\n")


def alone(folder: str) -> contextlib.AbstractContextManager[tuple[int, ...]]:
    """Makes a sweep's folder and keeps a second sweep out of it; yields the descriptors that its cells inherit.

    While a cell holds one, the folder stays locked, so that a cell that outlives a killed sweep is not started twice.

    Raises:
      ValueError: another sweep runs there, or the folder is a file.
    """
    return files.alone(folder, flag="--workdir", other="sweep", busy="is in use by another sweep, or by a cell of one "
                       "that was killed: wait for it, end it, or name another folder.")
