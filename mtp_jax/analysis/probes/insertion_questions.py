"""The questions of the insertion probe, as ids: instruction, question and reference answer apart.

Any task of mtp_jax/evaluation whose answers are text can be asked, and `induction`, whose question here is a story up
to the first token of a name that it has had, and the answer the second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mtp_jax.config import nearest
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.evaluation.generating import Drawing, check_stop
from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.problems import read_jsonl
from mtp_jax.evaluation.registry import TASKS, get_task
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Problem
from mtp_jax.evaluation.tasks import gsm8k, induction, math500

LIKELY = ("polynomial", "star_graph", "induction", "math500", "gsm8k")  # of the message; others of text work too
Score = Callable[["Question", str, np.ndarray], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Question:
    """One problem.

    Attributes:
      name: unique in the task.
      ids: of the question.
      answer: ids of the reference answer; empty where the task has none in text.
      problem: as the task has it; None for induction.
    """

    name: str
    ids: np.ndarray
    answer: np.ndarray
    problem: Problem | None = None


@dataclasses.dataclass(frozen=True)
class Questions:
    """All problems of a task.

    Attributes:
      instruction: ids before each question; may be empty.
      instruction_text: what they say.
      questions: the problems.
      drawing: how answers are written, greedily.
      score: (question, completion, its ids) -> {"passed": bool} and, where the task has it, {"lenient": bool}.
      broken: names of problems that the task's file has in no usable form; they are left out.
    """

    instruction: np.ndarray
    instruction_text: str
    questions: list[Question]
    drawing: Drawing
    score: Score
    broken: list[str]


def load_questions(name: str, request: Request, instruction: str | None) -> Questions:
    """Reads a task's problems.

    Args:
      name: of the task.
      request: with its data and settings; loads the model for its tokenizer.
      instruction: text before the questions; None: the task's own.

    Raises:
      ValueError: the task is unknown or has no questions in text; or its data do not fit.
    """
    task = find_task(name)
    tokenizer = request.model.tokenizer
    if tokenizer is None:
        raise ValueError("The model has no tokenizer: load it from its workdir.")
    if isinstance(task, induction.Induction):
        return _of_induction(task, request, tokenizer, instruction or "")
    assert isinstance(task, GenerationTask)
    problems = request.take(task.problems(request))
    drawing = dataclasses.replace(task.drawing(request), temperatures=(0.0,), samples=1)
    own, references = _own_instruction(task, request), _references(task, request)
    found = []
    for problem in problems:
        if not problem.broken:
            text = problem.prompt.removeprefix(own)
            found.append(Question(problem.task_id, _ids(tokenizer, text),
                                  _ids(tokenizer, references(problem)), problem))

    def score(question: Question, completion: str, ids: np.ndarray) -> Mapping[str, Any]:
        del ids
        assert question.problem is not None
        return task.score(question.problem, task.completion(question.problem, completion), request)

    text = own if instruction is None else instruction
    check_stop(tokenizer, drawing.stop)
    return Questions(_ids(tokenizer, text), text, found, drawing, score,
                     [problem.task_id for problem in problems if problem.broken])


def find_task(name: str) -> GenerationTask | induction.Induction:
    """Returns a task whose questions are text.

    Raises:
      ValueError: there is none of that name, or it is of another kind; names the nearest, or some.
    """
    if not name:
        raise ValueError(f"--task is missing: name where the questions are from, such as {', '.join(LIKELY)}.")
    if name not in TASKS:
        raise ValueError(f"--task={name} is not known.{nearest(name, TASKS)} Usual here: {', '.join(LIKELY)}.")
    task = get_task(name)
    if not isinstance(task, (GenerationTask, induction.Induction)):
        raise ValueError(f"--task={name} has no questions that are answered in text: take one that has, such as "
                         f"{', '.join(LIKELY)}.")
    return task


def _own_instruction(task: GenerationTask, request: Request) -> str:
    """Returns what a task puts before each question."""
    if isinstance(task, math500.Math500):
        return task.shots(request) or math500.ASKED
    if isinstance(task, gsm8k.Gsm8k):
        return "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in task.shots(request))
    return ""


def _references(task: GenerationTask, request: Request) -> Callable[[Problem], str]:
    """Returns what gives the reference answer of a problem as it would stand behind the prompt; "" where none is."""
    if isinstance(task, math500.Math500):
        solutions = {str(record.get("unique_id") or f"math500/{number}"): f"\n{str(record.get('solution', '')).strip()}"
                     for number, (_, record) in enumerate(read_jsonl(task.data(request)))}
        return lambda problem: solutions[problem.task_id]
    if isinstance(task, gsm8k.Gsm8k):
        # The records that `problems` read, in the same order; those that are not sound are not asked.
        records = [record for _, record in read_jsonl(task.data(request))]
        return lambda problem: " " + gsm8k.worked(*(
            records[int(problem.task_id.removeprefix("gsm8k/"))][field] for field in ("question", "answer")))[1]
    return lambda problem: answer if isinstance(answer := problem.facts.get("answer"), str) else ""


def _of_induction(task: induction.Induction, request: Request, tokenizer: Tokenizer, instruction: str) -> Questions:
    """Returns a question a story: up to the first token of the first name that it has had before."""
    found, without = [], []
    for name, mentions in task.stories(request, tokenizer):
        seen: set[str] = set()
        for end, mentioned in zip(mentions.ends, mentions.names):
            if mentioned in seen:
                ids = np.asarray(mentions.ids, np.int32)
                found.append(Question(name, ids[:end], ids[end:end + 1]))
                break
            seen.add(mentioned)
        else:
            without.append(name)
    if not found:
        raise ValueError("No story has a name that comes twice: give more stories.")

    def score(question: Question, completion: str, ids: np.ndarray) -> Mapping[str, Any]:
        del completion
        return {"passed": bool(np.array_equal(ids[:1], question.answer))}

    return Questions(_ids(tokenizer, instruction), instruction, request.take(found), Drawing((0.0,), 1, 1.0, 1, ()),
                     score, without)


def _ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.asarray(tokenizer.encode(text) if text else [], np.int32)
