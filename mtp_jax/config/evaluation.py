"""Settings of `python -m mtp_jax.evaluate`; each field is a flag of its own, and its help stands here."""

from __future__ import annotations

import dataclasses
import math

from mtp_jax.config.generation import flag


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, on what, and how. Settings left out are the task's own."""

    workdir: str = flag("", "Folder of a trained run; may lie in a bucket. Not needed with --completions.")
    task: str = flag("", "What to evaluate, by name; --list shows all.")
    data: str = flag("", "The task's file or folder, in the form that its authors publish; --list says which.")
    completions: str = flag("", "Score this JSONL of {\"task_id\", \"completion\"} instead of generating.")
    output: str = flag("", "File to write as JSON. Default: eval/TASK.json in the workdir, or beside --completions.")
    limit: int = flag(0, "Evaluate the first so many problems only; 0: all.")
    samples: int | None = flag(None, "Completions to draw of each problem at each temperature.")
    temperature: tuple[str, ...] = flag((), "Temperature; 0 takes the most likely token. May be repeated: each is "
                                        "sampled, the first is the fixed one, and the best for each k is told beside.")
    k: tuple[str, ...] = flag((), "k of pass@k, at most the number of samples. May be repeated.")
    top_p: float | None = flag(None, "Draw only from the most likely tokens that together have this probability.")
    max_new_tokens: int | None = flag(None, "Tokens of a completion, at most.")
    stop: tuple[str, ...] = flag((), "A completion ends before this text. May be repeated; replaces the task's own.")
    set: tuple[str, ...] = flag((), "A setting of the task's own, NAME=VALUE; --list shows them. May be repeated.")
    seed: int = flag(0, "Of the draws and of the intervals.")
    heads: int | None = flag(None, "Heads to draft with; 1 decodes without drafts. Changes the speed alone. Default: "
                             "all.")
    exit_threshold: float | None = flag(
        None, "Of a looped trunk: each token leaves it after the first loop in which the exit gate's probability to "
        "have left is at least this, in (0, 1]; lower is faster and worse. Default: all loops.")
    loops: int | None = flag(None, "Of a looped trunk: loops to run at most. Default: as many as in training.")
    batch_size: int = flag(32, "Rows that are generated, or read, together.")
    window: int | None = flag(None, "Tokens of context, prompt and new ones. Default: what the run was trained on.")
    mesh: str = flag("", "Devices, such as data:2,tensor:2 (see config.parallel.mesh). Default: one device.")
    step: int | None = flag(None, "Step of the checkpoint. Default: the newest undamaged one.")
    tokenizer: str = flag("", "Where the run's tokenizer lies now, if it was moved.")
    workers: int = flag(0, "Completions that are scored at once; 0: one a core.")
    timeout: float = flag(3.0, "Seconds that a program may take, for tasks that run programs.")
    restart: bool = flag(False, "Start anew where an evaluation was stopped. Default: go on with what it has written.")
    list: bool = flag(False, "Show all tasks and their settings, and end.")

    def validate(self) -> None:
        """Raises ValueError where a setting makes no sense whatever task and model are."""
        if not self.task:
            raise ValueError("--task is missing: name what to evaluate; --list shows all.")
        if not self.workdir and not self.completions:
            raise ValueError("--workdir is missing: name the folder of a trained run, or give --completions=FILE to "
                             "score what was generated elsewhere.")
        for name, least in (("limit", 0), ("samples", 1), ("max_new_tokens", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name}={value} must be at least {least}.")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"--timeout={self.timeout} must be above 0 seconds, and finite.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p={self.top_p} must lie in (0, 1].")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed={self.seed} must lie in [0, 2**32).")
        if any(not text for text in self.stop):
            raise ValueError("--stop is empty: give some text, or leave it out.")
        temperatures, ks = self.temperatures, self.ks
        if len(dict.fromkeys(temperatures)) < len(temperatures) or len(dict.fromkeys(ks)) < len(ks):
            raise ValueError(f"--temperature={list(self.temperature)} or --k={list(self.k)} has a value twice.")

    @property
    def temperatures(self) -> tuple[float, ...]:
        """--temperature as numbers.

        Raises:
          ValueError: one is no number, or below 0.
        """
        found = []
        for text in self.temperature:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0 <= value < math.inf:
                raise ValueError(f"--temperature={text} must be a number, 0 or above.")
            found.append(value)
        return tuple(found)

    @property
    def ks(self) -> tuple[int, ...]:
        """--k as numbers.

        Raises:
          ValueError: one is no number, or below 1.
        """
        for text in self.k:
            if not text.isascii() or not text.isdecimal() or int(text) < 1:
                raise ValueError(f"--k={text} must be a whole number, 1 or above.")
        return tuple(int(text) for text in self.k)
