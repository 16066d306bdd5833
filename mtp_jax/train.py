"""The command behind every experiment: `python -m experiments.NAME --workdir=DIR [--config.PATH=VALUE ...]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags

from mtp_jax import commands
from mtp_jax.config import dumps, from_config_dict


def main(get_config: Callable[..., Any], *, export: Callable[..., str] | None = None,
         measure: Callable[..., str] | None = None) -> NoReturn:
    """Runs an experiment module as a command; exits with the status of the run.

    Args:
      get_config: returns the experiment's ConfigDict; its parameters are flags too, as in commands.define_experiment.
      export, measure: write, or evaluate, the trained model, given the workdir; return lines to print at the end.
    """
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run. A run that was stopped goes on from its last "
                                  "checkpoint. May lie in a bucket.", required=True)
    dry_run = flags.DEFINE_bool("dry_run", False, "Check everything, train two steps and write nothing.")
    address = flags.DEFINE_string("coordinator_address", "", "In a run of several processes HOST:PORT of process 0. "
                                  "Cloud TPU, GKE, SLURM and Open MPI tell it, and the two flags below, themselves.")
    number = flags.DEFINE_integer("num_processes", 0, "Processes of the run. 1 is a run of its own, wherever it is.")
    process = flags.DEFINE_integer("process_id", -1, "This process's number, from 0.")
    experiment = commands.define_experiment(get_config)

    def run() -> int:
        from mtp_jax.parallel import distributed, host_memory  # from here on imports take seconds: --help needs none

        if host_memory.will_run_on_cpu():
            host_memory.keep_freed_memory()
        try:
            config = from_config_dict(experiment.config.value)
            facts = {**distributed.facts_of(config, workdir.value), "--dry_run": str(dry_run.value)}
            distributed.start(config.parallel, coordinator_address=address.value, num_processes=number.value,
                              process_id=process.value, facts=facts)
            from mtp_jax.analysis import report
            from mtp_jax.checkpoints import CheckpointError
            from mtp_jax.training import loop, prepare, signals

            prepared = distributed.together(lambda: prepare.prepare(config, workdir.value))
            distributed.check_agreement({"config": dumps(prepared.config), "hash of the corpus": prepared.corpus.hash})
        except (ValueError, OSError) as error:  # the same on all processes
            return commands.fail(error)
        prepare.announce(prepared, experiment.default)
        try:
            with distributed.noticing_loss():
                status = prepared.dry_run() if dry_run.value else prepared.train()
        except (loop.NonFiniteLoss, CheckpointError, OSError, distributed.ProcessLost, distributed.OutOfMemory) as why:
            return distributed.leave(commands.fail(why, distributed.own_name()))
        if status == signals.DONE and not dry_run.value and prepared.is_first_process:
            print(report.report(prepared.workdir, with_sample=prepared.is_only_process, export=export, measure=measure))
        return status

    commands.run(run, "workdir", "dry_run", "coordinator_address", "num_processes", "process_id", *experiment.names)
