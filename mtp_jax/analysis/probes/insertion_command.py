"""`python -m mtp_jax.probe insert`: accuracy and loss with tokens inserted before a question."""

from __future__ import annotations

import dataclasses
import json
import re

from mtp_jax.analysis.probes.conditions import BETWEEN, LENGTHS, POSITIONS
from mtp_jax.analysis.probes.model_options import FillerOptions, QuestionOptions
from mtp_jax.config import check_choice
from mtp_jax.config.generation import flag

USUAL_K = 55  # the source's


@dataclasses.dataclass(frozen=True)
class Options(QuestionOptions, FillerOptions):
    """What is inserted into what; each field is a flag."""

    task: str = flag("", "Where the questions are from: polynomial, star_graph, induction, math500, gsm8k, or another "
                     "task of python -m mtp_jax.evaluate --list whose answers are text.")
    k: tuple[str, ...] = flag((), "How often the filler is repeated. May be repeated. Default: 0, 10, 25, 40, 55, 70.")
    position: tuple[str, ...] = flag((), "Where: before the instruction, between it and the question, end, or random. "
                                     "May be repeated. Default: between.")
    loss_only: bool = flag(False, "Generate nothing: no accuracy.")
    leave_out: bool = flag(False, "Leave out problems that do not fit the window with the longest insertion.")
    bar_k: int | None = flag(None, "k of the bars. Default: the largest that is at most 55.")
    out: str = flag("", "File to write as JSON; the picture stands beside it. Default: probes/insert-TASK.json in the "
                    "workdir.")
    beside: tuple[str, ...] = flag((), "Result of this probe on another model, JSON: its bars are drawn beside these. "
                                   "May be repeated.")

    def validate(self) -> None:
        """Raises ValueError where a flag makes no sense whatever task and model are."""
        self.check_workdir()
        for position in self.positions:
            check_choice("--position", position, POSITIONS)
        for flags, values in (("position", self.positions), ("condition", self.condition), ("k", self.lengths)):
            if len(set(values)) < len(values):
                raise ValueError(f"--{flags}={list(values)} has a value twice.")
        if self.bar_k is not None and self.bar_k not in self.lengths:
            raise ValueError(f"--bar_k={self.bar_k} is none of the lengths that are measured, {list(self.lengths)}: "
                             f"add --k={self.bar_k}, or take another.")
        _ = self.conditions

    @property
    def lengths(self) -> tuple[int, ...]:
        """--k as numbers.

        Raises:
          ValueError: one is no number, or below 0.
        """
        found = []
        for text in self.k:
            if not re.fullmatch(r"\d+", text, re.ASCII):
                raise ValueError(f"--k={text} must be a whole number, 0 or above: it counts repetitions of the filler.")
            found.append(int(text))
        return tuple(found) or LENGTHS

    @property
    def positions(self) -> tuple[str, ...]:
        """--position, or the default."""
        return self.position or (BETWEEN,)

    @property
    def bars(self) -> int:
        """k of the bars."""
        below = [k for k in self.lengths if k <= USUAL_K]
        return self.bar_k if self.bar_k is not None else max(below or self.lengths)


def run(options: Options) -> int:
    """Does what the command was asked for; returns the exit status.

    Raises:
      ValueError, OSError, CheckpointError: nothing was measured.
    """
    from mtp_jax.analysis.probes import insertion, insertion_figure, insertion_report
    from mtp_jax.analysis.probes.output import output_path
    from mtp_jax.files import replace

    options.validate()
    path = output_path(options.out, options.workdir, f"insert-{options.task}")
    beside = {name: insertion_report.read(name) for name in options.beside}
    result = insertion_report.report(options, insertion.measure(options))
    replace(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    picture = insertion_figure.draw(result, path.with_suffix(".png"), k=options.bars)
    print("\n".join([*insertion_report.lines(result), f"Wrote {path} and {picture}"]))
    if beside:
        own = insertion_figure.draw_beside([result, *beside.values()], path.with_name(f"{path.stem}-beside.png"),
                                           k=options.bars)
        print(f"Wrote {own}")
    return 0
