"""What an evaluation has done so far, so that one that was stopped goes on: a JSONL beside the result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from mtp_jax.files import REMOTE, replace

REMOTE_SECONDS = 60.0  # between two writes of the whole file into a bucket, where nothing can be appended


def progress_path(result: epath.Path) -> epath.Path:
    """Returns where the progress of an evaluation lies, which is removed when its result is written."""
    return result.with_name(result.name + ".progress")


class ProgressFile:
    """Records by key, kept as they come.

    The first line holds the settings that the records belong to; a file of other settings is begun anew. A line that is
    cut short, by a kill, is left out with all that come after it.
    """

    def __init__(self, result: epath.Path, settings: Mapping[str, Any], *, restart: bool = False):
        """Reads what is there.

        Args:
          result: the file that the evaluation writes when it is done.
          settings: that decide the records.
          restart: forget what is there.
        """
        self.path = progress_path(result)
        self._head = json.dumps(dict(settings), sort_keys=True, default=str)
        self._records: dict[str, Any] = {}
        self._lines = [self._head]
        self._written = time.monotonic()
        if not restart and self.path.exists():
            self._read(self.path.read_text().split("\n"))
        replace(self.path, self._text())

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> Any:
        return self._records[key]

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: str, record: Any) -> None:
        """Keeps a record."""
        line = json.dumps([key, record])
        self._records[key] = record
        self._lines.append(line)
        if REMOTE not in str(self.path):
            with self.path.open("a") as file:
                file.write(line + "\n")
        elif time.monotonic() - self._written >= REMOTE_SECONDS:
            replace(self.path, self._text())
            self._written = time.monotonic()

    def _read(self, lines: list[str]) -> None:
        """Takes over the records of a file of the same settings."""
        if lines[0] != self._head:
            logging.info("%s belongs to other settings: starting anew.", self.path)
            return
        for line in lines[1:-1]:  # a whole line ends in a newline
            try:
                key, record = json.loads(line)
            except ValueError:  # the disk lost a part: what comes after is not known to be whole either
                break
            self._records[key] = record
            self._lines.append(line)
        if self._records:
            logging.info("Going on: %d steps of this evaluation were done before (%s).", len(self._records), self.path)

    def _text(self) -> bytes:
        """Returns the whole file."""
        return "".join(line + "\n" for line in self._lines).encode()
