"""Choice tasks: the model chooses what it finds likeliest, as such and for its length."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.loglikelihood import encode_pair
from mtp_jax.evaluation.progress_file import ProgressFile
from mtp_jax.evaluation.request import Request, output_path
from mtp_jax.evaluation.task import Metrics, Result, Setting, Task
from mtp_jax.evaluation.tasks.choice_files import check_name, read_records
from mtp_jax.intervals import bootstrap

CHUNK = 16  # batches between two records of progress
MANY = 10  # problems that tell what a file is of


@dataclasses.dataclass(frozen=True)
class Choices:
    """A problem.

    Attributes:
      pairs: context and continuation of each choice; the space between two words begins the continuation.
      texts: of each choice what its score is divided by the length of.
      gold: number of the right one, from 0.
      closed: whether what the question is about is missing, so that the model must know it.
    """

    pairs: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    gold: int
    closed: bool = False

    @classmethod
    def after(cls, context: str, texts: Sequence[str], gold: int, *, closed: bool = False) -> Choices:
        """Returns choices that all continue one context, a space between."""
        return cls(tuple((context, f" {text}") for text in texts), tuple(texts), gold, closed)


# Accuracies, and what the log-likelihood of a choice is divided by.
MEASURES: dict[str, Callable[[str, int], float]] = {
    "acc": lambda text, tokens: 1.0,
    "acc_norm": lambda text, tokens: len(text),
    "acc_bytes": lambda text, tokens: len(text.encode()),
    "acc_tokens": lambda text, tokens: tokens,
}


class ChoiceTask(Task):
    """A choice task by log-likelihood under head 1.

    Args:
      name: as --task has it.
      about: a line on what it measures.
      data_help: what --data is.
      read: (record, where, settings) -> problem; raises ValueError where the record is none of the task.
      settings: of its own.
      usual: choices of most problems; 0: it varies.
    """

    drawing_flags = ("completions",)  # refused with a reason of its own

    def __init__(self, name: str, about: str, data_help: str,
                 read: Callable[[Mapping[str, Any], str, Mapping[str, Any]], Choices],
                 settings: Sequence[Setting] = (), usual: int = 0):
        self.name, self.about, self.data_help, self.read, self.settings = name, about, data_help, read, settings
        self.usual = usual

    def run(self, request: Request) -> Result:
        """Scores all choices of all problems.

        Raises:
          ValueError: --data cannot be read or is that of another task; or --completions was given.
        """
        if request.config.completions:
            raise ValueError(f"--completions: --task={self.name} asks the model how likely the choices are, and a file "
                             "of completions does not say: give --workdir.")
        problems, errors = self._problems(request)
        if request.config.heads is None:  # one head says it all, and the others need not be loaded
            request.config = dataclasses.replace(request.config, heads=1)
        scorer = Scorer(request.model, batch_size=request.config.batch_size)
        rows, cut = self._rows(scorer, problems, errors)
        settings = {"task": self.name, **request.settings(), "too_long": "cut from the left"}
        progress = ProgressFile(output_path(request.config), settings, restart=request.config.restart)
        scores = _scores(request, scorer, rows, progress)
        samples = [_sample(task_id, problem, scores.get(task_id), cut.get(task_id, 0), errors.get(task_id))
                   for task_id, problem in problems.items()]
        return Result(self.name, _metrics(samples, problems, cut, request.config.seed), samples, settings,
                      [{"task_id": task_id, "error": error} for task_id, error in errors.items()])

    def _problems(self, request: Request) -> tuple[dict[str, Choices | None], dict[str, str]]:
        """Returns the problems by name, None for those that cannot be read, and why these cannot."""
        assert request.data is not None
        check_name(request.data, self.name)
        problems: dict[str, Choices | None] = {}
        errors: dict[str, str] = {}
        for number, (where, record) in enumerate(request.take(read_records(request.data))):
            task_id = str(record.get("id", f"{self.name}/{number}"))
            if task_id in problems:
                raise ValueError(f"{where}: there is another problem named {task_id!r}: names must differ.")
            problems[task_id] = None
            try:
                problems[task_id] = self.read(record, where, request.options)
            except ValueError as error:
                errors[task_id] = str(error)
        if 2 * len(errors) > len(problems):  # not a few bad records: it is another file
            raise ValueError(f"{len(errors)} of {len(problems)} records of --data={request.config.data} are no problem "
                             f"of --task={self.name}. The first: {next(iter(errors.values()))}")
        unusual = [len(problem.pairs) != self.usual for problem in problems.values() if problem is not None]
        if self.usual and len(unusual) >= MANY and 2 * sum(unusual) > len(unusual):
            raise ValueError(f"{sum(unusual)} of {len(problems)} problems of --data={request.config.data} do not have "
                             f"{self.usual} choices, as those of --task={self.name} mostly do: it is no data of this "
                             "task.")
        return problems, errors

    def _rows(self, scorer: Scorer, problems: Mapping[str, Choices | None], errors: dict[str, str]
              ) -> tuple[dict[str, list[tuple[np.ndarray, np.ndarray]]], dict[str, int]]:
        """Returns the ids of each problem's pairs, and how many tokens were cut of those that do not fit the window;
        adds to `errors` what cannot be scored at all."""
        tokenizer, rows, cut = scorer.model.tokenizer, dict[str, list[tuple[np.ndarray, np.ndarray]]](), {}
        if tokenizer is None:
            raise ValueError("The model has no tokenizer: load it from its workdir.")
        for task_id, problem in problems.items():
            if problem is None:
                continue
            try:
                pairs = [encode_pair(tokenizer, *pair) for pair in problem.pairs]
                for _, continuation in pairs:
                    if not 0 < len(continuation) <= scorer.model.window:
                        raise ValueError(f"A choice has {len(continuation)} tokens, and the window of "
                                         f"{scorer.model.window} must hold at least one and all of them.")
            except ValueError as error:
                errors[task_id] = str(error)
                continue
            fitted = [scorer.fit(*pair) for pair in pairs]
            rows[task_id] = [(context, continuation) for context, continuation, _ in fitted]
            if any(lost for _, _, lost in fitted):
                cut[task_id] = max(lost for _, _, lost in fitted)
        return rows, cut


def _scores(request: Request, scorer: Scorer, rows: Mapping[str, list[tuple[np.ndarray, np.ndarray]]],
            progress: ProgressFile) -> dict[str, list[list[float]]]:
    """Returns [log-likelihood, tokens] of each choice of each problem."""
    pairs = [(task_id, *pair) for task_id, all_pairs in rows.items() for pair in all_pairs]
    order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number][1]) - len(pairs[number][2]))
    size, found = CHUNK * scorer.batch_size, dict[int, list[float]]()
    with request.progress(len(pairs), "choices") as bar:
        for start in range(0, len(order), size):
            numbers, key = order[start:start + size], f"choices {start}"
            if key in progress:
                bar.update(len(numbers))
            else:
                scored = scorer.score([pairs[number][1:] for number in numbers], progress=bar.update)
                progress.add(key, [[one.logprob, one.tokens] for one in scored])
            found |= dict(zip(numbers, progress[key]))
    scores: dict[str, list[list[float]]] = {task_id: [] for task_id in rows}
    for number, (task_id, *_) in enumerate(pairs):
        scores[task_id].append(found[number])
    return scores


def _sample(task_id: str, problem: Choices | None, scores: list[list[float]] | None, cut: int, error: str | None
            ) -> dict[str, Any]:
    """Returns a problem as the result's JSON has it."""
    wrong = dict.fromkeys(("passed", *MEASURES), False)
    if problem is None:
        return {"task_id": task_id, **wrong, "error": error}
    told = {"task_id": task_id, "context": problem.pairs[0][0], "choices": [more for _, more in problem.pairs],
            "gold": problem.gold}
    if problem.pairs[0][0] != problem.pairs[-1][0]:  # of partial evaluation
        told["context"] = [context for context, _ in problem.pairs]
    if scores is None:
        return {**told, **wrong, "error": error}
    logprob = np.array([score for score, _ in scores])
    chosen = {name: int(np.argmax(logprob / [max(1.0, by(text, int(tokens)))
                                             for text, (_, tokens) in zip(problem.texts, scores)]))
              for name, by in MEASURES.items()}
    right = {name: number == problem.gold for name, number in chosen.items()}
    return {**told, "scores": logprob.tolist(), "tokens": [int(tokens) for _, tokens in scores], "chosen": chosen,
            "passed": right["acc"], **right, **({"cut_tokens": cut} if cut else {})}


def _metrics(samples: Sequence[Mapping[str, Any]], problems: Mapping[str, Choices | None], cut: Mapping[str, int],
             seed: int) -> Metrics:
    """Returns the accuracies, what chance gives, and what was cut."""
    values, intervals = dict[str, float](), dict[str, tuple[float, float]]()
    for name in MEASURES:
        right = [float(sample[name]) for sample in samples]
        values[name], intervals[name] = float(np.mean(right)), bootstrap(right, seed=seed)
    there = [problem for problem in problems.values() if problem is not None]
    values["chance"] = float(np.mean([1 / len(problem.pairs) for problem in there]))
    values["cut_problems"] = len(cut)
    tables: dict[str, Any] = {"cut": dict(cut)}
    closed = sum(problem.closed for problem in there)
    if closed:
        tables["note"] = (f"{closed} of {len(problems)} questions come without the passage that they are about: they "
                          "are asked closed-book, which is not comparable with published numbers.")
        print(tables["note"], file=sys.stderr)
    return Metrics(values, intervals, tables)
