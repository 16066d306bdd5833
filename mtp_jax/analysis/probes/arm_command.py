"""`python -m mtp_jax.probe arm`: the activation redistribution module on a trained model, off and on."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING

from mtp_jax.analysis.probes.model_options import QuestionOptions
from mtp_jax.config import check_choice
from mtp_jax.config.generation import flag

if TYPE_CHECKING:
    from mtp_jax.model.redistribution import Redistribution

STATS, MODES, NOISES, PERCENTILES = ("token", "tensor"), ("replace", "add"), ("position", "none"), (
    "values", "magnitudes")


@dataclasses.dataclass(frozen=True)
class Options(QuestionOptions):
    """What is redistributed, and what is asked; each field is a flag."""

    task: str = flag("", "Where the questions are from, as for python -m mtp_jax.probe insert.")
    data: str = flag("", "The task's file; without --task a text file, or JSONL, whose texts are read and continued.")
    field: str = flag("text", "Field of a JSONL --data that holds the text.")
    text_tokens: int = flag(128, "Tokens of each text of --data: the first half is the prompt, the rest its reference.")
    c: tuple[str, ...] = flag((), "What is near zero: below 1.4826 MAD c. May be repeated. Default: 0.05, 0.1, 0.2, "
                              "0.4.")
    p1: tuple[str, ...] = flag((), "Percentile up to which positive activations are spread. May be repeated. Default: "
                               "90, 99.5.")
    p_min: float = flag(0.02, "Least share of activations that is moved.")
    p_max: float = flag(0.25, "Largest share of activations that is moved.")
    fraction: tuple[str, ...] = flag((), "Share that is moved, instead of --c. May be repeated.")
    stats: str = flag("token", "Medians and percentiles of each token, or of the tensor of a call.")
    mode: str = flag("replace", "replace, or add: what becomes of an activation that is moved.")
    noise: str = flag("position", "position: uniform, by seed, position and feature; none: 0.5 throughout.")
    percentile_of: str = flag("values", "values, or magnitudes, of which --p1 is a percentile.")
    noise_seed: tuple[str, ...] = flag((), "Seed of the noise. May be repeated. Default: 0.")
    k: int = flag(0, "Also tell activations on the question with a run of so many --meaningless before it; 0: not.")
    meaningless: str = flag("/", "Token of that run.")
    loss_only: bool = flag(False, "Generate nothing: no accuracy, no drafts.")
    leave_out: bool = flag(False, "Leave out problems that do not fit the window with their answers, or with --k.")
    out: str = flag("", "File to write as JSON; the picture stands beside it. Default: probes/arm-TASK.json in the "
                    "workdir.")

    def validate(self) -> None:
        """Raises ValueError where a flag makes no sense whatever model and questions are."""
        self.check_workdir()
        if not self.task and not self.data:
            raise ValueError("Say what the model is to read: --task=NAME for questions, or --data=FILE for texts.")
        if self.c and self.fraction:
            raise ValueError(f"--c={list(self.c)} beside --fraction={list(self.fraction)}: each says how much is "
                             "moved; leave one out.")
        for name, word, known in (("stats", self.stats, STATS), ("mode", self.mode, MODES),
                                  ("noise", self.noise, NOISES), ("percentile_of", self.percentile_of, PERCENTILES)):
            check_choice(f"--{name}", word, known)
        if self.text_tokens < 4:
            raise ValueError(f"--text_tokens={self.text_tokens} must be at least 4: one half is the prompt.")
        if self.k < 0:
            raise ValueError(f"--k={self.k} must be at least 0: it counts repetitions; 0 inserts nothing.")
        if self.k and not self.meaningless:
            raise ValueError("--meaningless is empty: name the text that is repeated, or leave out --k.")
        if self.stats == "tensor" and not self.loss_only and (self.heads != 1 or self.batch_size != 1):
            raise ValueError("--stats=tensor takes its statistics over all tokens of a call, so that what is written "
                             "would depend on drafts and batch: add --loss_only, which reads whole rows, or decode "
                             "one token of one text at a time with --heads=1 --batch_size=1.")
        _ = self.amounts, self.percentiles, self.seeds

    @property
    def amounts(self) -> tuple[float, ...]:
        """--c, or --fraction, as numbers."""
        return _numbers("fraction", self.fraction) if self.fraction else _numbers("c", self.c or (
            "0.05", "0.1", "0.2", "0.4"))

    @property
    def percentiles(self) -> tuple[float, ...]:
        """--p1 as numbers."""
        return _numbers("p1", self.p1 or ("90", "99.5"))

    @property
    def seeds(self) -> tuple[int, ...]:
        """--noise_seed as numbers.

        Raises:
          ValueError: one is not whole.
        """
        found = _numbers("noise_seed", self.noise_seed or ("0",))
        if any(value != int(value) for value in found):
            raise ValueError(f"--noise_seed={list(self.noise_seed)} must be whole numbers.")
        return tuple(map(int, found))

    @property
    def amount_name(self) -> str:
        """Which of the two says how much is moved: "c" or "fraction"."""
        return "fraction" if self.fraction else "c"

    @property
    def name(self) -> str:
        """What is read, in one word."""
        return self.task or "texts"

    def settings(self) -> list[tuple[dict[str, float], Redistribution]]:
        """Returns every combination, with what is special in it.

        Raises:
          ValueError: a value is out of range.
        """
        from mtp_jax.model.redistribution import Redistribution

        found = []
        for p1 in self.percentiles:
            for amount in self.amounts:
                for seed in self.seeds:
                    own = {self.amount_name: amount, "p1": p1, "noise_seed": seed}
                    try:
                        found.append((own, Redistribution.create(
                            **{self.amount_name: amount}, p1=p1, p_min=self.p_min, p_max=self.p_max, seed=seed,
                            mode=self.mode, statistics=self.stats, noise=self.noise,
                            percentile_of=self.percentile_of)))
                    except ValueError as error:  # each begins with the field, the flag's name but for the seed
                        raise ValueError(f"--{str(error).replace('seed=', 'noise_seed=', 1)}") from error
        return found


def run(options: Options) -> int:
    """Does what the command was asked for; returns the exit status.

    Raises:
      ValueError, OSError, CheckpointError: nothing was measured.
    """
    from mtp_jax.analysis.probes.output import output_path
    from mtp_jax.files import replace

    options.validate()
    settings = options.settings()
    path = output_path(options.out, options.workdir, f"arm-{options.name}")
    from mtp_jax.analysis.probes import arm, arm_figure, arm_report

    result = arm_report.report(options, arm.measure(options, settings))
    replace(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    picture = arm_figure.draw(result, path.with_suffix(".png"))
    print("\n".join([*arm_report.lines(result), f"Wrote {path} and {picture}"]))
    return 0


def _numbers(name: str, texts: tuple[str, ...]) -> tuple[float, ...]:
    """Returns values of a flag as numbers.

    Raises:
      ValueError: one is none, or comes twice.
    """
    found = []
    for text in texts:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"--{name}={text} must be a number.")
        found.append(value)
    if len(set(found)) < len(found):
        raise ValueError(f"--{name}={list(texts)} has a value twice.")
    return tuple(found)
