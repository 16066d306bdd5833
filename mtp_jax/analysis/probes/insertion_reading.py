"""Losses and agreement of heads on the tokens of a question and of its answer, what was inserted left out.

A prediction counts where it is made at a token of the question or the answer, from the question's first on, its target
is one too, and the place of insertion does not lie between the two. So neither the inserted tokens, which any head
foretells, nor what is said at them, nor at the last n tokens before the question comes into a mean; and the same
predictions count with and without the insertion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mtp_jax.analysis.probes.conditions import Insertion
from mtp_jax.evaluation.likelihood import Reading

PARTS = ("question", "answer")


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the tokens of each problem, to be divided by their number.

    Attributes:
      loss: {(part, head): nats [problems]}.
      tokens: {(part, head): tokens [problems]}.
      accepted: {part: sum over positions of 1 + the number of heads that say what head 1 says [problems]}.
      positions: {part: positions where all heads have a target [problems]}.
    """

    loss: dict[tuple[str, int], np.ndarray]
    tokens: dict[tuple[str, int], np.ndarray]
    accepted: dict[str, np.ndarray]
    positions: dict[str, np.ndarray]


def sums(readings: Sequence[Reading], insertions: Sequence[Insertion], answers: Sequence[int], heads: int) -> Sums:
    """Returns the sums of one condition.

    Args:
      readings: of each problem, by heads 1 to `heads`; rows are the insertion's ids and the answer's.
      insertions: of each problem.
      answers: tokens of each problem's answer.
      heads: n.
    """
    P = len(readings)
    keys = [(part, head) for part in PARTS for head in range(1, heads + 1)]
    found = Sums({key: np.zeros(P) for key in keys}, {key: np.zeros(P, np.int64) for key in keys},
                 {part: np.zeros(P) for part in PARTS}, {part: np.zeros(P, np.int64) for part in PARTS})
    for number, (reading, insertion, answer) in enumerate(zip(readings, insertions, answers)):
        for part in PARTS:
            for head in range(1, heads + 1):
                places = predictions(insertion, answer, head, part)
                found.loss[part, head][number] = -reading.logprob[head][places].sum(dtype=np.float64)
                found.tokens[part, head][number] = len(places)
            # For the last head all tokens in between have to be there too: on answers, all in the answer.
            places = predictions(insertion, answer, heads, part)
            if part == "answer":
                places = places[places >= len(insertion.ids) - 1]
            agree = [reading.top[head][places] == reading.top[1][places + head - 1] for head in range(2, heads + 1)]
            prefix = np.cumprod(agree, axis=0).sum() if agree else 0
            found.accepted[part][number] = len(places) + prefix
            found.positions[part][number] = len(places)
    return found


def predictions(insertion: Insertion, answer: int, head: int, part: str) -> np.ndarray:
    """Returns the indices in the row (the insertion's ids, then the answer's) at which a head's predictions count.

    Args:
      insertion: the prompt.
      answer: tokens of the answer.
      head: k; it predicts the token k places on.
      part: "question" or "answer", where the target lies.
    """
    question, end = insertion.question, len(insertion.ids)
    places = np.concatenate([question, np.arange(end, end + answer)])  # what is read, in order, without the filler
    sources, targets = places[:max(0, len(places) - head)], places[head:]
    own = targets < end if part == "question" else targets >= end
    across = (sources < insertion.filler_start) & (targets >= insertion.filler_end)  # also where nothing is inserted
    return sources[own & ~across]
