"""Fits laws of how the loss falls with size and data, says what they predict, and draws them.

    python -m mtp_jax.scaling fit --law=chinchilla --csv=points.csv --columns=N=N_params,D=D_tokens --out=law.json
    python -m mtp_jax.scaling fit --law=head_one --workdirs='runs/cells/*' --keep=phase=stable --out=heads.json
    python -m mtp_jax.scaling predict --fit=law.json --N=1e9 --D=20e9
    python -m mtp_jax.scaling predict --fit=law.json --flops=1e21
    python -m mtp_jax.scaling plot --fit=law.json --out=law.png

fit reads measured losses, from a table or from runs, fits a law and writes it as JSON; the others read that file.
docs/scaling.md shows all of it on published data. Flags of one: python -m mtp_jax.scaling fit --help
"""

from __future__ import annotations

import sys
from typing import NoReturn

from mtp_jax import commands
from mtp_jax.analysis.scaling import command
from mtp_jax.config import nearest


def main() -> NoReturn:
    """Runs the command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help", "--helpfull", "--helpshort"):
        print(__doc__)
        sys.exit(0 if name else 1)
    if name not in command.ACTIONS:
        sys.exit(commands.fail(f"There is no action {name!r}.{nearest(name, command.ACTIONS)} Known: "
                               f"{', '.join(command.ACTIONS)}; the action comes first."))
    del sys.argv[1]
    own = commands.define_flags(command.ACTIONS[name])

    def run() -> int:
        try:
            return command.run(command.ACTIONS[name](**commands.values_of(own)))
        except (ValueError, OSError) as error:
            return commands.fail(error)

    commands.run(run, *own)


if __name__ == "__main__":
    main()
