"""Continues a text with a trained model, several tokens a forward: its own heads draft, one forward verifies.

    python -m mtp_jax.generate --workdir=runs/code_bytes --prompt="def main(" --max_new_tokens=200 --show_drafts

The new text alone goes to stdout, all else to stderr. Of several prompts each text ends in a newline, and a line with
a form feed parts it from the next.
"""

from __future__ import annotations

from typing import NoReturn

from mtp_jax import commands
from mtp_jax.config import GenerationConfig


def main() -> NoReturn:
    """Runs the command."""
    own = commands.define_flags(GenerationConfig)

    def run() -> int:
        from mtp_jax.parallel import host_memory  # from here on the imports that take seconds: --help does without

        if host_memory.will_run_on_cpu():
            host_memory.keep_freed_memory()
        from mtp_jax.checkpoints import CheckpointError
        from mtp_jax.decoding.command import run as generate

        try:
            return generate(GenerationConfig(**commands.values_of(own)))
        except (ValueError, OSError, CheckpointError, NotImplementedError) as error:
            return commands.fail(error)

    commands.run(run, *own)


if __name__ == "__main__":
    main()
