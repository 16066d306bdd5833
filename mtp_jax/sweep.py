"""Runs an experiment over a grid of settings, and draws loss, acceptance and step time over the number of heads.

    python -m mtp_jax.sweep --experiment=code_bytes --grid='config.model.num_heads=1,2,4' --workdir=runs/heads

Every cell is a run in a folder of its own (runs/heads/num_heads=4), checked before the first one starts. Cells that are
done are skipped, so the same command goes on where a sweep was stopped. --config.PATH=VALUE sets a field of all cells.
"""

from __future__ import annotations

import functools
import importlib
import shlex
import sys
from typing import NoReturn

from absl import flags

from mtp_jax import commands
from mtp_jax.analysis import sweep_command as sweep


def main() -> NoReturn:
    """Runs the command."""
    from launch import calls, command, job  # a folder beside this package: only commands know it

    again = shlex.join(["python", "-m", "mtp_jax.sweep", *sys.argv[1:]])
    try:
        sys.argv[:], settings = job.split_settings(sys.argv)
    except ValueError as error:
        sys.exit(commands.fail(error))
    before, engines = set(flags.FLAGS), {name: importlib.import_module(f"launch.{name}").ENGINE
                                         for name in sweep.ENGINES}
    command.define_options(sweep.Request, flags.FLAGS)
    for name, engine in engines.items():
        command.define_options(engine.options, flags.FLAGS, prefix=f"{name}_")

    def run() -> int:
        request = command.read_options(sweep.Request, flags.FLAGS)
        try:
            request.validate()
            engine = engines.get(request.engine)
            options = command.read_options(engine.options, flags.FLAGS, f"{request.engine}_") if engine else None
            get_config = getattr(importlib.import_module(job.experiment_module(request.experiment)), "get_config", None)
            if get_config is None:
                raise ValueError(f"--experiment={request.experiment}: the module has no get_config().")
            return sweep.run(request, settings=settings, resolve=functools.partial(commands.read_config, get_config),
                             launch=sweep.Launch(job, calls, engine, options), again=again)
        except (ValueError, OSError) as error:
            return commands.fail(error)

    commands.run(run, *(set(flags.FLAGS) - before))


if __name__ == "__main__":
    main()
