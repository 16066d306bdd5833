"""The redistribution probe: the same problems read and answered with the module off and with each of its settings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from mtp_jax.analysis.probes.arm_activations import (
    MEASURES,
    Gates,
    near_zero,
    per_token,
    read_gates,
    token_classes,
)
from mtp_jax.analysis.probes.arm_command import Options
from mtp_jax.analysis.probes.conditions import MEANINGLESS, Condition, Insertion, fillers, insert
from mtp_jax.analysis.probes.insertion import Answers, answer
from mtp_jax.analysis.probes.insertion_questions import Question, Questions, find_task, load_questions
from mtp_jax.analysis.probes.insertion_reading import Sums, sums
from mtp_jax.decoding import DecodingModel
from mtp_jax.evaluation.generating import Drawing
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.problems import read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.model.redistribution import Redistribution
from mtp_jax.terminal import bar_size

NEW_TOKENS = 32  # that a text is continued by
Shift = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Moved:
    """Activations before and after, summed over the tokens of each row.

    Attributes:
      epsilon: what is near zero, fixed on the activations before.
      tokens: of each row.
      sums: {measure: (before, after)}, each [rows].
      classes: {class: (tokens, sum of the near-zero share before, after)} over all rows.
    """

    epsilon: float
    tokens: np.ndarray
    sums: Shift
    classes: dict[str, tuple[int, float, float]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting of the module.

    Attributes:
      own: {name: value} of what is special in it; empty where the module is off.
      moved: activations; None where it is off.
      reading: sums of losses.
      answers: None where nothing was generated.
    """

    own: dict[str, float]
    moved: Moved | None
    reading: Sums
    answers: Answers | None


@dataclasses.dataclass(frozen=True)
class Found:
    """What the probe measured.

    Attributes:
      model: that was asked, with the module off.
      request: with the settings.
      questions: those that fit.
      left_out: names of those that do not.
      cells: the first has the module off.
      inserted: activations on the questions without and with a run of meaningless tokens before; None: not asked for.
      filler_tokens: of that run.
    """

    model: DecodingModel
    request: Request
    questions: Questions
    left_out: list[str]
    cells: list[Cell]
    inserted: Moved | None
    filler_tokens: int


def measure(options: Options, settings: Sequence[tuple[dict[str, float], Redistribution]], *,
            model: DecodingModel | None = None) -> Found:
    """Runs the probe.

    Args:
      options: the flags.
      settings: of the module, each with what is special in it.
      model: loaded already; None: that of the workdir.

    Raises:
      ValueError, OSError, CheckpointError: a flag, the data or the model does not fit; nothing was measured.
    """
    task = find_task(options.task) if options.task else None
    config = options.evaluation(options.name)
    if task is None and options.set:
        raise ValueError(f"--set={options.set[0]} is a setting of a --task, and texts of --data have none.")
    request = Request(config, task.options(options.set) if task else {}, model=model)
    request.data  # noqa: B018  (that it exists shows before the model is loaded)
    model = request.model
    model.redistributing(settings[0][1])  # says what does not fit
    questions = load_questions(options.task, request, options.instruction) if task else texts(options, request)
    run = inserted_ids(options, model)
    questions, left_out = fitting(options, model, questions, run)
    rows = join(model, questions)
    whole = [np.concatenate([row.ids, question.answer]) for row, question in zip(rows, questions.questions)]
    inserted = insertion(options, model, questions, rows, run) if len(run) else None
    gates = read_gates(model, [row[:model.window] for row in whole], batch_size=options.batch_size)
    assert model.tokenizer is not None
    classes = [token_classes(model.tokenizer, row) for row in whole[:gates.rows]]
    cells = []
    passes = 1 if options.loss_only else 2
    with tqdm(total=passes * (1 + len(settings)) * len(rows), desc="problems", file=sys.stderr,
              **bar_size(sys.stderr)) as bar:
        for own, arm in [({}, None), *settings]:
            on = model.redistributing(arm)
            read = Scorer(on, batch_size=options.batch_size).read(whole, heads=range(1, model.heads + 1),
                                                                  progress=bar.update)
            reading = sums(read, rows, [len(question.answer) for question in questions.questions], model.heads)
            answers = None if options.loss_only else answer(on, questions, rows, options.batch_size, options.seed,
                                                            bar.update)
            cells.append(Cell(own, None if arm is None else compare(gates, gates.moved(arm), near_zero(gates, arm),
                                                                    classes), reading, answers))
    return Found(model, request, questions, left_out, cells, inserted, len(run))


def compare(before: Gates, after: Gates, epsilon: float, classes: Sequence[np.ndarray],
            places: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None) -> Moved:
    """Returns the measures of activations before and after.

    Args:
      before: the activations as they are.
      after: changed, of the same rows.
      epsilon: what is near zero.
      classes: of each token of each row before; empty: classes are not told apart.
      places: tokens of each row that count, before and after; None: all.
    """
    pair = []
    for side, gates in enumerate((before, after)):
        rows = per_token(gates, epsilon)
        if places is not None:
            rows = [{name: values[at] for name, values in row.items()} for row, at in zip(rows, places[side])]
        pair.append(rows)
    tokens = np.array([len(row["l1"]) for row in pair[0]])
    found = {name: (np.array([row[name].sum() for row in pair[0]]), np.array([row[name].sum() for row in pair[1]]))
             for name in MEASURES}
    by_class: dict[str, tuple[int, float, float]] = {}
    if classes:
        names = np.concatenate([own[:count] for own, count in zip(classes, tokens)])
        first, second = (np.concatenate([row["near_zero"] for row in rows]) for rows in pair)
        for name in sorted(set(names)):
            here = names == name
            by_class[name] = int(here.sum()), float(first[here].sum()), float(second[here].sum())
    return Moved(epsilon, tokens, found, by_class)


def inserted_ids(options: Options, model: DecodingModel) -> np.ndarray:
    """Returns the run of meaningless tokens that --k asks for; empty where it asks for none."""
    assert model.tokenizer is not None
    if not options.k:
        return np.zeros(0, np.int32)
    return fillers(model.tokenizer, [Condition(MEANINGLESS, options.meaningless)], options.k)[0].ids


def insertion(options: Options, model: DecodingModel, questions: Questions, rows: Sequence[Insertion],
              run: np.ndarray) -> Moved:
    """Returns activations on the questions without and with a run of meaningless tokens."""
    longer = join(model, questions, run)
    pair = [read_gates(model, [row.ids for row in side], batch_size=options.batch_size) for side in (rows, longer)]
    count = min(gates.rows for gates in pair)
    pair = [read_gates(model, [row.ids for row in side[:count]], batch_size=options.batch_size)
            for side in (rows, longer)] if pair[0].rows != pair[1].rows else pair
    epsilon = near_zero(pair[0], options.settings()[0][1])
    places = tuple([row.question for row in side[:count]] for side in (rows, longer))
    return compare(pair[0], pair[1], epsilon, [], (places[0], places[1]))


def texts(options: Options, request: Request) -> Questions:
    """Returns texts of a file as questions: the first half of each is the prompt, the rest what it goes on with.

    Raises:
      ValueError: the file holds none of that length.
    """
    tokenizer, path = request.model.tokenizer, request.data
    if tokenizer is None or path is None:
        raise ValueError("The model has no tokenizer: load it from its workdir.")
    if path.is_dir():
        raise ValueError(f"--data={options.data} is a folder: name a file of text, or JSONL.")
    if ".jsonl" in path.name:
        parts = []
        for number, record in read_jsonl(path):
            if not isinstance(record, dict) or not isinstance(record.get(options.field), str):
                raise ValueError(f"{path}, line {number}, has no text in its field {options.field!r}: name the field "
                                 "with --field.")
            parts.append(record[options.field])
    else:
        parts = [epath.Path(path).read_text()]
    length, found = options.text_tokens, list[Question]()
    for part in parts:
        ids = np.asarray(tokenizer.encode(part), np.int32)
        # Of JSONL the beginning of each text, of a plain file piece by piece.
        starts = [0] if ".jsonl" in path.name else range(0, len(ids) - length + 1, length)
        found += [Question(f"text {len(found) + i}", own[:length // 2], own[length // 2:])
                  for i, own in enumerate([ids[start:start + length] for start in starts
                                           if len(ids) >= start + length])]
    if not found:
        raise ValueError(f"--data={options.data} holds no text of {length} tokens: lower --text_tokens.")
    drawing = Drawing((0.0,), 1, 1.0, options.max_new_tokens or NEW_TOKENS, ())
    return Questions(np.zeros(0, np.int32), "", request.take(found), drawing, lambda question, text, ids: {}, [])


def fitting(options: Options, model: DecodingModel, questions: Questions, run: np.ndarray
            ) -> tuple[Questions, list[str]]:
    """Returns the problems that fit the window with their answers and with the run, and the names of the others.

    Raises:
      ValueError: none fits, or some do not and are not to be left out; names the longest, and says how many fit.
    """
    new = 0 if options.loss_only else questions.drawing.max_new_tokens
    needs = [len(row.ids) + max(len(question.answer) - 1, new, len(run))  # an answer's last token is only predicted
             for row, question in zip(join(model, questions), questions.questions)]
    if not needs:
        raise ValueError(f"--task={options.task} has no problem that can be asked.")
    fits = [need <= model.window for need in needs]
    if not all(fits) and not (any(fits) and options.leave_out):
        worst, room = int(np.argmax(needs)), ["its reference answer"]
        room += [f"{new} new tokens"] if new else []
        room += [f"{len(run)} inserted ones"] if len(run) else []
        lower = [name for name, used in (("--max_new_tokens", new), ("--k", len(run)),
                                         ("--text_tokens", not options.task)) if used]
        remedies = [f"lower {', '.join(lower)}"] if lower else ["take a shorter --instruction"]
        remedies = (["leave the others out by --leave_out"] if any(fits) else []) + remedies
        raise ValueError(
            f"{sum(fits)} of {len(needs)} problems fit the window of {model.window} tokens with the longest of "
            f"{', '.join(room)}: {questions.questions[worst].name!r} needs {needs[worst]}, "
            f"{len(questions.instruction)} of them instruction. {', '.join(remedies).capitalize()}, or raise --window "
            "beyond what the model was trained on.")
    left_out = [question.name for question, fit in zip(questions.questions, fits) if not fit]
    return dataclasses.replace(questions, questions=[
        question for question, fit in zip(questions.questions, fits) if fit]), left_out


def join(model: DecodingModel, questions: Questions, run: np.ndarray | None = None) -> list[Insertion]:
    """Returns the prompts, with a run of ids between instruction and question."""
    assert model.tokenizer is not None
    filler = np.zeros(0, np.int32) if run is None else run
    return [insert(question.ids, filler, bos=model.tokenizer.bos_id, instruction=questions.instruction)
            for question in questions.questions]
