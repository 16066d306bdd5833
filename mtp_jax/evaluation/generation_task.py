"""Tasks whose problems the model answers in text: draws completions, scores them, and counts what passed."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.evaluation import generating
from mtp_jax.evaluation.generating import Drawing, Forwards
from mtp_jax.evaluation.pass_at_k import pass_at_k
from mtp_jax.evaluation.problems import read_completions
from mtp_jax.evaluation.progress_file import ProgressFile
from mtp_jax.evaluation.request import Request, digest, output_path
from mtp_jax.evaluation.task import DRAWING_FLAGS, Defaults, Metrics, Problem, Result, Sample, Task
from mtp_jax.intervals import bootstrap


class GenerationTask(Task):
    """A task of problems that are answered in text.

    Attributes:
      defaults: how completions are drawn.
    """

    defaults: Defaults = Defaults()
    drawing_flags = DRAWING_FLAGS

    def problems(self, request: Request) -> list[Problem]:
        """Returns the problems, each with its prompt.

        Raises:
          ValueError: the data are not those of the task; names the file and the line.
        """
        raise NotImplementedError

    def completion(self, problem: Problem, text: str) -> str:
        """Returns what counts of a text that ends at the first stop sequence; all of it."""
        del problem
        return text

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Returns what is found of a completion, "passed" among it; called from several threads.

        What it raises is this completion's error: it is counted as failed, and listed.
        """
        raise NotImplementedError

    def metrics(self, samples: Sequence[Sample], request: Request) -> Metrics:
        """Returns pass@k, by `pass_metrics`."""
        return pass_metrics(samples, self.drawing(request), self.ks(request), seed=request.config.seed)

    def drawing(self, request: Request) -> Drawing:
        """Returns how completions are drawn: the flags, and where they say nothing the task's own settings.

        Raises:
          ValueError: several samples at temperature 0, which are all the same.
        """
        config, own = request.config, self.defaults
        drawing = Drawing(config.temperatures or own.temperatures, config.samples or own.samples,
                          own.top_p if config.top_p is None else config.top_p,
                          config.max_new_tokens or own.max_new_tokens, config.stop or own.stop)
        if drawing.samples > 1 and 0.0 in drawing.temperatures:
            raise ValueError(f"--samples={drawing.samples} at temperature 0 are {drawing.samples} times the same text: "
                             "give a --temperature above 0, or --samples=1.")
        return drawing

    def ks(self, request: Request) -> tuple[int, ...]:
        """Returns the k of pass@k.

        Raises:
          ValueError: one is larger than the number of samples.
        """
        given, drawn = request.config.ks, self.drawing(request).samples
        if not request.config.completions:
            for k in given:
                if k > drawn:
                    raise ValueError(f"--k={k} needs at least {k} samples of a problem, and --samples={drawn} draws "
                                     "fewer: raise it.")
            return given or tuple(k for k in self.defaults.k if k <= drawn)
        return given or tuple(k for k in self.defaults.k if k <= request.least_completions)

    def run(self, request: Request) -> Result:
        """Draws completions, or reads them, scores them and counts."""
        drawing, ks = self.drawing(request), self.ks(request)
        problems = self.problems(request)
        ids = [problem.task_id for problem in problems]
        twice = [task_id for task_id, count in collections.Counter(ids).items() if count > 1]
        if twice:
            raise ValueError(f"--data={request.config.data} has two problems named {twice[0]!r}: names must differ.")
        if not problems:
            raise ValueError(f"--data={request.config.data} holds no problem of this task.")
        texts: dict[str, list[str]] | None = None
        if request.config.completions:
            source = epath.Path(request.config.completions).expanduser()
            if not source.exists():
                raise ValueError(f"--completions={request.config.completions} does not exist.")
            texts = read_completions(source, ids)
        problems = request.take(problems)
        if all(problem.broken for problem in problems):
            raise ValueError(problems[0].broken)
        if texts is not None:
            most = max(len(texts[problem.task_id]) for problem in problems)
            texts |= {problem.task_id: [""] * most for problem in problems  # fails, whatever it is answered by
                      if problem.broken and not texts[problem.task_id]}
            request.least_completions = max(1, min(len(texts[problem.task_id]) for problem in problems))
            ks = self.ks(request)
        settings = self._settings(request, drawing, ks)
        deciding = {name: value for name, value in settings.items() if name != "k"}  # of what is drawn and scored
        progress = ProgressFile(output_path(request.config), deciding, restart=request.config.restart)
        forwards = Forwards()
        if texts is None:
            samples = self._draw(request, problems, drawing, progress, forwards)
        else:
            samples = self._take(request, problems, texts, ks)
        self._score(request, {problem.task_id: problem for problem in problems}, samples, progress)
        metrics = self.metrics(samples, request)
        if forwards.forwards:
            settings["tokens_per_forward"] = forwards.tokens / forwards.forwards
            settings["seconds_generating"] = round(forwards.seconds, 3)
            if "loops" in settings:
                settings["loops_per_token"] = forwards.loops / forwards.tokens
        errors = [{"task_id": sample.task_id, "error": sample.error} for sample in samples if sample.error is not None]
        return Result(self.name, metrics, [sample.to_json() for sample in samples], settings, errors)

    def _settings(self, request: Request, drawing: Drawing, ks: Sequence[int]) -> dict[str, Any]:
        """Returns everything that decides the numbers."""
        config = request.config
        found = {"k": list(ks), "timeout": config.timeout}
        if config.completions:
            found |= {"completions": config.completions,
                      "completions_sha256": digest(epath.Path(config.completions).expanduser())}
        else:
            request.model  # noqa: B018  (loads it, so that the settings name its step)
            found |= {"temperatures": list(drawing.temperatures), "samples": drawing.samples, "top_p": drawing.top_p,
                      "max_new_tokens": drawing.max_new_tokens, "stop": list(drawing.stop)}
        return {"task": self.name, **request.settings(), **found}

    def _draw(self, request: Request, problems: Sequence[Problem], drawing: Drawing, progress: ProgressFile,
              forwards: Forwards) -> list[Sample]:
        """Returns the samples that the model writes, not yet scored."""
        sound = [problem for problem in problems if not problem.broken]
        drawn, failed = generating.draw(request, [problem.prompt for problem in sound], drawing, progress, forwards)
        reasons = {**{sound[number].task_id: why for number, why in failed.items()},
                   **{problem.task_id: problem.broken for problem in problems if problem.broken}}
        lost = [Sample(task_id, "", temperature, error=why) for task_id, why in reasons.items()
                for temperature in drawing.temperatures for _ in range(drawing.samples)]
        return [Sample(sound[one.problem].task_id, self.completion(sound[one.problem], one.text), one.temperature)
                for one in drawn] + lost

    def _take(self, request: Request, problems: Sequence[Problem], texts: Mapping[str, list[str]], ks: Sequence[int]
              ) -> list[Sample]:
        """Returns the samples that a file brings, not yet scored."""
        missing = [problem.task_id for problem in problems if not texts[problem.task_id]]
        where = f"--completions={request.config.completions}"
        if missing:
            raise ValueError(f"{where} has no completion for {len(missing)} of {len(problems)} problems, such as "
                             f"{missing[0]!r}: add them (an empty one fails), or leave the last out with --limit.")
        least = min(problems, key=lambda problem: len(texts[problem.task_id]))
        for k in ks:
            if k > len(texts[least.task_id]):
                raise ValueError(f"--k={k} needs at least {k} completions of a problem, and {where} has "
                                 f"{len(texts[least.task_id])} of {least.task_id!r}: add some, or lower it.")
        return [Sample(problem.task_id, text, error=problem.broken or None) for problem in problems
                for text in texts[problem.task_id]]

    def _score(self, request: Request, problems: Mapping[str, Problem], samples: Sequence[Sample],
               progress: ProgressFile) -> None:
        """Scores the samples, several at once."""
        todo = []
        for number, sample in enumerate(samples):
            key = f"score {number}"
            if key in progress:
                sample.fields, sample.error = progress[key]
            elif sample.error is None:
                todo.append((key, sample))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        pool = futures.ThreadPoolExecutor(request.config.workers or cores)
        try:
            running = {pool.submit(self.score, problems[sample.task_id], sample.completion, request): (key, sample)
                       for key, sample in todo}
            with request.progress(len(todo), "scored") as bar:
                for done in futures.as_completed(running):
                    key, sample = running[done]
                    try:
                        sample.fields = dict(done.result())
                    except Exception as error:  # one bad problem never ends the run: it is counted, and listed
                        sample.error = f"{type(error).__name__}: {error}"
                    progress.add(key, [sample.fields, sample.error])
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def pass_metrics(samples: Sequence[Sample], drawing: Drawing, ks: Sequence[int], *, seed: int) -> Metrics:
    """Returns pass@k: at the first temperature, and as the paper has it at the best one for each k.

    Args:
      samples: scored.
      drawing: with the temperatures, the fixed one first.
      ks: k of each.
      seed: of the intervals, which are 90 % bootstrap ones over problems.
    """
    temperatures: Sequence[float | None] = list(dict.fromkeys(sample.temperature for sample in samples))
    ordered = [one for one in drawing.temperatures if one in temperatures] or temperatures
    by_temperature: dict[str, dict[str, float]] = {}
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for temperature in ordered:
        counts: dict[str, list[bool]] = collections.defaultdict(list)
        for sample in samples:
            if sample.temperature == temperature:
                counts[sample.task_id].append(sample.passed)
        for k in ks:
            name = f"pass@{k}"
            scores = np.array([pass_at_k(len(passed), sum(passed), k) for passed in counts.values()])
            by_temperature.setdefault(str(temperature), {})[name] = float(scores.mean())
            if temperature == ordered[0]:
                values[name] = float(scores.mean())
                intervals[name] = bootstrap(scores, seed=seed)
            best = f"{name}_best"
            if len(ordered) > 1 and scores.mean() >= values.get(best, -1.0):
                values[best], intervals[best] = float(scores.mean()), bootstrap(scores, seed=seed)
                values[f"{best}_temperature"] = float(temperature)  # type: ignore[arg-type]
    tables: dict[str, Any] = {"by_temperature": by_temperature} if len(ordered) > 1 else {}
    return Metrics(values, intervals, tables)
