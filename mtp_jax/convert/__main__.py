"""Converts a model to what other tools run, or from what they wrote.

    python -m mtp_jax.convert --src=runs/code_bytes --dst=exported --dst_format=hf
    python -m mtp_jax.convert --src=exported --src_format=hf --dst=runs/llama --dst_format=workdir

How the result is used goes to stdout, all else to stderr.
"""

from __future__ import annotations

from typing import NoReturn

from mtp_jax import commands
from mtp_jax.config import ConvertConfig


def main() -> NoReturn:
    """Runs the command."""
    own = commands.define_flags(ConvertConfig)

    def run() -> int:
        from mtp_jax.parallel import host_memory  # from here on the imports that take seconds

        host_memory.give_back_freed_memory()
        from mtp_jax.checkpoints import CheckpointError
        from mtp_jax.convert import command

        try:
            print("\n".join(command.convert(ConvertConfig(**commands.values_of(own)))))
        except (ValueError, OSError, CheckpointError) as error:
            return commands.fail(error)
        return 0

    commands.run(run, *own)


if __name__ == "__main__":
    main()
