"""Tasks that a trained model, or a file of completions, is scored by: one file a task under tasks/."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["after_training"]


def after_training(task: str, **settings: Any) -> Callable[[os.PathLike[str]], str]:
    """Returns what an experiment gives to `train.main(measure=...)`: it evaluates the run that has just ended.

    Args:
      task: by name.
      settings: fields of `EvaluationConfig`.
    """
    def measure(workdir: os.PathLike[str]) -> str:
        from mtp_jax.checkpoints import CheckpointError  # imports that take seconds; an experiment's --help needs none
        from mtp_jax.config import EvaluationConfig
        from mtp_jax.evaluation import command

        config = EvaluationConfig(workdir=os.fspath(workdir), task=task, **settings)
        try:
            return command.evaluate(config)
        except (ValueError, OSError, CheckpointError) as error:  # the run itself is done, and saved
            return f"Not evaluated: {error}\nTo try again: python -m mtp_jax.evaluate --workdir={workdir} --task={task}"

    return measure
