"""Probes of a trained model: what tokens inserted before a question do, where attention goes, activations moved.

    python -m mtp_jax.probe insert --workdir=runs/stories --task=gsm8k --data=test.jsonl --loss_only
    python -m mtp_jax.probe attention --help
    python -m mtp_jax.probe arm --help

docs/probes.md says what each measures. Results go to the workdir's folder probes/, as JSON and as pictures.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from mtp_jax import commands
from mtp_jax.analysis.probes.registry import PROBES
from mtp_jax.config import nearest


def main() -> NoReturn:
    """Runs the command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help", "--helpfull", "--helpshort"):
        print(f"{__doc__}\nProbes: {', '.join(PROBES)}. Flags of one: python -m mtp_jax.probe NAME --help")
        sys.exit(0 if name else 1)
    if name not in PROBES:
        sys.exit(commands.fail(f"There is no probe {name!r}.{nearest(name, list(PROBES))} Known: {', '.join(PROBES)}; "
                               "the probe's name comes first."))
    del sys.argv[1]
    probe = importlib.import_module(PROBES[name])
    own = commands.define_flags(probe.Options)

    def run() -> int:
        from mtp_jax.checkpoints import CheckpointError  # from here on the imports that take seconds

        try:
            return int(probe.run(probe.Options(**commands.values_of(own))))
        except (ValueError, OSError, CheckpointError, NotImplementedError) as error:
            return commands.fail(error)

    commands.run(run, *own)


if __name__ == "__main__":
    main()
