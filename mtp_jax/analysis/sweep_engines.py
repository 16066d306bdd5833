"""Hands the cells of a sweep to an engine: jobs on GKE, an array on SLURM, queued resources."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mtp_jax.analysis.sweep_cells import Cell
from mtp_jax.analysis.sweep_record import SweepRecord

SUBMITTED = "submitted"
TOGETHER = ("slurm",)  # engines that take all cells in one call


@dataclasses.dataclass(frozen=True)
class Target:
    """An engine of the folder launch, which this package does not import: the command brings it.

    Attributes:
      name: of the engine, "gke" for one.
      engine: launch.command.Engine.
      options: its Options.
      perform: launch.calls.perform.
      common_name: launch.job.common_name.
    """

    name: str
    engine: Any
    options: Any
    perform: Any
    common_name: Any


def job_names(cells: Sequence[Cell], sweep: str, *, longest: int, clean: Any) -> dict[str, str]:
    """Returns {cell: name of its job}, each different.

    Args:
      cells: of the sweep.
      sweep: name of its folder.
      longest: letters of a name.
      clean: returns a valid name made of a text, cut where it is too long.
    """
    texts = {cell.name: clean(f"{sweep}-{cell.name}") for cell in cells}
    often = Counter(texts.values())
    room = longest - 7 - 3  # for a hash, and for "-r2" of a cell that is handed over again
    return {cell: name if len(name) <= room + 7 and often[name] == 1
            else f"{clean(name[:room])}-{hashlib.sha256(cell.encode()).hexdigest()[:6]}"
            for cell, name in texts.items()}


def hand_over(cells: Sequence[Cell], target: Target, *, jobs: Mapping[str, Any], record: SweepRecord, yes: bool,
              dry_run: bool) -> int:
    """Starts a job a cell, notes each as submitted, and returns at once.

    Args:
      cells: to start.
      target: what starts them.
      jobs: {cell: its launch.job.Job}. A cell that was handed over before gets another name, since most engines keep
        the old one.
      record: of the sweep; written.
      yes: what costs money may be started.
      dry_run: print the calls only.

    Returns:
      0, or 1 when a call failed, or `yes` is missing; cells whose calls succeeded stay submitted.

    Raises:
      ValueError: the engine cannot use an option or a job.
    """
    named = {}
    for cell in cells:
        attempts, job = record[cell.name].attempts, jobs[cell.name]
        named[cell.name] = job if not attempts else dataclasses.replace(job, name=f"{job.name}-r{attempts + 1}")
    try:
        calls = target.engine.submit(list(named.values()), target.options)
        what = target.engine.describe(list(named.values()), target.options)
    except ValueError as error:
        raise ValueError(f"--engine={target.name}, whose options are the flags --{target.name}_...: {error}") from error
    if dry_run or not yes:
        return target.perform(calls, yes=yes, dry_run=dry_run, what=what)
    groups = [list(cells)] if target.name in TOGETHER else [[cell] for cell in cells]
    for number, group in enumerate(groups):
        own = [named[cell.name] for cell in group]
        status = target.perform(target.engine.submit(own, target.options), yes=True, dry_run=False,
                                what=what if number == 0 else "")
        if status:
            return status
        for cell in group:
            known = record[cell.name]
            known.attempts, known.status = known.attempts + 1, SUBMITTED
            known.engine, known.job = target.name, target.common_name(own)
        record.write()
    return 0
