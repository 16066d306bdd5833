"""`python -m mtp_jax.probe attention`: how much attention tokens receive, with and without inserted ones."""

from __future__ import annotations

import dataclasses

from mtp_jax.analysis.probes.model_options import FillerOptions, ModelOptions
from mtp_jax.config.generation import flag


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions, FillerOptions):
    """Where attention is looked at and on what; each field is a flag."""

    layer: int = flag(0, "Layer of the trunk, from 0; with --prediction_head, of that head's own layers.")
    head: int = flag(0, "Attention head, from 0.")
    prediction_head: int | None = flag(None, "Look at a layer of this prediction head, from 1. Default: the trunk.")
    loop: int | None = flag(None, "Loop of a looped trunk, from 1. Default: the last.")
    instruction: str = flag("", "Text before the question.")
    question: tuple[str, ...] = flag((), "Text of the prompt. May be repeated: prompts of one length are averaged.")
    data: str = flag("", "Take the questions from this JSONL, plain or .gz, instead.")
    field: str = flag("", "Field of --data that holds the question. Default: question, problem, prompt or text.")
    prompts: int = flag(1, "Average over so many questions of --data that have one length in tokens.")
    question_tokens: int = flag(0, "Cut every question to its first so many tokens and leave out shorter ones; 0: take "
                                "them whole, those of the most frequent length.")
    k: int = flag(55, "How often the filler is repeated.")
    position: str = flag("between", "Where: before the instruction, between it and the question, end, or random.")
    leave_out_first: bool = flag(False, "Leave the first token out of the picture: many models put most of their "
                                 "attention on it.")
    out: str = flag("", "File to write as JSON; the picture stands beside it. Default: probes/attention-PLACE.json in "
                    "the workdir.")
    seed: int = flag(0, "Of random sentences and the random place.")

    def validate(self) -> None:
        """Raises ValueError where a field cannot be used as it is."""
        self.check_workdir()
        if bool(self.question) == bool(self.data):
            raise ValueError("Give the prompt as --question=TEXT or as --data=FILE, one of the two.")
        if self.data and self.prompts < 1:
            raise ValueError(f"--prompts={self.prompts} must be at least 1.")
        if self.question and self.prompts != 1:
            raise ValueError(f"--prompts={self.prompts} counts questions of --data: repeat --question instead.")
        if self.question_tokens < 0:
            raise ValueError(f"--question_tokens={self.question_tokens} must be at least 1, or 0 for whole questions.")
        if self.k < 1:
            raise ValueError(f"--k={self.k} must be at least 1: it counts repetitions; none are always compared with.")


def run(options: Options) -> int:
    """Does what the command was asked for; returns the exit status."""
    options.validate()
    from mtp_jax.analysis.probes import attention_run

    print(attention_run.run(options))
    return 0
