"""Flags that the probes have in common: which model they look at, how it is asked, and what is inserted."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mtp_jax.config import EvaluationConfig
from mtp_jax.config.generation import flag

if TYPE_CHECKING:
    from mtp_jax.analysis.probes.conditions import Condition


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model is looked at; each field is a flag."""

    workdir: str = flag("", "Folder of a trained run, or of a converted checkpoint; may lie in a bucket.")
    window: int | None = flag(None, "Tokens of context. Default: what the run was trained on.")
    mesh: str = flag("", "Devices, such as data:2,tensor:2. Default: one device.")
    step: int | None = flag(None, "Step of the checkpoint. Default: the newest undamaged one.")
    tokenizer: str = flag("", "Where the run's tokenizer lies now, if it was moved.")

    def check_workdir(self) -> None:
        """Raises ValueError where no run is named."""
        if not self.workdir:
            raise ValueError("--workdir is missing: name the folder of a trained run.")


@dataclasses.dataclass(frozen=True)
class QuestionOptions(ModelOptions):
    """How a model is asked; each field is a flag."""

    data: str = flag("", "The task's file, as for python -m mtp_jax.evaluate.")
    limit: int = flag(0, "The first so many problems, or texts, only; 0: all.")
    instruction: str | None = flag(None, "Text before the question. Default: the task's own.")
    max_new_tokens: int | None = flag(None, "Tokens of an answer, at most. Default: the task's own; 32 for texts.")
    set: tuple[str, ...] = flag((), "A setting of the task's own, NAME=VALUE. May be repeated.")
    seed: int = flag(0, "Of the intervals, and of what is drawn for an insertion.")
    heads: int | None = flag(None, "Heads that are asked, and that draft. Default: all.")
    exit_threshold: float | None = flag(
        None, "Of a looped trunk: each token leaves it after the first loop in which the exit gate's probability to "
        "have left is at least this, in (0, 1]. Default: all loops.")
    loops: int | None = flag(None, "Of a looped trunk: loops to run at most. Default: as many as in training.")
    batch_size: int = flag(32, "Rows that are read, or generated, together.")

    def evaluation(self, task: str) -> EvaluationConfig:
        """Returns what an evaluation of that task would be asked.

        Raises:
          ValueError: a flag makes no sense.
        """
        config = EvaluationConfig(
            workdir=self.workdir, task=task, data=self.data, limit=self.limit, seed=self.seed,
            max_new_tokens=self.max_new_tokens, set=self.set, heads=self.heads, batch_size=self.batch_size,
            window=self.window, mesh=self.mesh, step=self.step, tokenizer=self.tokenizer,
            exit_threshold=self.exit_threshold, loops=self.loops)
        config.validate()
        return config


@dataclasses.dataclass(frozen=True)
class FillerOptions:
    """What is inserted; each field is a flag."""

    condition: tuple[str, ...] = flag((), "What: meaningless, meaningful, random (sentences). May be repeated. "
                                      "Default: all; none is always there.")
    meaningless: str = flag("/", "Token that is repeated as meaningless.")
    meaningful: str = flag("he ", "Word that is repeated as meaningful.")
    sentences: str = flag("", "Text file with the sentences of the control, one a line. Default: sixteen English ones.")
    same_tokens: bool = flag(False, "k counts tokens, not repetitions: a filler of several is repeated and cut to k.")

    @property
    def conditions(self) -> list[Condition]:
        """What is inserted, without the condition none, which is always measured.

        Raises:
          ValueError: one is unknown, there is none, or a filler is empty.
        """
        from mtp_jax.analysis.probes.conditions import chosen  # loads numpy, which --help has no need of

        return chosen(self.condition, meaningless=self.meaningless, meaningful=self.meaningful)
