"""Runs the cells of a study on this machine: several at once, a core each, those that are done before left alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from mtp_jax.analysis import sweep_cells
from mtp_jax.analysis.study import CELLS_FOLDER, Cell, Study, arguments, folder_names, needed
from mtp_jax.analysis.study_cell import COST_FILE
from mtp_jax.analysis.sweep_board import Board
from mtp_jax.analysis.sweep_record import SweepRecord
from mtp_jax.analysis.sweep_run import DONE, ERROR, INTERRUPTED, UNFINISHED, LocalRunner, last_lines
from mtp_jax.config import Config
from mtp_jax.files import REMOTE

EVALUATIONS = "eval"
MODULE = "mtp_jax.analysis.study_cell"
Resolve = Callable[[str, Sequence[str]], Config]  # (experiment, settings) -> the config of the run
Train = Callable[[str, str, Sequence[str]], Sequence[str]]  # (experiment, workdir, settings) -> argv of the run
Evaluate = Callable[[str, Sequence[str]], Sequence[str]]  # (workdir, arguments) -> argv of the evaluation


def evaluate_command(workdir: str, told: Sequence[str]) -> list[str]:
    """Returns the command that evaluates a run."""
    return [sys.executable, "-m", "mtp_jax.evaluate", f"--workdir={workdir}", *told]


@dataclasses.dataclass(frozen=True)
class Place:
    """A study in its workdir.

    Attributes:
      study: valid.
      workdir: that studies share; their cells lie in its folder cells/.
      folder: of the study's own files.
      settings: of all cells, over their own.
      resolve: returns the config that a run has, or raises ValueError.
      train: returns the command of a run.
      evaluate: returns the command of an evaluation.
    """

    study: Study
    workdir: str
    folder: str
    settings: tuple[str, ...]
    resolve: Resolve
    train: Train
    evaluate: Evaluate = evaluate_command

    @property
    def cells_folder(self) -> str:
        return f"{self.workdir.rstrip('/')}/{CELLS_FOLDER}"

    @functools.cached_property
    def folders(self) -> dict[str, str]:
        """{cell's name: path of its folder}."""
        return {name: f"{self.cells_folder}/{folder}" for name, folder in
                folder_names(self.study, self.settings).items()}

    def arguments(self, cell: Cell) -> tuple[str, ...]:
        """Returns the settings of a cell's run."""
        return arguments(cell, self.folders, self.settings)

    def as_sweep_cell(self, cell: Cell) -> sweep_cells.Cell:
        """Returns a cell with its config built and checked; what it needs must be there.

        Raises:
          ValueError: its settings do not fit, or its folder holds another run.
        """
        settings = self.arguments(cell)
        try:
            config = self.resolve(cell.experiment, settings)
            sweep_cells.check(config)
        except (ValueError, OSError) as error:
            raise ValueError(f"The cell {cell.name}: {error}") from error
        found = sweep_cells.Cell(cell.name, {name: str(value) for name, value in cell.values.items()}, settings, config,
                                 self.folders[cell.name])
        sweep_cells.check_workdirs([found])
        return found


def evaluated(folder: epath.PathLike, task: str) -> bool:
    """Tells whether a cell's folder has the result of a task."""
    return (epath.Path(folder) / EVALUATIONS / f"{task}.json").exists()


def done_cells(place: Place, *, tell: Callable[[str], None] = lambda text: None) -> dict[str, sweep_cells.Cell]:
    """Returns the cells that are trained and evaluated, by name; what is wrong with one is told."""
    found: dict[str, sweep_cells.Cell] = {}
    for wave in place.study.waves():
        for cell in wave:
            if not found.keys() >= set(needed(cell)) or not epath.Path(place.folders[cell.name]).exists():
                continue
            try:
                one = place.as_sweep_cell(cell)
            except ValueError as error:
                tell(str(error))
                continue
            if is_done(cell, one):
                found[cell.name] = one
    return found


def is_done(cell: Cell, one: sweep_cells.Cell) -> bool:
    """Tells whether a cell's training is done and each of its evaluations has its result."""
    return sweep_cells.standing(one).done and all(evaluated(one.workdir, task) for task in cell.tasks)


def steps(place: Place, cell: Cell, one: sweep_cells.Cell) -> list[list[str]]:
    """Returns the commands that are left of a cell: its training, then its evaluations."""
    found = []
    if not sweep_cells.standing(one).done:
        found.append(list(place.train(cell.experiment, one.workdir, one.settings)))
    for task, told in zip(cell.tasks, cell.evaluate):
        if not evaluated(one.workdir, task):
            found.append(list(place.evaluate(one.workdir, told)))
    return found


def run(place: Place, *, parallel: int, retries: int, tell: Callable[[str], None], inherit: Sequence[int] = ()) -> int:
    """Runs the cells that are not done, wave by wave.

    Args:
      place: of the study.
      parallel: cells at once; more than one have a core each.
      retries: how often a cell that failed is run again.
      tell: prints a line.
      inherit: descriptors that the cells keep open.

    Returns:
      0 when all cells are done; 1 when one failed for good; 130 or 75 when told to stop.
    """
    record = SweepRecord(place.folder)
    by_name = {cell.name: cell for cell in place.study.cells}
    status, done = DONE, set[str]()
    for number, wave in enumerate(place.study.waves(), 1):
        ready: list[sweep_cells.Cell] = []
        for cell in wave:
            missing = [name for name in needed(cell) if name not in done]
            if missing:
                tell(f"{cell.name} is left out, for it needs {', '.join(missing)}.")
                status = ERROR
                continue
            try:
                ready.append(place.as_sweep_cell(cell))
            except ValueError as error:
                tell(str(error))
                status = ERROR
        before = [one.name for one in ready if is_done(by_name[one.name], one)]
        todo = [one for one in ready if one.name not in before]
        tell(f"{place.study.name}, wave {number}: {len(wave)} cells, {len(before)} done before, {len(todo)} to run.")
        runner = LocalRunner(command=lambda one: _command(place, by_name[one.name], one, parallel), parallel=parallel,
                             retries=retries, record=record, board=Board(ready, done=before), inherit=inherit)
        code = runner.run(todo) if todo else DONE
        for one in todo:
            if record[one.name].status == "failed":
                tell(f"\n{one.name} failed; the end of {one.workdir}/log.txt:\n"
                     + "\n".join("    " + line for line in last_lines(one)))
        done |= {one.name for one in ready if is_done(by_name[one.name], one)}
        if code in (INTERRUPTED, UNFINISHED):
            return code
        if code != DONE or len(done & {one.name for one in ready}) < len(ready):
            status = ERROR
    return status


def costs(folders: Mapping[str, str]) -> dict[str, float]:
    """Returns {cell's name: seconds of a core that its attempts here took}, of those that have noted them."""
    found = {}
    for name, folder in folders.items():
        path = epath.Path(folder) / COST_FILE
        if path.exists():
            found[name] = float(json.loads(path.read_text())["cpu_seconds"])
    return found


def _command(place: Place, cell: Cell, one: sweep_cells.Cell, parallel: int) -> list[str]:
    """Returns the argv of the process that runs a cell's steps."""
    remote = REMOTE in one.workdir
    locks = os.path.join(os.path.expanduser("~"), ".cache", "mtp_jax") if remote else place.cells_folder
    told = {"steps": steps(place, cell, one), "slots": parallel, "locks": locks,
            "cost": None if remote else f"{one.workdir}/{COST_FILE}"}
    return [sys.executable, "-m", MODULE, json.dumps(told)]

