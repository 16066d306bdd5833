"""Converts a model to what other tools run, or from what they wrote.

    python -m mtp_jax.convert --src=runs/code_bytes --dst=exported --dst_format=hf
    python -m mtp_jax.convert --src=exported --src_format=hf --dst=runs/llama --dst_format=workdir

How the result is used goes to stdout, all else to stderr.
"""

from __future__ import annotations

import errno
from typing import NoReturn

from mtp_jax import commands
from mtp_jax.config import ConvertConfig

INTERRUPTED = 130  # exit status after Ctrl-C, as in the other commands


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
        except KeyboardInterrupt:
            commands.fail("stopped by Ctrl-C. --dst is as it was: run the same command again.")
            return INTERRUPTED
        except MemoryError:
            return commands.fail("memory ran out. --dst is as it was: converting takes that of the largest array.")
        except (ValueError, OSError, CheckpointError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                error = ValueError(f"the disk is full: --dst={own['dst'].value} could not be written, and is as it "
                                   "was. Free some space, or name a folder on another disk.")
            return commands.fail(error)
        return 0

    commands.run(run, *own)


if __name__ == "__main__":
    main()
