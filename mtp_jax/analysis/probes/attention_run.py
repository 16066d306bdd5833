"""What `python -m mtp_jax.probe attention` does: prompts with and without a run, their curves, JSON and picture."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.analysis.probes import attention_figure
from mtp_jax.analysis.probes.attention import Recorded, Site, call_number, record
from mtp_jax.analysis.probes.attention_command import Options
from mtp_jax.analysis.probes.attention_measures import Curves, Identity, compare, curves, identity
from mtp_jax.analysis.probes.conditions import (
    NONE,
    POSITIONS,
    SENTENCES,
    Condition,
    Insertion,
    check_fits,
    fillers,
    insert,
    read_sentences,
)
from mtp_jax.analysis.probes.output import output_path
from mtp_jax.config import check_choice
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding.load import load_model
from mtp_jax.decoding.model import DecodingModel
from mtp_jax.evaluation.problems import read_jsonl
from mtp_jax.files import replace

FIELDS = ("question", "problem", "prompt", "text")


def run(options: Options) -> str:
    """Probes a model, writes what was found, and returns the lines to print."""
    check_choice("--position", options.position, POSITIONS)
    conditions = [Condition(NONE), *options.conditions]
    sentences = read_sentences(options.sentences)
    site = Site(options.layer, options.head, options.prediction_head, options.loop)
    path = output_path(options.out, options.workdir, f"attention-{_slug(site)}")
    model = load_model(options.workdir, heads=1 if site.prediction_head is None else None, window=options.window,
                       mesh=options.mesh or None, tokenizer=options.tokenizer or None, step=options.step)
    call_number(model, site)  # before anything is read
    assert model.tokenizer is not None  # a workdir names one
    questions = equal_questions(model.tokenizer, options)
    found = probe(model, site, questions, conditions, options, sentences)
    data = {"probe": "attention", "workdir": options.workdir, "step": model.step, "site": dataclasses.asdict(site),
            "prompts": len(questions), "position": options.position, "k": options.k,
            "instruction": options.instruction, "questions": [model.tokenizer.decode(ids) for ids in questions],
            "question_tokens": len(questions[0]), "conditions": found}
    replace(path, (json.dumps(_plain(data), indent=1) + "\n").encode())
    title = f"Average attention on {site}; {_number(len(questions), 'prompt')}"
    picture = attention_figure.draw(found, path.with_suffix(".png"), title=title,
                                    leave_out_first=options.leave_out_first)
    return "\n".join([*told(data, site), f"{path}\n{picture}"])


def equal_questions(tokenizer: Tokenizer, options: Options) -> list[np.ndarray]:
    """Returns the ids of the questions, all of one length.

    Raises:
      ValueError: --data has no such field, its questions or those given differ in length, or there are too few.
    """
    texts = list(options.question) or _read(options)
    rows = [np.asarray(tokenizer.encode(text), np.int32) for text in texts]
    if options.question_tokens:
        size = options.question_tokens
        rows = [row[:size] for row in rows if len(row) >= size]
        if not rows:
            raise ValueError(f"--question_tokens={size}: no question has so many tokens; lower it.")
    lengths = collections.Counter(map(len, rows))
    if options.question:
        if len(lengths) > 1:
            raise ValueError(f"The questions have {', '.join(map(str, sorted(lengths)))} tokens, and only those of one "
                             "length can be averaged: set --question_tokens to cut them, or ask one at a time.")
        return rows
    # One prompt is the first of the file; for several, the length that most have.
    length = len(rows[0]) if options.prompts == 1 else lengths.most_common(1)[0][0]
    rows = [row for row in rows if len(row) == length]
    if len(rows) < options.prompts:
        raise ValueError(f"--prompts={options.prompts}: only {len(rows)} questions of {options.data} have {length} "
                         "tokens, the most frequent length: lower it, or set --question_tokens to cut all to one "
                         "length.")
    return rows[:options.prompts]


def probe(model: DecodingModel, site: Site, questions: Sequence[np.ndarray], conditions: Sequence[Condition],
          options: Options, sentences: Sequence[str] = SENTENCES) -> dict[str, dict[str, Any]]:
    """Returns {condition: its curves and measures}, means over the questions.

    Args:
      model: the model.
      site: where.
      questions: ids, of one length.
      conditions: none first.
      options: the rest.
      sentences: of the control.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None
    instruction = np.asarray(tokenizer.encode(options.instruction) if options.instruction else [], np.int32)
    cases: dict[str, list[_Case]] = {condition.name: [] for condition in conditions}
    lines: dict[str, str] = {}
    for number, question in enumerate(questions):
        plain: Recorded | None = None
        made = fillers(tokenizer, conditions, options.k, seed=(options.seed, number), same_tokens=options.same_tokens,
                       sentences=sentences)
        for condition, filler in zip(conditions, made):
            prompt = insert(question, filler.ids, bos=tokenizer.bos_id, instruction=instruction,
                            position=options.position, seed=options.seed)
            check_fits(prompt, model.window, name=f"Question {number + 1} with the condition {condition.name!r}")
            # A row at a time: of each the weights of all pairs are formed.
            seen = record(model, prompt.ids[None], site)
            plain = seen if plain is None else plain
            cases[condition.name].append(_Case(prompt, curves(seen.weights_BxLxL[0], seen.values_BxLxC[0], prompt),
                                               identity(plain, seen, prompt)))
            lines[condition.name] = "nothing" if condition.name == NONE else filler.told(condition.unit)
    base = cases[NONE]
    return {name: {"inserted": lines[name], **_summary(own, base)} for name, own in cases.items()}


@dataclasses.dataclass(frozen=True)
class _Case:
    """A prompt of a condition."""

    prompt: Insertion
    curves: Curves
    identity: Identity | None


def _summary(cases: Sequence[_Case], base: Sequence[_Case]) -> dict[str, Any]:
    """Returns the means of a condition's prompts."""
    prompt = cases[0].prompt  # the others are as long
    mean = {field: np.mean([getattr(case.curves, field) for case in cases], axis=0)
            for field in ("whole", "kept", "original", "retained", "added_norm", "rest_norm")}
    found = {"tokens": len(prompt.ids), "filler_start": prompt.filler_start, "filler_end": prompt.filler_end,
             "question_start": prompt.question_start, "average": mean["whole"], "average_kept": mean["kept"]}
    if not prompt.inserted:
        return found
    plain, kept, original = (np.stack([getattr(case.curves, field) for case in group]) for group, field in (
        (base, "kept"), (cases, "kept"), (cases, "original")))
    start = prompt.filler_start
    run = mean["whole"][prompt.filler_start:prompt.filler_end]
    spreads = [case.curves.spread for case in cases if case.curves.spread is not None]
    identities = [case.identity for case in cases if case.identity is not None]
    befores = [one.before for one in identities if one.before is not None]
    return {**found, "average_of_original_queries": mean["original"],
            "tokens_behind": compare(plain[:, start:], kept[:, start:]),
            "tokens_before": compare(plain[:, :start], kept[:, :start]),
            "tokens_before_of_original_queries": compare(plain[:, :start], original[:, :start]),
            "inserted_tokens": {"mean": run.mean(), "lowest": run.min(), "highest": run.max(),
                                "variation": run.std() / run.mean(), "mean_of_original_tokens": mean["kept"].mean()},
            "retained": mean["retained"], "added_norm": mean["added_norm"], "rest_norm": mean["rest_norm"],
            "direction_spread": np.mean(spreads) if spreads else None,
            "identity": {"factor": np.mean([one.factors for one in identities], axis=0),
                         "deviation_behind": max(one.behind for one in identities),
                         "deviation_before": max(befores) if befores else None,
                         "left_out": sum(one.left_out for one in identities)} if identities else None}


def told(data: Mapping[str, Any], site: Site) -> list[str]:
    """Returns what was found, as lines for a person."""
    lines = [f"{data['workdir']}, step {data['step']}: {site}, {_number(data['prompts'], 'prompt')} of "
             f"{data['conditions'][NONE]['tokens']} tokens, the question's {data['question_tokens']}"]
    for name, one in data["conditions"].items():
        if name == NONE:
            continue
        run, behind, before = (one[part] for part in ("inserted_tokens", "tokens_behind", "tokens_before"))
        lines.append(f"{name}, {data['position']}: {one['inserted']}")
        if behind:
            lines.append(f"  tokens behind the run receive {behind['change']:+.1%}, {behind['lower']:.0%} of them less;"
                         f" the highest tenth {behind['change_at_peaks']:+.1%} ({-behind['drop_at_peaks']:+.5f} each)"
                         + (f", the others {behind['change_elsewhere']:+.1%} ({-behind['drop_elsewhere']:+.5f} each)"
                            if "change_elsewhere" in behind else ""))
        if before:
            lines.append(f"  tokens before it receive {before['change']:+.1%}; "
                         f"{one['tokens_before_of_original_queries']['change']:+.1%} from the original queries")
        lines.append(f"  an inserted token receives {run['mean']:.5f} (from {run['lowest']:.5f} to "
                     f"{run['highest']:.5f}), an original one {run['mean_of_original_tokens']:.5f}")
        if len(one["retained"]):
            share = one["added_norm"].mean() / one["rest_norm"].mean()
            lines.append(f"  the queries behind keep {one['retained'].mean():.1%} of their attention for the other "
                         f"tokens; what the run adds has {share:.2f} of the rest's norm, direction spread "
                         f"{one['direction_spread']:.3f}")
        if one["identity"]:
            before = one["identity"]["deviation_before"]
            lines.append("  log(W'/W) along the keys of a query differs from one number by at most "
                         f"{one['identity']['deviation_behind']:.1e} behind the run"
                         + ("" if before is None else f", and by {before:.2g} before it"))
    return lines


def _read(options: Options) -> list[str]:
    """Returns the texts of --data."""
    texts = []
    for where, line in read_jsonl(epath.Path(options.data).expanduser()):
        names = (options.field,) if options.field else FIELDS
        name = next((name for name in names if name in line), None)
        if name is None or not isinstance(line[name], str) or not line[name]:
            raise ValueError(f"{where} has the fields {list(line)}, and none of {', '.join(names)} that holds text: "
                             "name the question's with --field.")
        texts.append(line[name])
    return texts


def _slug(site: Site) -> str:
    """Returns the place as part of a file's name."""
    parts = [] if site.prediction_head is None else [f"prediction{site.prediction_head}"]
    parts += [] if site.loop is None else [f"loop{site.loop}"]
    return "-".join([*parts, f"layer{site.layer}", f"head{site.head}"])


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _plain(value: Any) -> Any:
    """Returns the value as JSON takes it: arrays as lists, numbers to seven digits."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
