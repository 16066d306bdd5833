"""Compiles an experiment's own train step for devices that need not be there, and prints what it needs as JSON.

    python -m mtp_jax.plan --experiment=paper --config.size=7b --topology=v5p:4x4x4 \\
        --config.parallel.mesh=fsdp:16,tensor:4 --config.data.batch_size=128

A TPU topology needs libtpu (pip install 'mtp_jax[tpu]', Linux on x86-64) and no TPU. A plan that does not fit exits 1.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from typing import NoReturn

from absl import flags

from mtp_jax import commands

_EXPERIMENT = flags.DEFINE_string("experiment", None, "Module of experiments/, such as paper; --config.PATH=VALUE "
                                  "changes its settings.", required=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "v4, v5e, v5p, v6e or tpu7x with a shape in chips, as v5e:4x4 or "
                                "v5p:4x4x4; or fake:8, devices of the CPU.", required=True)
_SLICES = flags.DEFINE_integer("slices", 1, "Copies of the topology, joined by the data-center network.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "decode"], "What to plan: a train step, or a block of decoding.")
_FIT = flags.DEFINE_bool("fit", False, "Rank batch, remat and mesh by an analytic model, compile the best three at "
                         "most, and print the command that runs the best.")
_BUDGET = flags.DEFINE_float("budget_minutes", 15.0, "Time for --fit to compile in.")


def main() -> NoReturn:
    """Runs the command."""
    from launch import job  # a folder beside this package: only commands know it

    try:
        sys.argv[:], settings = job.split_settings(sys.argv)
    except ValueError as error:
        sys.exit(commands.fail(error))

    def run() -> int:
        from mtp_jax.parallel import topology

        try:
            devices = topology.parse_topology(_TOPOLOGY.value, _SLICES.value)
            topology.prepare_environment(devices, os.environ)
            topology.prepare_jax(devices)
            from mtp_jax.planning import command
            experiment = importlib.import_module(job.experiment_module(_EXPERIMENT.value))
            return command.run(functools.partial(commands.read_config, experiment.get_config), settings, devices,
                               experiment=_EXPERIMENT.value, mode=_MODE.value, fit=_FIT.value, minutes=_BUDGET.value)
        except (ValueError, OSError) as error:
            return commands.fail(error)

    commands.run(run, "experiment", "topology", "slices", "mode", "fit", "budget_minutes")


if __name__ == "__main__":
    main()
