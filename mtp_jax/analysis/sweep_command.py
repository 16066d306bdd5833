"""What `python -m mtp_jax.sweep` does: checks all cells, runs them or hands them over, writes table and chart."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mtp_jax.config import Config, check_choice

if TYPE_CHECKING:
    from mtp_jax.analysis.sweep_cells import Cell
    from mtp_jax.analysis.sweep_engines import Target
    from mtp_jax.analysis.sweep_record import SweepRecord

LOCAL = "local"
ENGINES = ("gke", "slurm", "queued_resources")


def _flag(default: Any, text: str) -> Any:
    """Returns a field that is a flag, with its help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command was asked for; each field is a flag."""

    experiment: str = _flag("", "The experiment, by name: code_bytes for experiments/code_bytes.py.")
    grid: tuple[str, ...] = _flag((), "Fields and their values, such as 'config.model.num_heads=1,2,4'. Several axes "
                                  "with semicolons between them, or in several --grid, make all combinations. Quote or "
                                  "bracket a value that holds a comma.")
    workdir: str = _flag("", "Folder of the sweep: a folder a cell, sweep.csv, sweep.png. May lie in a bucket.")
    engine: str = _flag(LOCAL, f"What runs the cells: local, or {', '.join(ENGINES)}, whose options are the flags with "
                        "the engine's name in front.")
    parallel: int = _flag(1, "Cells that run at once on this machine; they share its cores and memory.")
    retries: int = _flag(1, "How often a cell that failed on this machine is run again.")
    resubmit: bool = _flag(False, "Start the cells that were handed to an engine before and are not done, too. Look "
                           "first that their jobs have ended.")
    collect: bool = _flag(False, "Start nothing; write sweep.csv and sweep.png from what the folders hold.")
    yes: bool = _flag(False, "Start what costs money. Without it an engine's plan is printed and nothing happens.")
    dry_run: bool = _flag(False, "Check all cells, print the exact calls and make none.")

    def validate(self) -> None:
        """Raises ValueError where a field cannot be used as it is."""
        for name, example in (("experiment", "code_bytes"), ("grid", "'config.model.num_heads=1,2,4'"),
                              ("workdir", "runs/heads")):
            if not getattr(self, name):
                raise ValueError(f"--{name} is needed, such as --{name}={example}.")
        check_choice("--engine", self.engine, (LOCAL, *ENGINES))
        if self.parallel < 1:
            raise ValueError(f"--parallel={self.parallel} must be at least 1.")
        if self.retries < 0:
            raise ValueError(f"--retries={self.retries} must be at least 0.")
        if self.parallel > 1 and self.engine != LOCAL:
            raise ValueError(f"--parallel={self.parallel} is for --engine=local; {self.engine} runs all cells at once.")


@dataclasses.dataclass(frozen=True)
class Launch:
    """Parts of the folder launch, which this package does not import.

    Attributes:
      job: the module launch.job.
      calls: the module launch.calls.
      engine: launch.command.Engine that --engine names; None: this machine.
      options: its Options.
    """

    job: Any
    calls: Any
    engine: Any
    options: Any


def run(request: Request, *, settings: Sequence[str], resolve: Callable[[Sequence[str]], Config], launch: Launch,
        again: str) -> int:
    """Does what the command was asked for.

    Args:
      request: the flags.
      settings: of all cells, "--config.PATH=VALUE".
      resolve: returns the config of the experiment with such settings.
      launch: what starts cells elsewhere.
      again: the command, for the message that says how to go on.

    Returns:
      The exit status: 0 all cells are done, or handed over; 1 one failed; 130 or 75 told to stop.

    Raises:
      ValueError: nothing was started, for a flag or a cell does not fit.
    """
    from mtp_jax import files
    from mtp_jax.analysis import sweep_cells, sweep_engines, sweep_record
    from mtp_jax.analysis.grid import parse_grid
    from mtp_jax.data.sources.paths import check_reachable

    request.validate()
    if files.REMOTE not in request.workdir:
        request = dataclasses.replace(request, workdir=os.path.expanduser(request.workdir))
    cells = sweep_cells.make_cells(parse_grid(request.grid), settings=settings, workdir=request.workdir,
                                   resolve=resolve)
    module = launch.job.experiment_module(request.experiment)
    names = sweep_engines.job_names(cells, os.path.basename(request.workdir.rstrip("/")), longest=launch.job.MAX_NAME,
                                    clean=launch.job.name_from)
    jobs = {cell.name: launch.job.Job(names[cell.name], module, cell.workdir, cell.settings) for cell in cells}
    for job in jobs.values():
        job.validate()
    if request.dry_run and not _reachable(request.workdir):
        _say("This machine cannot read the bucket: no cell is known to be done.")
        return _show(cells, request, launch, jobs, sweep_record.SweepRecord(None))
    check_reachable("--workdir", request.workdir)
    sweep_cells.check_workdirs(cells)
    record = sweep_record.SweepRecord(request.workdir)
    now = {cell.name: sweep_cells.standing(cell) for cell in cells}
    done = [name for name, found in now.items() if found.done]
    away = [cell for cell in cells if cell.name not in done and not request.resubmit
            and record[cell.name].status == sweep_engines.SUBMITTED]
    todo = [] if request.collect else [cell for cell in cells if cell.name not in done and cell not in away]
    _say(f"{len(cells)} cells: {len(done)} done, {len(away)} handed over before, {len(todo)} to start.")
    for name, found in now.items():
        if found.problem:
            _say(f"{name}: {found.problem}")
    for cell in away:
        _say(f"{cell.name} is left to {record[cell.name].engine} (job {record[cell.name].job}); --resubmit starts it "
             "again.")
    if request.dry_run:
        return _show(todo, request, launch, jobs, record)
    if todo and launch.engine is not None and not request.yes:
        return sweep_engines.hand_over(todo, _target(request, launch), jobs=jobs, record=record, yes=False,
                                       dry_run=False)
    with sweep_record.alone(request.workdir) as lock:
        status = 0
        if todo and launch.engine is None:
            status = _run_here(cells, todo, done, request, jobs, record, lock)
        elif todo:
            status = sweep_engines.hand_over(todo, _target(request, launch), jobs=jobs, record=record, yes=True,
                                             dry_run=False)
        print("\n".join(write_results(cells, request, record)))
    _tell_the_end(todo, record, status, again)
    return status


def write_results(cells: Sequence[Cell], request: Request, record: SweepRecord) -> list[str]:
    """Writes sweep.csv and sweep.png from what the cells' folders hold, and returns the table for a terminal."""
    from mtp_jax.analysis import sweep_plot, sweep_results

    table, fields = sweep_results.rows(cells, record), [f"config.{field}" for field in cells[0].values]
    path = sweep_results.write_csv(table, request.workdir)
    picture = sweep_plot.plot(table, fields, request.workdir,
                              title=f"{request.experiment} over {sweep_plot.x_field(fields).removeprefix('config.')}")
    return [*sweep_results.table_lines(table), "", f"{path}    every number of every cell",
            f"{picture}    loss of head 1, acceptance, time of a step" if picture is not None
            else "No chart yet: no cell has written a number."]


def _run_here(cells: Sequence[Cell], todo: Sequence[Cell], done: Sequence[str], request: Request, jobs: Any,
              record: SweepRecord, lock: Sequence[int]) -> int:
    """Runs cells on this machine."""
    from mtp_jax.analysis.sweep_board import Board
    from mtp_jax.analysis.sweep_run import LocalRunner

    runner = LocalRunner(command=lambda cell: jobs[cell.name].command(sys.executable), parallel=request.parallel,
                         retries=request.retries, record=record, board=Board(cells, done=done), inherit=lock,
                         settled=lambda: write_results(cells, request, record))
    return runner.run(todo)


def _show(todo: Sequence[Cell], request: Request, launch: Launch, jobs: Any, record: SweepRecord) -> int:
    """Prints the calls that would start cells."""
    from mtp_jax.analysis import sweep_engines

    if todo and launch.engine is not None:
        return sweep_engines.hand_over(todo, _target(request, launch), jobs=jobs, record=record, yes=False,
                                       dry_run=True)
    print(launch.calls.show([launch.calls.Call(jobs[cell.name].command()) for cell in todo]), end="")
    return 0


def _reachable(workdir: str) -> bool:
    """Tells whether what reads the workdir's bucket is installed; always so of a folder."""
    from mtp_jax.data.sources.paths import check_reachable

    try:
        check_reachable("--workdir", workdir)
    except ValueError:
        return False
    return True


def _target(request: Request, launch: Launch) -> Target:
    """Returns the engine as it is handed on."""
    from mtp_jax.analysis.sweep_engines import Target

    return Target(request.engine, launch.engine, launch.options, launch.calls.perform, launch.job.common_name)


def _tell_the_end(todo: Sequence[Cell], record: SweepRecord, status: int, again: str) -> None:
    """Says which cells failed and why, and how to go on."""
    from mtp_jax.analysis.sweep_run import LOG_FILE, last_lines

    for cell in todo:
        if record[cell.name].status == "failed":
            _say(f"\n{cell.name} failed; the end of {cell.workdir}/{LOG_FILE}:\n"
                 + "\n".join("    " + line for line in last_lines(cell)))
    if any(record[cell.name].status == "submitted" for cell in todo):
        _say(f"\nThe cells run elsewhere; this collects what they have done:\n    {again}")
    elif status:
        _say(f"\nTo go on; cells that are done are not run again:\n    {again}")


def _say(text: str) -> None:
    """Prints a line to stderr."""
    print(text, file=sys.stderr, flush=True)
