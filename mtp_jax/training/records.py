"""What a step's and a validation's sums become: the records of metrics.jsonl."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import numpy as np

from mtp_jax.objective import HeadSums, LoopSums
from mtp_jax.training.logs import Record
from mtp_jax.training.program import Program
from mtp_jax.training.step import StepMetrics, ValidationSums


def train_record(step: int, metrics: StepMetrics, program: Program) -> Record:
    """Returns the record of a step from its metrics on the host."""
    loss, correct, _ = _means(metrics.sums, metrics.weights_N)
    return Record(step=step, split="train", loss=float(metrics.loss), head_loss=loss, head_accuracy=correct,
                  head_weights=[float(weight) for weight in metrics.weights_N],
                  learning_rate=float(metrics.learning_rate), grad_norm=float(metrics.grad_norm),
                  **loop_fields(metrics.loops, metrics.weights_N, program))


def loop_fields(sums: LoopSums | None, weights_N: Any, program: Program) -> dict[str, Any]:
    """Returns the fields of a record that only a trunk with several loops has, from its sums on the host."""
    if sums is None:
        return {}
    expected, _, _ = _means(HeadSums(sums.expected_N, sums.count_N, sums.expected_N), weights_N)
    each = [HeadSums(sums.loss_NxT[:, t], sums.count_N, sums.correct_NxT[:, t]) for t in range(sums.exit_T.shape[0])]
    loops = {str(t): dict(zip(("head_loss", "head_accuracy"), _means(one, weights_N))) for t, one in enumerate(each, 1)}
    count = max(float(sums.count), 1.0)
    entropy = float(sums.entropy) / count
    objective = program.config.objective
    term = -objective.exit_entropy * entropy if objective.loop_objective == "expected" else 0.0
    return {"task_loss": weighted(program, weights_N, expected), "entropy": entropy, "entropy_term": term,
            "expected_head_loss": expected, "exit_share": [float(share) / count for share in sums.exit_T],
            "loops": loops}


def weighted(program: Program, weights_N: Any, loss: list[float | None]) -> float:
    """Returns the heads' losses, each times its factor in the objective, added up."""
    factors = np.asarray(program.weights.reduce(weights_N))
    return float(sum(factor * value for factor, value in zip(factors, loss) if value is not None))


def add(first: ValidationSums, second: ValidationSums) -> ValidationSums:
    """Returns the sums over both."""
    return jax.tree.map(operator.add, first, second)


def validation_record(step: int, program: Program, parts: dict[str, ValidationSums]) -> Record:
    """Returns the record of a validation pass from its sums by source, on the host; means are over all of them."""
    weights_N = program.weights(np.int32(step))
    sums = functools.reduce(add, parts.values())
    loss, correct, active = _means(sums.heads, weights_N)
    loops = loop_fields(sums.loops, weights_N, program)
    agreement = sums.agreement
    in_bytes = program.config.data.tokenizer == "bytes"
    full = all(active)

    def source(heads: Any) -> dict[str, list[float | None]]:
        loss, correct, _ = _means(heads, weights_N)
        bits = {"validation_bits_per_byte": _bits(loss)} if in_bytes else {}
        return {"head_loss": loss, "head_accuracy": correct, **bits}

    return Record(
        step=step, split="validation", head_loss=loss, head_accuracy=correct,
        loss=loops["task_loss"] + loops["entropy_term"] if loops else weighted(program, weights_N, loss),
        head_agreement=[float(agreement.agree_N[k] / agreement.count_N[k]) if active[0] and active[k] else None
                        for k in range(len(loss))],
        expected_accepted_length=float(1 + agreement.accepted / agreement.accepted_count)
        if full and agreement.accepted_count else None,
        validation_bits_per_byte=_bits(loss) if in_bytes else None,
        sources={name: source(part.heads) for name, part in parts.items()} if program.config.data.mixture else None,
        **loops)


def _bits(loss: list[float | None]) -> list[float | None]:
    """Returns nats as bits."""
    return [None if value is None else value / math.log(2) for value in loss]


def _means(sums: Any, weights_N: Any) -> tuple[list[float | None], list[float | None], list[bool]]:
    """Returns mean loss, accuracy and activity of each head; None for a head that rests or has no target."""
    active = [bool(weight > 0 and count > 0) for weight, count in zip(np.asarray(weights_N), sums.count_N)]

    def mean(values: Any) -> list[float | None]:
        return [float(value / count) if on else None for value, count, on in zip(values, sums.count_N, active)]

    return mean(sums.loss_N), mean(sums.correct_N), active
