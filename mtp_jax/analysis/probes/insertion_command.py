"""`python -m mtp_jax.probe insert`: accuracy and loss with tokens inserted before a question."""

from __future__ import annotations

import dataclasses

from mtp_jax.config.generation import flag


@dataclasses.dataclass(frozen=True)
class Options:
    """What is inserted into what; each field is a flag."""

    workdir: str = flag("", "Folder of a trained run, or of a converted checkpoint; may lie in a bucket.")
    task: str = flag("", "Where the questions are from: polynomial, star_graph, induction, math500, gsm8k, or another "
                     "task of python -m mtp_jax.evaluate --list whose answers are text.")
    data: str = flag("", "The task's file, as for python -m mtp_jax.evaluate.")
    limit: int = flag(0, "The first so many problems only; 0: all.")
    k: tuple[str, ...] = flag((), "How often the filler is repeated. May be repeated. Default: 0, 10, 25, 40, 55, 70.")
    position: tuple[str, ...] = flag((), "Where: before the instruction, between it and the question, end, or random. "
                                     "May be repeated. Default: between.")
    condition: tuple[str, ...] = flag((), "What: meaningless, meaningful, random (sentences). May be repeated. "
                                      "Default: all; none is always there.")
    meaningless: str = flag("/", "Token that is repeated as meaningless.")
    meaningful: str = flag("he ", "Word that is repeated as meaningful.")
    same_tokens: bool = flag(False, "k counts tokens, not repetitions: a filler of several is repeated and cut to k.")
    instruction: str | None = flag(None, "Text before the question. Default: the task's own.")
    loss_only: bool = flag(False, "Generate nothing: no accuracy.")
    leave_out: bool = flag(False, "Leave out problems that do not fit the window with the longest insertion.")
    max_new_tokens: int | None = flag(None, "Tokens of an answer, at most. Default: the task's own.")
    set: tuple[str, ...] = flag((), "A setting of the task's own, NAME=VALUE. May be repeated.")
    bar_k: int | None = flag(None, "k of the bars. Default: the largest that is at most 55.")
    out: str = flag("", "File to write as JSON; the picture stands beside it. Default: probes/insert-TASK.json in the "
                    "workdir.")
    seed: int = flag(0, "Of random sentences, random places and intervals.")
    heads: int | None = flag(None, "Heads that are asked, and that draft. Default: all.")
    batch_size: int = flag(32, "Rows that are read, or generated, together.")
    window: int | None = flag(None, "Tokens of context. Default: what the run was trained on.")
    mesh: str = flag("", "Devices, such as data:2,tensor:2. Default: one device.")
    step: int | None = flag(None, "Step of the checkpoint. Default: the newest undamaged one.")
    tokenizer: str = flag("", "Where the run's tokenizer lies now, if it was moved.")


def run(options: Options) -> int:
    """Does what the command was asked for; returns the exit status."""
    from mtp_jax.analysis.probes import insertion

    print(insertion.run(options))
    return 0
