"""Runs the studies of experiments/: trains and evaluates their cells, judges the claims, draws the pictures.

    python -m mtp_jax.study --experiment=head_sweep --workdir=runs/experiments

Cells that are done are not run again, so the same command goes on where a study was stopped. Without --experiment all
studies are run. --report prints what the folders hold as Markdown and starts nothing.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from mtp_jax import commands
from mtp_jax.analysis import study_command as study


def main() -> NoReturn:
    """Runs the command."""
    from launch import command, job  # a folder beside this package: only commands know it

    try:
        sys.argv[:], settings = job.split_settings(sys.argv)
    except ValueError as error:
        sys.exit(commands.fail(error))
    before = set(flags.FLAGS)
    command.define_options(study.Request, flags.FLAGS)

    def load(name: str) -> ModuleType:
        return importlib.import_module(job.experiment_module(name))

    def train(name: str, workdir: str, own: Any) -> list[str]:
        return [sys.executable, "-m", job.experiment_module(name), f"--workdir={workdir}", *own]

    def run() -> int:
        package = importlib.import_module("experiments")
        names = sorted(path.stem for place in package.__path__ for path in pathlib.Path(place).glob("[a-z]*.py"))
        try:
            return study.run(command.read_options(study.Request, flags.FLAGS), settings=settings, names=names,
                             load=load, train=train,
                             resolve=lambda name, own: commands.read_config(load(name).get_config, own))
        except (ValueError, OSError) as error:
            return commands.fail(error)

    commands.run(run, *(set(flags.FLAGS) - before))


if __name__ == "__main__":
    main()
