"""The insertion probe: accuracy and loss without and with tokens inserted, problem by problem.

At every position, for every condition and length k, the same problems are read (losses of each head on question and
answer) and, unless that is not wanted, answered greedily; each is compared with no insertion, pair by pair.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mtp_jax.analysis.probes.conditions import (
    NONE,
    RANDOM,
    Condition,
    Filler,
    Insertion,
    fillers,
    insert,
    read_sentences,
)
from mtp_jax.analysis.probes.insertion_command import Options
from mtp_jax.analysis.probes.insertion_questions import Questions, find_task, load_questions
from mtp_jax.analysis.probes.insertion_reading import Sums, sums
from mtp_jax.decoding import DecodingModel
from mtp_jax.evaluation.generating import batch_seed, write_batch
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.request import Request
from mtp_jax.terminal import bar_size

SENTENCES, PLACE = 0, 1  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class Cell:
    """One position, condition and length.

    Attributes:
      position: where.
      condition: what.
      k: repetitions.
      fillers: of each problem; the same ones but for random sentences.
    """

    position: str
    condition: str
    k: int
    fillers: list[Filler]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was written in one cell, problem by problem.

    Attributes:
      passed: by the strict rule, bool.
      lenient: by the task's lenient rule, bool; None where it has none.
      completions: texts.
      produced: tokens.
      forwards: that they took.
      accepted: blocks of which at least 1, 2, .. drafts went into the text, of all problems together.
      blocks: of drafts.
      errors: {problem: why it could not be scored}; it counts as failed.
    """

    passed: np.ndarray
    lenient: np.ndarray | None
    completions: list[str]
    produced: np.ndarray
    forwards: np.ndarray
    accepted: np.ndarray
    blocks: int
    errors: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Found:
    """What the probe measured.

    Attributes:
      model: that was asked.
      request: with the settings.
      questions: those that fit.
      left_out: names of those that do not.
      cells: each position's first is the one without insertion.
      readings: sums of losses of each cell.
      answers: of each cell; None where nothing was generated.
    """

    model: DecodingModel
    request: Request
    questions: Questions
    left_out: list[str]
    cells: list[Cell]
    readings: list[Sums]
    answers: list[Answers] | None


def measure(options: Options, *, model: DecodingModel | None = None) -> Found:
    """Runs the probe.

    Args:
      options: the flags.
      model: loaded already; None: that of the workdir.

    Raises:
      ValueError, OSError, CheckpointError: a flag, the data or the model does not fit; nothing was measured.
    """
    options.validate()
    task = find_task(options.task)
    config = options.evaluation(options.task)
    request = Request(config, task.options(options.set), model=model)
    read_sentences(options.sentences), request.data  # noqa: B018  (that they exist shows before the model is loaded)
    model = request.model
    questions = load_questions(options.task, request, options.instruction)
    cells = make_cells(options, model, questions)
    questions, cells, left_out = fitting(options, model, questions, cells)
    scorer = Scorer(model, batch_size=options.batch_size)
    passes = 1 if options.loss_only else 2
    different = 1 + sum(cell.condition != NONE for cell in cells)  # without insertion all positions are the same
    readings, answers, plain, plain_answers = list[Sums](), list[Answers](), None, None
    with tqdm(total=passes * different * len(questions.questions), desc="problems", file=sys.stderr,
              **bar_size(sys.stderr)) as bar:
        for cell in cells:
            rows = join(options, model, questions, cell)
            if cell.condition != NONE or plain is None:
                read = scorer.read([np.concatenate([row.ids, question.answer])
                                    for row, question in zip(rows, questions.questions)],
                                   heads=range(1, model.heads + 1), progress=bar.update)
            else:
                read = plain
            readings.append(sums(read, rows, [len(question.answer) for question in questions.questions], model.heads))
            if not options.loss_only:
                answers.append(plain_answers if cell.condition == NONE and plain_answers is not None else
                               answer(model, questions, rows, options.batch_size, options.seed, bar.update))
            if plain is None:
                plain, plain_answers = read, answers[0] if answers else None
    return Found(model, request, questions, left_out, cells, readings, answers or None)


def make_cells(options: Options, model: DecodingModel, questions: Questions) -> list[Cell]:
    """Returns what is measured, position by position; the first of each has no insertion."""
    assert model.tokenizer is not None
    conditions, sentences = options.conditions, read_sentences(options.sentences)
    count, cells = len(questions.questions), []
    nothing = fillers(model.tokenizer, [Condition(NONE)], 0)
    for position in options.positions:
        cells.append(Cell(position, NONE, 0, nothing * count))
        for k in options.lengths:
            if k == 0:
                continue
            same = fillers(model.tokenizer, [one for one in conditions if one.name != RANDOM], k,
                           same_tokens=options.same_tokens)
            for condition in conditions:
                if condition.name == RANDOM:
                    own = [fillers(model.tokenizer, conditions, k, seed=(options.seed, SENTENCES, number),
                                   same_tokens=options.same_tokens, sentences=sentences)[conditions.index(condition)]
                           for number in range(count)]
                else:
                    own = [next(filler for filler in same if filler.condition == condition.name)] * count
                cells.append(Cell(position, condition.name, k, own))
    return cells


def join(options: Options, model: DecodingModel, questions: Questions, cell: Cell) -> list[Insertion]:
    """Returns the prompts of a cell."""
    assert model.tokenizer is not None
    return [insert(question.ids, filler.ids, bos=model.tokenizer.bos_id, instruction=questions.instruction,
                   position=cell.position, seed=(options.seed, PLACE, number))
            for number, (question, filler) in enumerate(zip(questions.questions, cell.fillers))]


def fitting(options: Options, model: DecodingModel, questions: Questions, cells: Sequence[Cell]
            ) -> tuple[Questions, list[Cell], list[str]]:
    """Returns the problems that fit the window in every cell, the cells for them, and the names of the others.

    Raises:
      ValueError: none fits, or some do not and are not to be left out; names the longest, and says how many fit.
    """
    if not questions.questions:
        raise ValueError(f"--task={options.task} has no problem that can be asked.")
    widest = max(cells, key=lambda cell: len(cell.fillers[0].ids))  # of one length for all problems of a cell
    longest = widest.fillers[0]
    needs = [len(row.ids) + max(
        len(question.answer) - 1,  # the last token is only predicted
        0 if options.loss_only else questions.drawing.max_new_tokens)
        for row, question in zip(join(options, model, questions, widest), questions.questions)]
    keep = [number for number, need in enumerate(needs) if need <= model.window]
    if len(keep) < len(needs) and not (keep and options.leave_out):
        worst, plain = int(np.argmax(needs)), sum(need - len(longest.ids) <= model.window for need in needs)
        room = "a reference answer" if options.loss_only else (
            f"{questions.drawing.max_new_tokens} new tokens, or a longer reference answer,")
        raise ValueError(
            f"The longest insertion, k={longest.k} of {longest.condition!r}, has {len(longest.ids)} tokens. With it "
            f"and {room} {len(keep)} of {len(needs)} problems fit the window of {model.window} tokens, without it "
            f"{plain}: the longest, {questions.questions[worst].name!r}, needs {needs[worst]}, "
            f"{len(questions.instruction)} of them instruction. "
            f"{'Leave the others out by --leave_out, lower' if keep else 'Lower'} --k, take a shorter --instruction"
            f"{'' if options.loss_only else ' or --max_new_tokens'}, or raise --window beyond what the model was "
            "trained on.")
    left_out = [question.name for number, question in enumerate(questions.questions) if needs[number] > model.window]
    return (dataclasses.replace(questions, questions=[questions.questions[number] for number in keep]),
            [dataclasses.replace(cell, fillers=[cell.fillers[number] for number in keep]) for cell in cells], left_out)


def answer(model: DecodingModel, questions: Questions, rows: Sequence[Insertion], batch_size: int, seed: int,
           progress: Callable[[int], object]) -> Answers:
    """Returns what the model writes, greedily, behind each prompt.

    Args:
      model: that writes, all its heads drafting.
      questions: the problems.
      rows: the prompt of each.
      batch_size: rows of a batch.
      seed: of the batches; what is written greedily does not depend on it.
      progress: called with the number of problems that are done.
    """
    assert model.tokenizer is not None
    P = len(rows)
    size = min(batch_size, P)
    texts, errors, marks = [""] * P, dict[str, str](), list[Mapping[str, Any]]([{}] * P)
    produced, forwards = np.zeros(P, np.int64), np.zeros(P, np.int64)
    accepted, blocks = np.zeros(max(0, model.heads - 1), np.int64), 0
    order = sorted(range(P), key=lambda number: len(rows[number].ids))
    for start in range(0, P, size):
        numbers = order[start:start + size]
        written, result = write_batch(model, model.tokenizer, [rows[number].ids for number in numbers], 0.0,
                                      questions.drawing, size, seed=batch_seed(seed, start))
        accepted += result.accepted[:len(numbers)].sum(axis=0)
        blocks += int(result.blocks[:len(numbers)].sum())
        for place, number in enumerate(numbers):
            texts[number], question = written[place], questions.questions[number]
            produced[number], forwards[number] = result.produced[place], result.forwards[place]
            try:
                marks[number] = questions.score(question, written[place], result.tokens[place])
            except Exception as error:  # one bad problem never ends the run: it is counted as failed, and listed
                errors[question.name] = f"{type(error).__name__}: {error}"
        progress(len(numbers))
    lenient = None
    if any("lenient" in mark for mark in marks):
        lenient = np.array([bool(mark.get("lenient")) for mark in marks])
    return Answers(np.array([bool(mark.get("passed")) for mark in marks]), lenient, texts, produced, forwards,
                   accepted, blocks, errors)
