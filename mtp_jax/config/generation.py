"""Settings of `python -m mtp_jax.generate`; each field is a flag of its own, and its help stands here."""

from __future__ import annotations

import dataclasses
import re
from typing import Any


def flag(default: Any, text: str) -> Any:
    """Returns a field with this default, whose flag has this help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """What is generated, from what, and how it is shown. No field is stored in a workdir."""

    workdir: str = flag("", "Folder of a trained run; may lie in a bucket.")
    prompt: tuple[str, ...] = flag((), "Text to continue. May be repeated: all are continued together, as a batch.")
    prompt_file: str = flag("", "File with the text to continue, taken as it is; or a .jsonl (or .jsonl.gz) with the "
                            "field \"prompt\" or \"text\" in each line, a batch.")
    max_new_tokens: int = flag(128, "Tokens to add, at most.")
    heads: str = flag("", "Heads to draft with, from 1 (head 1 alone, no drafts) to the model's number; or auto: what "
                      "makes the most tokens per second here. Default: all.")
    tree: int = flag(0, "Draft a tree of so many tokens a forward, by --calibrate's figures; 0: a chain, one token a "
                     "head.")
    temperature: float = flag(0.0, "0: always the most likely token. Above: drawn; larger is more varied. Drafting "
                              "changes neither the text at 0 nor the odds above it.")
    top_k: int = flag(0, "Draw only from this many of the most likely tokens; 0: from all.")
    top_p: float = flag(1.0, "Draw only from the most likely tokens that together have this probability; 1: from all.")
    min_p: float = flag(0.0, "Draw only from tokens that are at least this share as likely as the likeliest.")
    typical: bool = flag(False, "Accept any draft that is likely enough (typical acceptance). Faster, and NOT "
                         "lossless: the text differs from what the model alone would write.")
    typical_epsilon: float = flag(0.09, "--typical accepts a draft whose probability is above this, or above ...")
    typical_delta: float = flag(0.3, "... this times exp(-entropy), where that is less.")
    exit_threshold: float | None = flag(
        None, "Of a looped trunk: each token leaves it after the first loop in which the exit gate's probability to "
        "have left is at least this, in (0, 1]; lower is faster, and not the same text. Default: all loops.")
    loops: int | None = flag(None, "Of a looped trunk: loops to run at most. Default: as many as in training.")
    seed: int = flag(0, "Of the draws; the same seed gives the same text.")
    stop: tuple[str, ...] = flag((), "End before this token: its id, or a text that is one token. May be repeated. "
                                 "Default: the tokenizer's EOS, which is given by its id beside others.")
    window: int | None = flag(None, "Tokens of context, prompt and new ones. Default: what the run was trained on.")
    mesh: str = flag("", "Devices, such as data:2,tensor:2 (see config.parallel.mesh). Default: one device.")
    step: int | None = flag(None, "Step of the checkpoint. Default: the newest undamaged one.")
    tokenizer: str = flag("", "Where the run's tokenizer lies now, if it was moved.")
    cache_dtype: str = flag("", "Keys and values are kept in float32 or bfloat16. Default: the model's dtype.")
    stats: str = flag("", "File to write as JSON: tokens, forwards, seconds (compiling excluded), acceptance.")
    calibrate: str = flag("", "Text file of the kind that is to be written: measures how often each head's candidates "
                          "are right and keeps that in the workdir, for --tree and --heads=auto.")
    show_drafts: bool = flag(False, "Colour each token by the head that drafted it.")
    stream: bool | None = flag(None, "Print tokens as they are accepted; one prompt only. Default: on a terminal.")

    def validate(self) -> None:
        """Raises ValueError where a setting makes no sense whatever the model is."""
        if not self.workdir:
            raise ValueError("--workdir is missing: name the folder of a trained run.")
        if self.heads not in ("", "auto") and not re.fullmatch(r"-?\d+", self.heads):
            raise ValueError(f"--heads={self.heads} must be a number, or auto.")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens={self.max_new_tokens} must be at least 1.")
        if self.tree < 0:
            raise ValueError(f"--tree={self.tree} must be a number of tokens a forward, or 0 for a chain.")
        if self.tree == 1:
            raise ValueError("--tree=1 has room for no draft, for the token that is settled counts: raise it, or give "
                             "--heads=1 to decode without drafts.")
        if self.tree and self.heads == "auto":
            raise ValueError(f"--tree={self.tree} beside --heads=auto, which chooses the tree itself: leave out one.")
        if self.tree and self.heads == "1":
            raise ValueError(f"--tree={self.tree} needs drafts, and --heads=1 makes none: raise --heads, or leave out "
                             "--tree.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed={self.seed} must lie in [0, 2**32).")
        if not (self.prompt or self.prompt_file or self.calibrate):
            raise ValueError("There is nothing to continue: give --prompt=TEXT or --prompt_file=FILE.")
        if any(not text for text in self.prompt):
            raise ValueError("--prompt is empty: give some text to continue.")
