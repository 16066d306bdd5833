"""A study: cells that are trained and measured, claims that are judged by rules written down before, and a picture.

    STUDY = Study(name="head_sweep", question="...", cells=tuple(...), measure=measure, claims=(S5,), plot=plot,
                  minutes="20 core-minutes on 2 cores")

An experiment whose module has such a `STUDY`, or a function `study()` that returns one, is run by

    python -m mtp_jax.study --experiment=head_sweep --workdir=runs/experiments

A cell is one training run. Its folder is named by the experiment and a hash of the settings, so that studies that need
the same run share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.config import nearest

CONFIRMED, NOT_CONFIRMED, UNDECIDABLE = "confirmed", "not confirmed", "not decidable at this size"
OUTCOMES = (CONFIRMED, NOT_CONFIRMED, UNDECIDABLE)
CELLS_FOLDER = "cells"  # of the workdir that studies share
SEED = "seed"  # the name of a value over which cells are averaged

Row = dict[str, Any]  # {**cell.values, **measure(folder)}
_PLACE = re.compile(r"\{([^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of a study, and what is evaluated of it.

    Attributes:
      name: unique in the study, such as "num_heads=2,seed=0".
      experiment: module under experiments/, such as "star_graph".
      settings: "--config.PATH=VALUE"; "{NAME}" in a value stands for the folder of the cell of that name.
      values: what tells this cell from the others, for tables and plots, such as {"num_heads": 2, "seed": 0}.
      needs: names of cells that must be done before this one starts.
      evaluate: argument lists for python -m mtp_jax.evaluate --workdir=<its folder>, run after its training.
    """

    name: str
    experiment: str
    settings: tuple[str, ...]
    values: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    evaluate: tuple[tuple[str, ...], ...] = ()

    @property
    def tasks(self) -> list[str]:
        """Names of the evaluation tasks, in order."""
        return [argument.removeprefix("--task=") for arguments in self.evaluate for argument in arguments
                if argument.startswith("--task=")]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rows say of a claim.

    Attributes:
      outcome: one of OUTCOMES.
      sentence: one plain sentence for people.
      figures: what it rests on: {what it is: a number, a text, or an mtp_jax.intervals.Estimate}.
    """

    outcome: str
    sentence: str
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome={self.outcome!r} of a verdict is not among {', '.join(OUTCOMES)}.")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, and the rule by which it is judged.

    Attributes:
      name: such as "S11"; docs/experiments.md lists them.
      statement: what is claimed.
      rule: when it counts as confirmed, and when as not decidable; in words, written before the run.
      judge: applies the rule to the rows of all cells.
    """

    name: str
    statement: str
    rule: str
    judge: Callable[[Sequence[Row]], Verdict]


@dataclasses.dataclass(frozen=True)
class Study:
    """Cells, how they are measured, and what they are to show.

    Attributes:
      name: of its folder, and of the experiment's module.
      question: that it answers.
      cells: in the order in which they are run.
      measure: returns the numbers of a cell from its folder; reads files, and trains or decodes nothing.
      claims: that are judged when all cells are done.
      plot: draws pictures of all rows into a folder and returns their paths.
      minutes: what all cells take, and on which machine.
      columns: measured columns that the report's table shows; empty: all.
      settings: in words, what the cells have in common; for the report.
    """

    name: str
    question: str
    cells: tuple[Cell, ...]
    measure: Callable[[epath.Path], Mapping[str, Any]]
    claims: tuple[Claim, ...]
    plot: Callable[[Sequence[Row], epath.Path], list[epath.Path]]
    minutes: str
    columns: tuple[str, ...] = ()
    settings: str = ""

    def validate(self) -> None:
        """Raises ValueError where names are taken twice, or are those of no cell, or cells wait for each other."""
        names = [cell.name for cell in self.cells]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"The study {self.name!r} has {names.count(name)} cells named {name!r}: each needs a "
                                 "name of its own.")
        for cell in self.cells:
            for other in (*cell.needs, *places(cell)):
                if other not in names:
                    raise ValueError(f"The cell {cell.name!r} names {other!r}, which is no cell of the study "
                                     f"{self.name!r}.{nearest(other, names)}")
            for setting in cell.settings:
                if not setting.startswith(("--config.", "--noconfig.")):
                    raise ValueError(f"The cell {cell.name!r} has the setting {setting!r}: write --config.PATH=VALUE.")
        first: dict[str, str] = {}
        for name, folder in folder_names(self).items():
            if first.setdefault(folder, name) != name:
                raise ValueError(f"The cells {first[folder]!r} and {name!r} of the study {self.name!r} are the same "
                                 "run: leave one of them out.")

    def waves(self) -> list[list[Cell]]:
        """Returns the cells in groups: those of a group need only cells of earlier ones.

        Raises:
          ValueError: cells wait for each other.
        """
        left, done, found = list(self.cells), set[str](), []
        while left:
            wave = [cell for cell in left if done.issuperset(needed(cell))]
            if not wave:
                raise ValueError(f"The cells {', '.join(cell.name for cell in left)} of the study {self.name!r} wait "
                                 "for each other: look at their needs.")
            found.append(wave)
            done.update(cell.name for cell in wave)
            left = [cell for cell in left if cell not in wave]
        return found


def places(cell: Cell) -> list[str]:
    """Returns the names in braces in a cell's settings."""
    return [name for setting in cell.settings for name in _PLACE.findall(setting)]


def needed(cell: Cell) -> list[str]:
    """Returns the names of the cells that must be done before this one."""
    return list(dict.fromkeys((*cell.needs, *places(cell))))


def folder_names(study: Study, settings: Sequence[str] = ()) -> dict[str, str]:
    """Returns {cell's name: its folder's}; cells of any study that are the same run have the same.

    Args:
      study: valid.
      settings: of all cells, over their own.
    """
    found: dict[str, str] = {}
    for wave in study.waves():
        for cell in wave:
            own = [_filled(setting, found) for setting in (*cell.settings, *settings)]
            text = json.dumps([cell.experiment, own])
            found[cell.name] = f"{cell.experiment}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return found


def arguments(cell: Cell, folders: Mapping[str, str], settings: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the settings of a cell's run: without a sample at its end, its own, those of all cells.

    Args:
      cell: of the study.
      folders: {cell's name: path of its folder}.
      settings: of all cells.
    """
    return ("--config.logging.sample=false", *(_filled(setting, folders) for setting in cell.settings), *settings)


def load(module: Any, name: str, seeds: Sequence[int] = ()) -> Study | None:
    """Returns the study of an experiment's module; None where it has none.

    Args:
      module: the experiment.
      name: of it, for errors.
      seeds: other ones than the study's own; empty: those.

    Raises:
      ValueError: the study does not fit together, or takes no other seeds.
    """
    make = getattr(module, "study", None)
    found = getattr(module, "STUDY", None)
    if seeds:
        if make is None or "seeds" not in inspect.signature(make).parameters:
            raise ValueError(f"--seeds: {name} has no function study(seeds=...).")
        found = make(seeds=tuple(seeds))
    elif found is None and make is not None:
        found = make()
    if found is not None:
        found.validate()
    return found


def _filled(setting: str, folders: Mapping[str, str]) -> str:
    """Returns a setting with the folders of the cells that it names in braces."""
    return _PLACE.sub(lambda match: folders[match[1]], setting)
