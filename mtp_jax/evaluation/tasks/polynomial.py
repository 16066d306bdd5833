"""Polynomial arithmetic (section 4.2, Figure 8): is the value right, by the number of operations m in the question?

Ring, pauses and the m that were trained on are the run's own, from its `data.options`. The test questions are those of
mtp_jax/data/tasks/polynomial.py, which no run is trained on: `questions` of each m, in the order m = 1, 2, .., 1, 2,
.., so that --limit takes the same number of each. An answer counts if it is the d coefficients and nothing else.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.data.tasks import polynomial
from mtp_jax.data.tasks.options import read_options
from mtp_jax.data.tasks.polynomial import PolynomialOptions
from mtp_jax.evaluation.generating import Drawing
from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Problem, Sample, Setting
from mtp_jax.intervals import bootstrap


class Polynomial(GenerationTask):
    """Accuracy on test questions with m = 1, 2, .. operations."""

    name = "polynomial"
    about = "values of expressions in a polynomial ring, by the number of operations"
    settings = (Setting("questions", 2000, "Test questions of each number of operations."),
                Setting("options", "", "The data.options that a prepared corpus was made with; empty: the run's own."),
                Setting("operations", 0, "Largest number of operations; 0: twice as many as were trained on."))

    def problems(self, request: Request) -> list[Problem]:
        """Returns the test questions; fewer of a number of operations whose space is used up.

        Raises:
          ValueError: the run was not trained on this task, or a setting is below 1.
        """
        for name, least in (("questions", 1), ("operations", 0)):
            if request.option(name) < least:
                raise ValueError(f"--set={name}={request.option(name)} must be at least {least}.")
        options = trained_on(request)
        largest = request.option("operations") or 2 * options.max_operations
        return [problem for row in itertools.zip_longest(*(
            _problems(options, operations, request.option("questions"))
            for operations in range(1, largest + 1))) for problem in row if problem is not None]

    def drawing(self, request: Request) -> Drawing:
        """Returns how answers are drawn; one token more than the answer has, so that one too long is noticed."""
        drawing = super().drawing(request)
        if request.config.max_new_tokens:
            return drawing
        return dataclasses.replace(drawing, max_new_tokens=trained_on(request).degree + 1)

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Returns whether the completion is the value."""
        del request
        return {"passed": completion == problem.facts["answer"], **problem.facts}

    def metrics(self, samples: Sequence[Sample], request: Request) -> Metrics:
        """Returns the accuracy at each m, and its means over the m that were trained on and over the larger ones."""
        options = trained_on(request)
        passed: dict[int, list[bool]] = collections.defaultdict(list)
        for sample in samples:
            passed[_operations(sample.task_id)].append(sample.passed)
        values = {f"accuracy@m={m}": float(np.mean(passed[m])) for m in sorted(passed)}
        intervals = {f"accuracy@m={m}": bootstrap(passed[m], seed=request.config.seed) for m in sorted(passed)}
        trained = range(options.min_operations, options.max_operations + 1)
        for name, members in (("in_domain", [m for m in passed if m in trained]),
                              ("out_of_domain", [m for m in passed if m not in trained])):
            if members:
                values[f"accuracy_{name}"] = float(np.mean([values[f"accuracy@m={m}"] for m in members]))
        return Metrics(values, intervals, {"questions": {str(m): len(passed[m]) for m in sorted(passed)},
                                           "options": dataclasses.asdict(options)})


def trained_on(request: Request) -> PolynomialOptions:
    """Returns the `data.options` of the run, or those that are given.

    Raises:
      ValueError: it was trained on something else.
    """
    if request.option("options"):
        return read_options(PolynomialOptions, request.option("options"), polynomial.NAME)
    data = request.run_config().data
    for part in data.parts.values():
        if part.source == polynomial.NAME:
            return read_options(PolynomialOptions, part.options, polynomial.NAME)
    raise ValueError(f"--task={Polynomial.name} needs a run with data.source={polynomial.NAME}, which says the ring: "
                     f"{request.config.workdir} has data.source={data.source}. Of a prepared corpus say it by "
                     "--set=options=prime=7,degree=5,... .")


def _problems(options: PolynomialOptions, operations: int, count: int) -> list[Problem]:
    """Returns the test questions with so many operations."""
    expressions = polynomial.test_expressions(options, operations, count)
    found = []
    for number, text in enumerate(polynomial.texts(expressions, options)):
        question, answer = text.decode().split(polynomial.EQUALS)
        found.append(Problem(f"m={operations}/{number}", question + polynomial.EQUALS, {"answer": answer}))
    return found


def _operations(task_id: str) -> int:
    """Returns the number of operations that a problem's name tells."""
    return int(task_id.removeprefix("m=").partition("/")[0])


TASK = Polynomial()
