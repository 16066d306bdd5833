"""What `python -m mtp_jax.study` does: runs the cells of studies, measures them, judges the claims, draws."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mtp_jax.config.generation import flag

if TYPE_CHECKING:
    from mtp_jax.analysis import study_run

Load = Callable[[str], Any]  # experiment's name -> its module


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command was asked for; each field is a flag."""

    experiment: tuple[str, ...] = flag((), "Study to run, by its experiment's name, such as star_graph; may be given "
                                       "several times. None: all of experiments/ that have one.")
    workdir: str = flag("", "Folder that studies share: cells/ with a folder a training run, and a folder a study.")
    parallel: int = flag(2, "Cells that run at once; two or more have a core each, and share an accelerator: 1 where "
                         "there is one.")
    retries: int = flag(1, "How often a cell that failed is run again.")
    seeds: str = flag("", "Other seeds than the study's own, such as 100,101; results go to a folder of their own.")
    report: bool = flag(False, "Start nothing; print the studies as Markdown from what the folders hold.")
    dry_run: bool = flag(False, "Start nothing; print what each cell would run, and which are done.")

    def validate(self) -> None:
        """Raises ValueError where a field cannot be used as it is."""
        if not self.workdir:
            raise ValueError("--workdir is needed, such as --workdir=runs/experiments.")
        if self.parallel < 1:
            raise ValueError(f"--parallel={self.parallel} must be at least 1.")
        if self.retries < 0:
            raise ValueError(f"--retries={self.retries} must be at least 0.")
        self.seed_numbers()

    def seed_numbers(self) -> tuple[int, ...]:
        """Returns the seeds that were given; ValueError where they are no numbers."""
        try:
            return tuple(int(part) for part in self.seeds.split(",")) if self.seeds else ()
        except ValueError as error:
            raise ValueError(f"--seeds={self.seeds!r} must be whole numbers with commas between them.") from error


def run(request: Request, *, settings: Sequence[str], names: Sequence[str], load: Load, resolve: Callable[..., Any],
        train: Callable[..., Sequence[str]]) -> int:
    """Does what the command was asked for.

    Args:
      request: the flags.
      settings: of all cells, "--config.PATH=VALUE", over their own.
      names: of all experiments; those without a study are passed over.
      load: returns an experiment's module.
      resolve: (experiment, settings) -> the config of such a run.
      train: (experiment, workdir, settings) -> argv of such a run.

    Returns:
      The exit status: 0 all cells are done; 1 one failed; 130 or 75 told to stop.

    Raises:
      ValueError: nothing was started, for a flag or a study does not fit.
    """
    from mtp_jax import files
    from mtp_jax.analysis import study, study_run
    from mtp_jax.data.sources.paths import check_reachable

    request.validate()
    found = []
    for name in request.experiment or names:
        one = study.load(load(name), name, request.seed_numbers() if request.experiment else ())
        if one is None and request.experiment:
            raise ValueError(f"--experiment={name} has neither STUDY nor study(): it is one run, started by "
                             f"python -m experiments.{name}, or over a grid by python -m mtp_jax.sweep.")
        if one is not None:
            found.append(one)
    if not found:
        raise ValueError("No experiment here has a study.")
    if request.seeds and not request.experiment:
        raise ValueError("--seeds needs --experiment: not every study takes other seeds.")
    workdir = request.workdir if files.REMOTE in request.workdir else os.path.abspath(
        os.path.expanduser(request.workdir))
    places = [study_run.Place(one, workdir, _folder(one.name, workdir, request, settings), tuple(settings), resolve,
                              train) for one in found]
    if request.dry_run:
        for place in places:
            _show(place)
        return 0
    check_reachable("--workdir", workdir)
    if request.report:
        print("\n".join(_report(place) for place in places), end="")
        return 0
    status = 0
    with files.alone(places[0].cells_folder, flag="--workdir", other="study", busy="has cells that run already, of "
                     "another study or of one that was killed: wait for them, or end them.") as lock:
        for place in places:
            code = study_run.run(place, parallel=request.parallel, retries=request.retries, tell=_say, inherit=lock)
            print("\n".join(_finish(place)), flush=True)
            if code not in (0, 1):
                return code
            status = max(status, code)
    return status


def _finish(place: study_run.Place) -> list[str]:
    """Measures, judges, writes; returns what is printed."""
    from mtp_jax.analysis import study_results

    rows, verdicts, costs = _results(place)
    paths = study_results.write(place.study, place.folder, rows=rows, verdicts=verdicts, folders=place.folders,
                                costs=costs, settings=place.settings)
    return [*study_results.lines(place.study, rows, verdicts), *(f"    {path}" for path in paths), ""]


def _report(place: study_run.Place) -> str:
    """Returns a study as Markdown; its files are written anew."""
    from mtp_jax.analysis import study_results

    rows, verdicts, costs = _results(place)
    paths = study_results.write(place.study, place.folder, rows=rows, verdicts=verdicts, folders=place.folders,
                                costs=costs, settings=place.settings)
    pictures = [f"img/{path.name}" for path in paths if path.suffix == ".png"]
    return study_results.report(place.study, rows, verdicts, cost=sum(costs.values()), pictures=pictures)


def _results(place: study_run.Place) -> tuple[Any, Any, Any]:
    """Returns the rows, verdicts and costs of what a study's cells hold."""
    from mtp_jax.analysis import study_results, study_run

    done = study_run.done_cells(place, tell=_say)
    rows = study_results.measure(place.study, place.folders, list(done), _say)
    return rows, study_results.judge(place.study, rows), study_run.costs(place.folders)


def _folder(name: str, workdir: str, request: Request, settings: Sequence[str]) -> str:
    """Returns the folder of a study; with other seeds or settings than its own, one beside it."""
    folder = f"{workdir.rstrip('/')}/{name}"
    if not request.seeds and not settings:
        return folder
    return f"{folder}-{hashlib.sha256(json.dumps([request.seeds, *settings]).encode()).hexdigest()[:6]}"


def _show(place: study_run.Place) -> None:
    """Prints the cells with their commands."""
    from mtp_jax.analysis import study_run

    done = study_run.done_cells(place, tell=_say)
    for cell in place.study.cells:
        print(f"{place.study.name}: {cell.name} ({'done' if cell.name in done else 'to run'})")
        print("    " + shlex.join(place.train(cell.experiment, place.folders[cell.name], place.arguments(cell))))
        for told in cell.evaluate:
            print("    " + shlex.join(place.evaluate(place.folders[cell.name], told)))


def _say(text: str) -> None:
    """Prints a line to stderr."""
    print(text, file=sys.stderr, flush=True)
