"""What the insertion probe found, as JSON and as lines: each cell beside no insertion, problem by problem."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.analysis.probes.conditions import ANYWHERE, BEFORE, BETWEEN, NONE
from mtp_jax.analysis.probes.insertion import Answers, Cell, Found
from mtp_jax.analysis.probes.insertion_command import Options
from mtp_jax.analysis.probes.insertion_reading import PARTS, Sums
from mtp_jax.analysis.probes.paired import CONFIDENCE, add_holm, mcnemar, mean_over
from mtp_jax.intervals import bootstrap

NAME = "insert"


def report(options: Options, found: Found) -> dict[str, Any]:
    """Returns the result as its file holds it.

    Every cell has means with intervals over problems, and under "difference" its pairwise difference from the cell
    without insertion at the same position: of losses and accuracies with such an interval, of accuracies with
    McNemar's p too, as it is and by Holm for all cells of the file.
    """
    questions, seed = found.questions, options.seed
    cells, plain = [], 0
    for number, cell in enumerate(found.cells):
        plain = number if cell.condition == NONE else plain
        entry = _counts(cell)
        entry |= losses(found.readings[number], found.readings[plain], found.model.heads, seed, plain == number)
        if found.answers is not None:
            entry |= accuracies(found.answers[number], found.answers[plain], seed, plain == number)
        cells.append(entry)
    add_holm(cells)
    return {
        "probe": NAME, "task": options.task, "settings": {
            **found.request.settings(), "instruction": questions.instruction_text,
            "instruction_tokens": len(questions.instruction), "meaningless": options.meaningless,
            "meaningful": options.meaningful, "same_tokens": options.same_tokens, "k": list(options.lengths),
            "positions": list(options.positions), "loss_only": options.loss_only, "confidence": CONFIDENCE,
            "max_new_tokens": questions.drawing.max_new_tokens},
        "notes": notes(options, found), "problems": len(questions.questions), "left_out": found.left_out,
        "broken": questions.broken, "cells": cells,
        "samples": [{"name": question.name, "question_tokens": len(question.ids), "answer_tokens": len(question.answer)}
                    for question in questions.questions]}


def notes(options: Options, found: Found) -> list[str]:
    """Returns what one should know of the insertions."""
    told = []
    units = {condition.name: condition.unit for condition in options.conditions}
    for cell in found.cells:
        if cell.condition in units and cell.position == found.cells[0].position:
            told.append(f"{cell.condition}, k={cell.k}: {cell.fillers[0].told(units[cell.condition])}")
    if not len(found.questions.instruction) and {BEFORE, BETWEEN} <= set(options.positions):
        told.append("There is no instruction, so before and between are the same place.")
    if ANYWHERE in options.positions:
        told.append("At position random the insertion is one run, at a place drawn for each problem.")
    without = sum(not len(question.answer) for question in found.questions.questions)
    if without:
        told.append(f"{without} problems have no reference answer in text, so no loss of an answer.")
    if found.left_out:
        told.append(f"{len(found.left_out)} of {len(found.left_out) + len(found.questions.questions)} problems do not "
                    "fit the window with the longest insertion and are left out of all cells.")
    if found.questions.broken:
        told.append(f"{len(found.questions.broken)} problems have no usable form and are left out, such as "
                    f"{found.questions.broken[0]!r}.")
    return told + unscored(found.answers or [])


def unscored(answers: Sequence[Answers]) -> list[str]:
    """Returns a line on answers whose scoring failed, with the first of them; none where all were scored.

    Args:
      answers: of each cell; cells that share theirs are counted once.
    """
    different = list({id(one): one for one in answers}.values())
    errors = [pair for one in different for pair in one.errors.items()]
    if not errors:
        return []
    total = sum(len(one.passed) for one in different)
    return [f"{len(errors)} of {total} answers could not be scored and count as failed; the first is that to "
            f"{errors[0][0]!r}: {errors[0][1]}"]


def read(path: str) -> dict[str, Any]:
    """Returns the result in a file.

    Raises:
      ValueError: it holds none of this probe.
    """
    file = epath.Path(path).expanduser()
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--beside={path} cannot be read as JSON ({error}): name a result of this probe.") from error
    if not isinstance(result, dict) or result.get("probe") != NAME:
        raise ValueError(f"--beside={path} is no result of python -m mtp_jax.probe {NAME}: name one.")
    return result


def lines(result: dict[str, Any]) -> list[str]:
    """Returns a table: each cell beside no insertion; losses are head 1's, agreement is that on the question."""
    found = [f"insert, {result['task']}: {result['problems']} problems", *(f"    {note}" for note in result["notes"]),
             f"    {'position':9}{'condition':12}{'k':>4}{'tokens':>8}{'accuracy':>10}{'difference':>27}{'p':>9}"
             f"{'p (Holm)':>10}{'question loss':>33}{'answer loss':>33}{'agreement':>33}"]
    for cell in result["cells"]:
        line = f"    {cell['position']:9}{cell['condition']:12}{cell['k']:4}{cell['tokens']:8g}"
        accuracy = cell.get("accuracy")
        line += f"{accuracy['mean']:10.3f}" if accuracy else f"{'':10}"
        difference = accuracy.get("difference") if accuracy else None
        line += (f"{difference['mean']:+10.3f} [{difference['interval'][0]:+.3f}, {difference['interval'][1]:+.3f}]"
                 f"{difference['p']:9.2g}{difference['p_holm']:10.2g}" if difference else f"{'':46}")
        for mean in (*(cell["loss"][part].get("1") for part in PARTS), cell["agreement_length"].get("question")):
            if mean is None:
                line += f"{'':33}"
                continue
            moved = mean.get("difference")
            told = f" {moved['mean']:+.3f} [{moved['interval'][0]:+.3f}, {moved['interval'][1]:+.3f}]" if moved else ""
            line += f"{mean['mean']:9.3f}{told:24}"
        found.append(line.rstrip())
    return found


def _counts(cell: Cell) -> dict[str, Any]:
    """Returns what a cell is, and the counts of its insertion."""
    filler = cell.fillers[0]
    return {"position": cell.position, "condition": cell.condition, "k": cell.k, "tokens": len(filler.ids),
            "unit_tokens": filler.unit_tokens, "run_tokens": filler.run_tokens, "text_tokens": filler.text_tokens,
            "merged": filler.merged}


def losses(sums: Sums, plain: Sums, heads: int, seed: int, is_plain: bool) -> dict[str, Any]:
    """Returns mean losses of every head, and the length of drafts that head 1 would accept, in nats and tokens."""
    loss: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    length: dict[str, Any] = {}
    for part in PARTS:
        for head in range(1, heads + 1):
            total, tokens = sums.loss[part, head], sums.tokens[part, head]
            mean = mean_over(total, tokens, seed=seed)
            if mean is not None:
                loss[part][str(head)] = mean | {"tokens": int(tokens.sum())} | ({} if is_plain else {
                    "difference": mean_over(total - plain.loss[part, head], tokens, seed=seed)})
        mean = mean_over(sums.accepted[part], sums.positions[part], seed=seed) if heads > 1 else None
        if mean is not None:
            length[part] = mean | ({} if is_plain else {"difference": mean_over(
                sums.accepted[part] - plain.accepted[part], sums.positions[part], seed=seed)})
    return {"loss": loss, "agreement_length": length}


def accuracies(answers: Answers, plain: Answers, seed: int, is_plain: bool) -> dict[str, Any]:
    """Returns accuracies, what drafting took, and what was written."""
    found: dict[str, Any] = {}
    for rule, passed, before in (("accuracy", answers.passed, plain.passed),
                                 ("lenient_accuracy", answers.lenient, plain.lenient)):
        if passed is None:
            continue
        found[rule] = {"mean": float(passed.mean()), "interval": _interval(passed, seed)}
        if not is_plain and before is not None:
            difference = passed.astype(float) - before
            only_none, only_this, p = mcnemar(before, passed)
            found[rule]["difference"] = {"mean": float(difference.mean()), "interval": _interval(difference, seed),
                                         "only_none": only_none, "only_this": only_this, "p": p}
    ratio = mean_over(answers.produced.astype(float), answers.forwards, seed=seed)
    found["tokens_per_forward"] = ratio
    found["acceptance"] = [float(count / answers.blocks) if answers.blocks else 0.0 for count in answers.accepted]
    if answers.errors:
        found["errors"] = answers.errors
    return found | {"passed": answers.passed.astype(int).tolist(), "completions": answers.completions}


def _interval(values: Sequence[float] | np.ndarray, seed: int) -> list[float]:
    return list(bootstrap(values, confidence=CONFIDENCE, seed=seed))
