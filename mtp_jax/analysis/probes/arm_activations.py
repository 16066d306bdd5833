"""The first layer's activated gate on texts, and what is told of it: how much is near zero, norms, inequality.

    gates = read_gates(model, rows)
    epsilon = near_zero(gates, settings)  # fixed on the activations as they are
    per_token(gates, epsilon), per_token(gates.moved(settings), epsilon)
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import jax
import numpy as np

from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding import DecodingModel
from mtp_jax.decoding.generate import bucket
from mtp_jax.decoding.weights import Weights, builders, embed, first_heads
from mtp_jax.model.attention import resolve_kernel
from mtp_jax.model.cached import prompt_context
from mtp_jax.model.redistribution import NORMAL, SMALLEST_MAD, Redistribution, redistribute
from mtp_jax.parallel import use_layout

MOST = 2**23  # activations that are kept, of the first rows
MEASURES = ("near_zero", "l1", "l2", "gini")
DIGITS, OPERATORS, CONJUNCTIONS, OTHER = "digits", "operators", "conjunctions", "other"
CLASSES = (DIGITS, OPERATORS, CONJUNCTIONS, OTHER)
_CLASS = re.compile(r"(?P<digits>\d+)|(?P<operators>[-+*/=<>^%!&|~×÷±≤≥≠√∑∫]+)|(?P<conjunctions>\b(?:and|or|but|nor|"
                    r"so|yet|for|if|then|else|because|since|while|when|although|though|unless|until|whereas|therefore|"
                    r"thus|hence|however|that|as|not)\b)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Gates:
    """Activated gates of several rows, in batches as a model reads them.

    Attributes:
      batches: g_BxLxF, fp32 or the model's own wider dtype.
      lengths: tokens of each row of a batch.
      numbers: which rows they are.
      rows: how many rows there are in all.
    """

    batches: list[np.ndarray]
    lengths: list[np.ndarray]
    numbers: list[list[int]]
    rows: int

    def of_row(self) -> list[np.ndarray]:
        """Returns the activations of each row, [tokens, F]."""
        found: dict[int, np.ndarray] = {}
        for batch, lengths, numbers in zip(self.batches, self.lengths, self.numbers):
            found |= {number: batch[b, :lengths[b]] for b, number in enumerate(numbers)}
        return [found[number] for number in range(self.rows)]

    def moved(self, settings: Redistribution) -> Gates:
        """Returns the activations that the module makes of them; statistics "tensor" are those of a batch."""
        return dataclasses.replace(self, batches=[np.asarray(_moved(batch, lengths, settings))
                                                  for batch, lengths in zip(self.batches, self.lengths)])


@jax.jit
def _moved(g_BxLxF: jax.Array, lengths_B: jax.Array, settings: Redistribution) -> jax.Array:
    positions_BxL = jax.numpy.broadcast_to(jax.numpy.arange(g_BxLxF.shape[1], dtype="int32"), g_BxLxF.shape[:2])
    return redistribute(g_BxLxF, positions_BxL, settings, valid_BxL=positions_BxL < lengths_B[:, None])


def read_gates(model: DecodingModel, rows: Sequence[np.ndarray], *, batch_size: int = 32) -> Gates:
    """Returns silu(gate x) of the first layer, in the first loop of a looped trunk, of every token of rows.

    Args:
      model: with or without the module; the activations are those before it.
      rows: ids, at most the model's window. Rows past `MOST` activations are left out.
      batch_size: rows read together.
    """
    most = max(1, MOST // (model.config.mlp_dim * max(map(len, rows))))
    rows = rows[:most]
    size = min(batch_size, len(rows))
    if ("gates", size) not in model.programs:
        model.programs["gates", size] = jax.jit(functools.partial(_gates, model))
    weights, found = first_heads(model.config, model.weights, 1), Gates([], [], [], len(rows))
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    for start in range(0, len(order), size):
        numbers = order[start:start + size]
        tokens = np.zeros((size, bucket(model, len(rows[numbers[0]]))), np.int32)
        lengths = np.zeros(size, np.int32)
        for b, number in enumerate(numbers):
            tokens[b, :len(rows[number])], lengths[b] = rows[number], len(rows[number])
        found.batches.append(np.asarray(model.programs["gates", size](weights, tokens, lengths)))
        found.lengths.append(lengths)
        found.numbers.append(numbers)
    return found


def _gates(model: DecodingModel, weights: Weights, tokens_BxL: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns g_BxLxF."""
    config, seen = model.config, []
    wide = jax.numpy.promote_types(jax.numpy.float32, config.dtype)

    def keep(g_BxLxF: jax.Array) -> jax.Array:
        seen.append(g_BxLxF)
        return g_BxLxF

    with use_layout(model.layout):
        kernel = resolve_kernel("auto", model.platform, seq_len=tokens_BxL.shape[1],
                                head_dim=config.attention_head_dim, dtype=config.dtype)
        context = prompt_context(config, lengths_B, tokens_BxL.shape[1], kernel)
        layer, x_BxLxD = builders(config).layer(weights.trunk[0]), embed(config, weights, tokens_BxL)
        layer.extend(x_BxLxD, context, None, layer.keys_values(x_BxLxD, context, config.dtype), keep)
    return seen[0].astype(wide)


def near_zero(gates: Gates, settings: Redistribution) -> float:
    """Returns the threshold below which the settings find activations near zero, over all tokens together."""
    size = np.abs(np.concatenate(gates.of_row()).ravel())
    if settings.fraction is not None:
        return float(np.quantile(size, float(settings.fraction)))
    mad = max(float(np.median(np.abs(size - np.median(size)))), SMALLEST_MAD)
    return NORMAL * mad * float(settings.c)


def per_token(gates: Gates, epsilon: float) -> list[dict[str, np.ndarray]]:
    """Returns, for each row, the measures of each token.

    Args:
      gates: activations.
      epsilon: what is near zero.

    Returns:
      {"near_zero": share of features below epsilon in magnitude, "l1", "l2": norms, "gini": coefficient of the
      magnitudes, 0 where all are equal and near 1 where one has all}, each [tokens].
    """
    found = []
    for values_TxF in gates.of_row():
        size_TxF = np.sort(np.abs(values_TxF.astype(np.float64)), axis=1)
        F, l1_T = size_TxF.shape[1], size_TxF.sum(axis=1)
        weighted_T = (size_TxF * np.arange(1, F + 1)).sum(axis=1)
        gini_T = np.divide(2 * weighted_T, F * l1_T, out=np.full(len(l1_T), (F + 1) / F), where=l1_T > 0) - (F + 1) / F
        found.append({"near_zero": (size_TxF < epsilon).mean(axis=1), "l1": l1_T,
                      "l2": np.sqrt((size_TxF**2).sum(axis=1)), "gini": gini_T})
    return found


def token_classes(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Returns the class of each token of a row: that of the number, operator or conjunction that it is part of.

    A conjunction counts as such where it is a word of its own; BOS is "other".
    """
    pieces = [tokenizer.decode([int(token)]) for token in ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    text, found = "".join(pieces), np.full(len(pieces), OTHER, object)
    for match in _CLASS.finditer(text):
        first = int(np.searchsorted(ends, match.start(), side="right"))
        last = int(np.searchsorted(ends, match.end() - 1, side="right"))
        found[first:last + 1] = match.lastgroup
    return found
