"""What the redistribution probe found, as JSON and as lines: each setting beside the module off, problem by problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtp_jax.analysis.probes.arm import Found, Moved
from mtp_jax.analysis.probes.arm_activations import MEASURES
from mtp_jax.analysis.probes.arm_command import Options
from mtp_jax.analysis.probes.insertion import Answers
from mtp_jax.analysis.probes.insertion_report import accuracies, losses, unscored
from mtp_jax.analysis.probes.paired import CONFIDENCE, add_holm, mean_over

NAME = "arm"
DRAWS = 2000


def report(options: Options, found: Found) -> dict[str, Any]:
    """Returns the result as its file holds it.

    Every cell has means with intervals over problems, and under "difference" the pairwise difference from the module
    off: of losses, accuracies and tokens a forward, of accuracies with McNemar's p too, as it is and by Holm for all
    cells.
    """
    seed, plain, cells = options.seed, found.cells[0], []
    for cell in found.cells:
        off = cell is plain
        entry: dict[str, Any] = {"redistribution": not off, **cell.own}
        if cell.moved is not None:
            entry["activations"] = activations(cell.moved, seed)
        entry |= losses(cell.reading, plain.reading, found.model.heads, seed, off)
        if cell.answers is not None and plain.answers is not None:
            entry |= accuracies(cell.answers, plain.answers, seed, off)
            if not off and entry["tokens_per_forward"]:
                entry["tokens_per_forward"]["difference"] = ratio_difference(cell.answers, plain.answers, seed)
            if not options.task:  # texts have no right answer
                for name in ("accuracy", "passed"):
                    entry.pop(name, None)
            same = [one == other for one, other in zip(cell.answers.completions, plain.answers.completions)]
            entry["same_text"] = float(np.mean(same))
        cells.append(entry)
    add_holm(cells)
    settings = {**found.request.settings(), "instruction": found.questions.instruction_text,
                **{name: getattr(options, name) for name in (
                    "p_min", "p_max", "stats", "mode", "noise", "percentile_of", "loss_only", "k", "meaningless")},
                options.amount_name: list(options.amounts), "p1": list(options.percentiles),
                "noise_seed": list(options.seeds), "confidence": CONFIDENCE}
    result = {"probe": NAME, "task": options.name, "settings": settings, "notes": notes(options, found),
              "problems": len(found.questions.questions), "left_out": found.left_out,
              "broken": found.questions.broken, "amount": options.amount_name, "cells": cells}
    if found.inserted is not None:
        result["insertion"] = {"filler_tokens": found.filler_tokens, **activations(found.inserted, seed)}
    return result


def activations(moved: Moved, seed: int) -> dict[str, Any]:
    """Returns means over tokens before and after, and of their difference, with intervals over rows."""
    found: dict[str, Any] = {"epsilon": moved.epsilon, "tokens": int(moved.tokens.sum())}
    for name in MEASURES:
        before, after = moved.sums[name]
        found[name] = {"before": mean_over(before, moved.tokens, seed=seed),
                       "after": mean_over(after, moved.tokens, seed=seed),
                       "difference": mean_over(after - before, moved.tokens, seed=seed)}
    found["near_zero_by_class"] = {name: {"tokens": tokens, "before": before / tokens, "after": after / tokens}
                                   for name, (tokens, before, after) in moved.classes.items()}
    return found


def ratio_difference(answers: Answers, plain: Answers, seed: int) -> dict[str, Any]:
    """Returns by how much more tokens a forward yields than with the module off, with its interval over problems."""
    pairs = [(one.produced, one.forwards) for one in (answers, plain)]
    drawn = np.random.default_rng(seed).integers(0, len(plain.produced), (DRAWS, len(plain.produced)))
    ratios = [produced[drawn].sum(axis=1) / forwards[drawn].sum(axis=1) for produced, forwards in pairs]
    low, high = np.quantile(ratios[0] - ratios[1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    means = [produced.sum() / forwards.sum() for produced, forwards in pairs]
    return {"mean": float(means[0] - means[1]), "interval": [float(low), float(high)]}


def notes(options: Options, found: Found) -> list[str]:
    """Returns what one should know of the figures."""
    told, moved = [], found.cells[1].moved
    if moved is not None and len(moved.tokens) < len(found.questions.questions):
        told.append(f"Activations are those of the first {len(moved.tokens)} problems.")
    if options.stats == "tensor":
        told.append(f"Statistics are taken over batches of {options.batch_size} rows, padding left out: other batches "
                    "give other figures.")
    if found.model.config.loops > 1:
        told.append(f"The trunk is run {found.model.config.loops} times, and the module acts in each; activations are "
                    "those of the first.")
    if found.left_out:
        told.append(f"{len(found.left_out)} of {len(found.left_out) + len(found.questions.questions)} problems do not "
                    "fit the window and are left out.")
    return told + unscored([cell.answers for cell in found.cells if cell.answers is not None])


def lines(result: dict[str, Any]) -> list[str]:
    """Returns a table: each setting beside the module off."""
    amount = result["amount"]
    found = [f"arm, {result['task']}: {result['problems']} problems", *(f"    {note}" for note in result["notes"])]
    found.append(f"    {amount:>8}{'p1':>7}{'seed':>6}{'near zero':>17}{'L1':>17}{'L2':>15}{'Gini':>16}")
    on = [cell for cell in result["cells"] if cell["redistribution"]]
    for cell in on:
        values = [(cell["activations"][name][side]["mean"]) for name in MEASURES for side in ("before", "after")]
        found.append(f"    {_which(cell, amount)}  {values[0]:7.1%}{values[1]:8.1%}{values[2]:9.2f}{values[3]:8.2f}"
                     f"{values[4]:8.3f}{values[5]:7.3f}{values[6]:9.3f}{values[7]:7.3f}")
    for name, side in on[0]["activations"]["near_zero_by_class"].items():
        found.append(f"    near zero, {name:13} {side['tokens']:7} tokens {side['before']:7.1%}{side['after']:8.1%}  "
                     "(first setting)")
    if "insertion" in result:
        found += _inserted(result)
    found.append(f"    {amount:>8}{'p1':>7}{'seed':>6}{'accuracy':>10}{'difference':>27}{'p (Holm)':>10}"
                 f"{'answer loss':>35}{'tokens a forward':>35}")
    found += [_effect(cell, amount) for cell in result["cells"]]
    return found


def _which(cell: dict[str, Any], amount: str) -> str:
    """Returns the first columns of a line."""
    if not cell["redistribution"]:
        return f"{'off':>8}{'':13}"
    return f"{cell[amount]:8g}{cell['p1']:7g}{cell['noise_seed']:6g}"


def _effect(cell: dict[str, Any], amount: str) -> str:
    """Returns a line on what the model does with a setting."""
    accuracy = cell.get("accuracy", {})
    line = f"    {_which(cell, amount)}" + (f"{accuracy['mean']:10.3f}" if accuracy else f"{'':10}")
    difference = accuracy.get("difference")
    line += f"{_difference(difference):27}{difference['p_holm']:10.2g}" if difference else f"{'':37}"
    part = "answer" if cell["loss"]["answer"] else "question"
    loss, ratio = cell["loss"][part].get("1"), cell.get("tokens_per_forward")
    line += f"{loss['mean']:10.4f}{_difference(loss.get('difference')):25}" if loss else f"{'':35}"
    return (line + (f"{ratio['mean']:10.3f}{_difference(ratio.get('difference')):25}" if ratio else "")).rstrip()


def _difference(found: dict[str, Any] | None) -> str:
    """Returns a difference with its interval."""
    if found is None:
        return ""
    return f" {found['mean']:+.3f} [{found['interval'][0]:+.3f}, {found['interval'][1]:+.3f}]"


def _inserted(result: dict[str, Any]) -> list[str]:
    """Returns lines on activations of the question without and with a run before it."""
    own = result["insertion"]
    lines = [f"    activations on the question, {result['settings']['k']} x {result['settings']['meaningless']!r} "
             f"({own['filler_tokens']} tokens) before it:"]
    for name in MEASURES:
        values = own[name]
        low, high = values["difference"]["interval"]
        lines.append(f"        {name:10} {values['before']['mean']:9.4f} -> {values['after']['mean']:9.4f}   "
                     f"{values['difference']['mean']:+.4f} [{low:+.4f}, {high:+.4f}]")
    return lines
