"""What early exit from a looped trunk trades: the loss of every head over loops a token, on held-out text.

One model is read with each threshold of --set=thresholds, where a token leaves after the first loop in which the exit
gate's probability to have left reaches it, and with each fixed number of loops, which asks no gate:

    head_K_nats@q=Q         head K's loss, nats a token, with threshold Q
    loops@q=Q               loops after which the positions left that scored a token with head 1, mean over them
    loops_read@q=Q          the same over all positions that were read, those before objective.prompt_end too
    head_K_nats@loops=T     with T loops for every token

A target counts as in training: with objective.prompt_end only those after its first place in a document.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mtp_jax.decoding.model import DecodingModel
from mtp_jax.evaluation.likelihood import Reading, Scorer
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Result, Setting, Task
from mtp_jax.evaluation.theory.rows import text_rows
from mtp_jax.intervals import bootstrap


class EarlyExit(Task):
    """Loss over loops a token."""

    name = "early_exit"
    about = "What a looped trunk's early exit trades: loss of every head over loops a token, by threshold."
    data_help = "optional, a text; left out: the run's own validation data"
    settings = (Setting("thresholds", "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95", "Thresholds, in (0, 1]."),
                Setting("rows", 128, "Rows of text to read."))

    def run(self, request: Request) -> Result:
        """Reads the rows with each threshold and each number of loops.

        Raises:
          ValueError: the model has no exit gate, --exit_threshold or --loops is given, or a threshold is no number or
            out of range.
        """
        for name in ("exit_threshold", "loops"):
            if getattr(request.config, name) is not None:
                raise ValueError(f"--{name} is one of those that --task={self.name} compares: leave it out; "
                                 "--set=thresholds=0.5,0.9 names thresholds.")
        ways = {f"q={q:g}": request.model.leaving(q) for q in self.thresholds(request)}
        ways |= {f"loops={loops}": with_loops(request.model, loops)
                 for loops in range(1, request.model.config.loops + 1)}
        if request.option("rows") < 1:
            raise ValueError(f"--set=rows={request.option('rows')} must be at least 1.")
        rows = text_rows(request, request.option("rows"), shortest=request.model.heads + 2)
        end = None if request.data is not None else request.run_config().objective.prompt_end
        lengths_R = np.array([len(row) for row in rows])
        values: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        with request.progress(len(ways) * len(rows), self.name) as bar:
            for label, model in ways.items():
                scorer = Scorer(model, batch_size=request.config.batch_size)
                heads = tuple(range(1, model.heads + 1))
                found = [sums(row, reading, end)
                         for row, reading in zip(rows, scorer.read(rows, heads=heads, progress=bar.update))]
                nats_RxN, count_RxN, loops_R, read_R = (np.array(part) for part in zip(*found))
                if not count_RxN.sum(axis=0).all():
                    raise ValueError("The rows have no target that counts for every head: raise --set=rows.")
                for k in heads:
                    there_R = count_RxN[:, k - 1] > 0
                    nats_R, count_R = nats_RxN[there_R, k - 1], count_RxN[there_R, k - 1]
                    values[f"head_{k}_nats@{label}"] = float(nats_R.sum() / count_R.sum())
                    intervals[f"head_{k}_nats@{label}"] = bootstrap(nats_R / count_R, weights=count_R,
                                                                    seed=request.config.seed)
                if model.exit_threshold is not None:
                    values[f"loops@{label}"] = float(loops_R.sum() / count_RxN[:, 0].sum())
                    values[f"loops_read@{label}"] = float(read_R.sum() / (lengths_R - 1).sum())
        samples = [{"task_id": f"row {number}", "tokens": len(row)} for number, row in enumerate(rows)]
        return Result(self.name, Metrics(values, intervals), samples, request.settings())

    def thresholds(self, request: Request) -> list[float]:
        """Returns the thresholds, in order."""
        text = request.option("thresholds")
        try:
            return sorted({float(part) for part in text.split(",")})
        except ValueError as error:
            raise ValueError(f"--set=thresholds={text} must be numbers with commas between them.") from error


def with_loops(model: DecodingModel, loops: int) -> DecodingModel:
    """Returns the model with so many loops for every token."""
    return dataclasses.replace(model, config=dataclasses.replace(model.config, loops=loops))


def sums(row: np.ndarray, reading: Reading, prompt_end: int | None) -> tuple[list[float], list[int], int, int]:
    """Returns of each head the sum of -log p over the targets of a row that count, and their number; and the loops
    after which the positions left that scored head 1's, and all positions, added up (0 without early exit).

    Args:
      row: ids, of one document.
      reading: of them.
      prompt_end: targets count after its first place, none where it is missing; None: all.
    """
    first = 0
    if prompt_end is not None:
        places = np.flatnonzero(row == prompt_end)
        first = int(places[0]) + 1 if len(places) else len(row)
    # Head k predicts row[i + k] at place i.
    counted = {k: values[max(first - k, 0):] for k, values in reading.logprob.items()}
    start = max(first - 1, 0)
    loops_L = np.zeros(len(row) - 1, np.int32) if reading.loops is None else reading.loops
    return ([-float(values.sum(dtype=np.float64)) for values in counted.values()],
            [len(values) for values in counted.values()], int(loops_L[start:start + len(counted[1])].sum()),
            int(loops_L.sum()))


TASK = EarlyExit()
