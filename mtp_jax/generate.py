"""Continues a text with a trained model, several tokens a forward: its own heads draft, one forward verifies.

    python -m mtp_jax.generate --workdir=runs/code_bytes --prompt="def main(" --max_new_tokens=200 --show_drafts

The new text alone goes to stdout, all else to stderr. Of several prompts each text ends in a newline, and a line with
a form feed parts it from the next.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

from absl import flags

from mtp_jax import commands
from mtp_jax.config import GenerationConfig

_DEFINE: dict[str, Any] = {"str": flags.DEFINE_string, "int": flags.DEFINE_integer, "float": flags.DEFINE_float,
                           "bool": flags.DEFINE_bool, "tuple[str, ...]": flags.DEFINE_multi_string}


def define_flags() -> dict[str, flags.FlagHolder]:
    """Defines a flag for each field of GenerationConfig, with its default and help; and returns them."""
    own = {}
    for field in dataclasses.fields(GenerationConfig):
        define = _DEFINE[str(field.type).removesuffix(" | None")]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        own[field.name] = define(field.name, default, field.metadata["help"])
    return own


def main() -> NoReturn:
    """Runs the command."""
    own = define_flags()

    def run() -> int:
        from mtp_jax.parallel import host_memory  # from here on the imports that take seconds: --help does without

        if host_memory.will_run_on_cpu():
            host_memory.keep_freed_memory()
        from mtp_jax.checkpoints import CheckpointError
        from mtp_jax.decoding.command import run as generate

        values: dict[str, Any] = {name: tuple(flag.value) if isinstance(flag.value, list) else flag.value
                                  for name, flag in own.items()}
        try:
            return generate(GenerationConfig(**values))
        except (ValueError, OSError, CheckpointError, NotImplementedError) as error:
            return commands.fail(error)

    commands.run(run, *own)


if __name__ == "__main__":
    main()
