"""Scores a trained model, or a file of completions, by a task.

    python -m mtp_jax.evaluate --workdir=runs/code --task=humaneval --data=HumanEval.jsonl.gz --samples=20 \\
        --temperature=0.2 --temperature=0.8 --k=1 --k=10
    python -m mtp_jax.evaluate --task=humaneval --data=HumanEval.jsonl.gz --completions=samples.jsonl
    python -m mtp_jax.evaluate --list

Writes eval/TASK.json into the workdir: every completion, its score, the settings, and the numbers with intervals. An
evaluation that was stopped goes on with the same command.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from mtp_jax import commands
from mtp_jax.config import EvaluationConfig

INTERRUPTED = 130  # exit status of Ctrl-C


def main() -> NoReturn:
    """Runs the command."""
    own = commands.define_flags(EvaluationConfig)

    def run() -> int:
        from mtp_jax.checkpoints import CheckpointError  # from here on the imports that take seconds
        from mtp_jax.evaluation import command

        try:
            return command.run(EvaluationConfig(**commands.values_of(own)))
        except KeyboardInterrupt:
            print("\nStopped: the same command goes on with what is done.", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)  # XLA may be in a forward, which crashes where Python's own end takes its memory away
        except (ValueError, OSError, CheckpointError, NotImplementedError) as error:
            return commands.fail(error)

    commands.run(run, *own)


if __name__ == "__main__":
    main()
