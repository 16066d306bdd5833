"""Path finding on star graphs: is the path from centre to goal right, and its one hard node?

Arms, nodes of a path and names are the run's own, from its `data.options`. The test graphs are those of
mtp_jax/data/tasks/star_graph.py, which no run is trained on. The path is written greedily and counts if it is the right
one and nothing else. The hard node is the second of the path, which arm to take: a model that has learned no more than
to go along the edges has it right with probability 1/d, and the nodes after it always.

With a model at hand it is also given the right path and asked for each next node (`forced`): that tells a model that
goes wrong at the first step from one that cannot go along the edges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.data.tasks.options import read_options
from mtp_jax.data.tasks.star_graph import StarGraph, held_out_examples
from mtp_jax.evaluation.generating import Drawing
from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Problem, Sample
from mtp_jax.intervals import bootstrap


class StarGraphTask(GenerationTask):
    """Accuracy of the whole path and of its hard node, on held-out graphs."""

    name = "star_graph"
    about = "paths on star graphs: the whole path, and the node that tells the arm"

    def problems(self, request: Request) -> list[Problem]:
        """Returns the test graphs.

        Raises:
          ValueError: the run was not trained on this task.
        """
        options = trained_on(request)
        return [Problem(f"star_graph/{number}", prompt, {"answer": answer, "width": options.width})
                for number, (prompt, answer) in enumerate(held_out_examples(options))]

    def drawing(self, request: Request) -> Drawing:
        """Returns how paths are drawn; one token more than the answer has, so that one too long is noticed."""
        drawing = super().drawing(request)
        if request.config.max_new_tokens:
            return drawing
        return dataclasses.replace(drawing, max_new_tokens=trained_on(request).path_length + 1)

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Returns whether the completion is the path, and whether its second node is right."""
        del request
        answer, width = problem.facts["answer"], problem.facts["width"]
        hard = slice(width, 2 * width)
        return {"passed": completion == answer, "hard_node": completion[hard] == answer[hard], "answer": answer}

    def metrics(self, samples: Sequence[Sample], request: Request) -> Metrics:
        """Returns accuracies, with 90 % bootstrap intervals over graphs, and what guessing an arm gives."""
        options = trained_on(request)
        found = {"accuracy": [sample.passed for sample in samples],
                 "hard_node_accuracy": [sample.error is None and bool(sample.fields.get("hard_node"))
                                        for sample in samples]}
        tables: dict[str, Any] = {"options": dataclasses.asdict(options)}
        if not request.config.completions:
            nodes = forced(request, request.take(self.problems(request)), options)
            found["hard_node_accuracy_forced"] = nodes[:, 1].tolist()
            tables["node_accuracy_forced"] = nodes.mean(axis=0).tolist()
        values = {name: float(np.mean(passed)) for name, passed in found.items()}
        intervals = {name: bootstrap(passed, seed=request.config.seed) for name, passed in found.items()}
        return Metrics({**values, "chance": 1 / options.arms}, intervals, tables)


def forced(request: Request, problems: Sequence[Problem], options: StarGraph) -> np.ndarray:
    """Returns [problems, l] bool: head 1's likeliest next node is the right one, given the right path before it."""
    from mtp_jax.evaluation.likelihood import Scorer

    model = request.model
    assert model.tokenizer is not None  # a run on this source has one
    rows = [np.concatenate([[model.tokenizer.bos_id], model.tokenizer.encode(problem.prompt + problem.facts["answer"])])
            for problem in problems]
    answers = slice(options.prompt_length, options.prompt_length + options.path_length)  # targets: tokens after BOS
    readings = Scorer(model, batch_size=request.config.batch_size).read(rows)
    right = np.stack([reading.top[1][answers] == row[1:][answers] for reading, row in zip(readings, rows)])
    return np.asarray(right.reshape(len(rows), options.length, options.width).all(axis=2))


def trained_on(request: Request) -> StarGraph:
    """Returns the `data.options` of the run.

    Raises:
      ValueError: it was trained on something else.
    """
    data = request.run_config().data
    for part in data.parts.values():
        if part.source == "star_graph":
            return read_options(StarGraph, part.options, "star_graph")
    raise ValueError(f"--task={StarGraphTask.name} needs a run with data.source=star_graph, which says the graphs: "
                     f"{request.config.workdir} has data.source={data.source}.")


TASK = StarGraphTask()
