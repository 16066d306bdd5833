"""The command behind every experiment: `python -m experiments.NAME --workdir=DIR [--config.PATH=VALUE ...]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags

from mtp_jax import commands
from mtp_jax.config import from_config_dict


def main(get_config: Callable[..., Any]) -> NoReturn:
    """Runs an experiment module as a command; exits with the status of the run.

    Args:
      get_config: returns the experiment's ConfigDict, which --config.PATH=VALUE overrides. Parameters of its own are
        flags too: get_config(size="0.3b") makes --config.size=VALUE.
    """
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints, plots. A run that "
                                  "was stopped goes on from its last checkpoint. May lie in a bucket.", required=True)
    dry_run = flags.DEFINE_bool("dry_run", False, "Check everything, train two steps and write nothing.")
    experiment = commands.define_experiment(get_config)

    def run() -> int:
        from mtp_jax.parallel import host_memory  # from here on the imports that take seconds: --help does without

        if host_memory.will_run_on_cpu():
            host_memory.keep_freed_memory()
        from mtp_jax.analysis import report
        from mtp_jax.checkpoints import CheckpointError
        from mtp_jax.training import loop, prepare, signals

        try:
            prepared = prepare.prepare(from_config_dict(experiment.config.value), workdir.value)
        except (ValueError, OSError) as error:
            return commands.fail(error)
        prepare.announce(prepared, experiment.default)
        try:
            status = prepared.dry_run() if dry_run.value else prepared.train()
        except (loop.NonFiniteLoss, CheckpointError, OSError) as error:
            return commands.fail(error)
        if status == signals.DONE and not dry_run.value and prepared.is_first_process:
            print(report.report(prepared.workdir, with_sample=prepared.is_only_process))
        return status

    commands.run(run, "workdir", "dry_run", *experiment.names)
