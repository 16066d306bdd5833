"""The cells of a sweep: a run each, checked before the first one starts, and how far each has come."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.grid import Axis, combinations
from mtp_jax.analysis.loss_plot import DamagedError, read_metrics
from mtp_jax.checkpoints.reading import finished_steps
from mtp_jax.config import Config, differences, flatten, from_dict, to_dict, with_defaults
from mtp_jax.model import ModelSpec
from mtp_jax.objective import head_weights
from mtp_jax.training import workdir as workdirs

Resolve = Callable[[Sequence[str]], Config]
_LONGEST = 40  # letters of a value in a cell's name
_SOME_VOCABULARY = 256  # stands for the tokenizer's, which is not opened here


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      name: of its folder in the sweep's, such as "num_heads=4"; does not depend on the other cells.
      values: {swept field: value} as the grid has them.
      settings: arguments of the run, "--config.PATH=VALUE".
      config: what they come to.
      workdir: folder of the run.
    """

    name: str
    values: Mapping[str, str]
    settings: tuple[str, ...]
    config: Config
    workdir: str

    @property
    def num_steps(self) -> int:
        return self.config.train.num_steps


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a cell has come, by what its workdir holds.

    Attributes:
      step: of the newest checkpoint; 0 without one.
      records: lines of metrics.jsonl.
      config: what config.json holds; None without one.
      done: the last step is saved and its numbers are written.
      problem: what is wrong with metrics.jsonl, which then counts as empty, and the remedy; else "".
    """

    step: int
    records: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] | None
    done: bool
    problem: str = ""


def make_cells(axes: Sequence[Axis], *, settings: Sequence[str], workdir: str, resolve: Resolve) -> list[Cell]:
    """Returns the cells of a grid, each with its config built and validated.

    Args:
      axes: of the grid.
      settings: of all cells, "--config.PATH=VALUE".
      workdir: folder of the sweep.
      resolve: returns the config that a run has with these settings, or raises ValueError.

    Raises:
      ValueError: a field or a value does not fit, in any cell; a setting that an axis would overrule; two cells that
        are the same run.
    """
    for setting in settings:
        field = setting.partition("=")[0].removeprefix("--no").removeprefix("--").removeprefix("config.")
        if field in [axis.field for axis in axes]:
            raise ValueError(f"{setting} is overruled by the axis config.{field} of --grid: leave one of them out.")
    last = Counter(axis.field.rpartition(".")[2] for axis in axes)
    found: dict[str, Cell] = {}
    for values in combinations(axes):
        own = tuple(f"--config.{field}={value}" for field, value in values.items())
        try:
            config = resolve([*settings, *own])
            check(config)
        except (ValueError, OSError) as error:
            raise ValueError(f"The cell {' '.join(own)}: {error}") from error
        name = ",".join(f"{field if last[field.rpartition('.')[2]] > 1 else field.rpartition('.')[2]}="
                        f"{_readable(field, value, config)}" for field, value in values.items())
        key = json.dumps(to_dict(config), sort_keys=True)
        if key in found:
            raise ValueError(f"The cells {' '.join(own)} and "
                             f"{' '.join(f'--config.{field}={value}' for field, value in found[key].values.items())} "
                             "are the same run: leave one of the values out of --grid.")
        found[key] = Cell(name, values, (*settings, *own), config, f"{workdir.rstrip('/')}/{name}")
    return list(found.values())


def check(config: Config) -> None:
    """Raises ValueError unless a config passes every check that needs no device and no data."""
    config.validate()
    head_weights(config.objective, config.model.num_heads, config.objective_horizon)
    ModelSpec.create(_with_vocabulary(config, _SOME_VOCABULARY).model)


def check_workdirs(cells: Sequence[Cell]) -> None:
    """Raises ValueError where a cell's folder holds the checkpoints of another run."""
    for cell in cells:
        folder = epath.Path(cell.workdir)
        stored = workdirs.read_config(folder)
        if stored is None or not finished_steps(folder / workdirs.CHECKPOINTS):
            continue
        vocabulary = stored.get("model", {}).get("vocab_size")
        fixed = workdirs.fixed_fields(differences(with_defaults(stored), _with_vocabulary(cell.config, vocabulary)))
        if fixed:
            lines = "".join(f"\n  {field}: {cell.workdir} has {old!r}, this sweep {new!r}"
                            for field, (old, new) in fixed.items())
            raise ValueError(f"The cell {cell.name} has a folder that holds another run:{lines}\nName another "
                             "--workdir, or set these as they were.")


def standing(cell: Cell) -> Standing:
    """Returns how far a cell has come. Its folder may be missing, or be written to at this moment."""
    folder = epath.Path(cell.workdir)
    stored = workdirs.read_config(folder)
    steps = finished_steps(folder / workdirs.CHECKPOINTS)
    records: Sequence[Mapping[str, Any]] = ()
    problem = ""
    try:
        records = read_metrics(folder)
    except ValueError as error:  # there is none yet, or it is damaged
        problem = str(error) if isinstance(error, DamagedError) else ""
    step = max(steps, default=0)
    written = max((record["step"] for record in records), default=0)
    return Standing(step, records, stored, stored is not None and min(step, written) >= cell.num_steps, problem)


def num_params(stored: Mapping[str, Any]) -> int:
    """Returns the number of a run's parameters from what its config.json holds."""
    return ModelSpec.create(from_dict({"model": stored["model"]}).model).num_params


def _with_vocabulary(config: Config, size: int | None) -> Config:
    """Returns the config with this vocabulary where it leaves it to the tokenizer."""
    if config.model.vocab_size is not None:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def _readable(field: str, value: str, config: Config) -> str:
    """Returns a value as a part of a folder's name: as the config has it, so that 1e-3 and 0.001 have one name."""
    fields = flatten(config)
    text = str(fields[field]) if field in fields else value
    plain = re.sub(r"[^\w.+-]+", "-", text).strip("-.")
    if plain == text and len(text) <= _LONGEST:
        return text
    return f"{plain[:_LONGEST]}~{hashlib.sha256(text.encode()).hexdigest()[:6]}".lstrip("~")
