"""What inserted tokens do to the attention of one head: curves, retained share, and the identity of layer 0.

Of weights W[i, j] (query, key) and values V[j]:

    retained share of query i     1 - sum over inserted j of W[i, j]
    added to query i              sum over inserted j of W[i, j] V[j]

Queries here are the original tokens behind the inserted run. In the trunk's first layer queries and keys depend on a
token's embedding and on distances alone, so for query and key both behind the run W'[i, j] = lambda_i W[i, j]: one
factor a query, whatever the key. Keys before the run are further away than they were, and deeper layers read states
that the run has changed, so there it does not hold.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mtp_jax.analysis.probes.attention import Recorded, average
from mtp_jax.analysis.probes.conditions import Insertion

PEAKS = 0.1  # share of the original tokens, those that receive most, that count as peaks


@dataclasses.dataclass(frozen=True)
class Curves:
    """Average attention of one prompt, and what the inserted run does to its queries.

    Attributes:
      whole: a[j] of the whole prompt, [L - 1].
      kept: a[j] at the original tokens but the last, in their order.
      original: the same where inserted tokens count as keys and not as queries: the queries of the plain prompt.
      retained: of each original query behind the run.
      added_norm: norm of what the run adds to each of these queries.
      rest_norm: norm of what it gets from all other tokens.
      spread: 1 - length of the mean direction of what is added: 0 where all are added the same direction, up to 1;
        None where nothing is.
    """

    whole: np.ndarray
    kept: np.ndarray
    original: np.ndarray
    retained: np.ndarray
    added_norm: np.ndarray
    rest_norm: np.ndarray
    spread: float | None


def curves(weights_LxL: np.ndarray, values_LxC: np.ndarray, prompt: Insertion) -> Curves:
    """Returns the curves and measures of one prompt.

    Args:
      weights_LxL: [query, key].
      values_LxC: of the keys.
      prompt: where the inserted run lies.
    """
    weights, values = weights_LxL.astype(np.float64), values_LxC.astype(np.float64)
    whole, kept, run = average(weights), prompt.kept, slice(prompt.filler_start, prompt.filler_end)
    added = weights[run.stop:, run] @ values[run]
    rest = weights[run.stop:] @ values - added
    norm = np.linalg.norm(added, axis=1)
    some = added[norm > 0] / norm[norm > 0, None]
    return Curves(whole, whole[kept[:-1]], average(weights[np.ix_(kept, kept)]),
                  1 - weights[run.stop:, run].sum(axis=1), norm, np.linalg.norm(rest, axis=1),
                  max(0.0, float(1 - np.linalg.norm(some.mean(axis=0)))) if len(some) else None)


@dataclasses.dataclass(frozen=True)
class Identity:
    """How far W'[i, j] / W[i, j] is from one factor a query, as |log(ratio / lambda_i)|: 0 where it is that factor.

    Attributes:
      factors: lambda_i of each query behind the run: the geometric mean of the ratio over its keys behind the run.
      behind: the largest for keys behind the run.
      before: the same for keys before the run, with the same lambda_i; None where there are none.
      left_out: ratios of weights too small for their precision, which were not looked at.
    """

    factors: np.ndarray
    behind: float
    before: float | None
    left_out: int


def identity(plain: Recorded, inserted: Recorded, prompt: Insertion, row: int = 0) -> Identity | None:
    """Returns how well the identity holds between a prompt and the same with an inserted run.

    Args:
      plain: of the prompt without the run.
      inserted: of the prompt with it.
      prompt: the latter; the run is before the question, or wherever.
      row: of both.

    Returns:
      The measure; None where nothing was inserted or no token stands behind the run.
    """
    kept, start = prompt.kept, prompt.filler_start
    if not prompt.inserted or start == len(kept):
        return None
    before, after = plain.weights_BxLxL[row], inserted.weights_BxLxL[row][np.ix_(kept, kept)]
    tiny = np.finfo(before.dtype).tiny  # below, numbers have fewer digits
    seen = np.tril(np.ones(before.shape, bool))[start:]
    usable = seen & (before[start:] > tiny) & (after[start:] > tiny)
    # Logarithms, so that a ratio of 2 and one of 1/2 are as far from 1.
    ratio = np.log(after[start:], where=usable, out=np.zeros(seen.shape)) - np.log(
        before[start:], where=usable, out=np.zeros(seen.shape))
    behind = usable & (np.arange(len(kept)) >= start)[None]
    count = np.maximum(behind.sum(axis=1), 1)
    factor = (ratio * behind).sum(axis=1) / count
    away = np.abs(ratio - factor[:, None])
    old = usable & ~behind & (behind.sum(axis=1) > 0)[:, None]
    return Identity(np.exp(factor), float(away[behind].max(initial=0.0)),
                    float(away[old].max()) if old.any() else None, int((seen & ~usable).sum()))


def compare(plain_PxL: np.ndarray, kept_PxL: np.ndarray) -> dict[str, Any] | None:
    """Returns how the attention that original tokens receive has changed; None where there are no tokens.

    Args:
      plain_PxL: a[j] without insertion, of L tokens of P prompts.
      kept_PxL: a[j] of the same tokens with it.

    Returns:
      "lower": share of tokens that receive less. "change": relative change of what they receive in sum;
      "change_at_peaks": of the tenth of each prompt's tokens that received most; "change_elsewhere": of the others.
      "drop_at_peaks", "drop_elsewhere": what such a token lost on average.
    """
    if not plain_PxL.shape[1]:
        return None
    number = max(1, round(PEAKS * plain_PxL.shape[1]))
    peak_PxL = np.zeros(plain_PxL.shape, bool)
    np.put_along_axis(peak_PxL, np.argsort(-plain_PxL, axis=1, kind="stable")[:, :number], True, axis=1)
    lost_PxL = plain_PxL - kept_PxL
    found: dict[str, Any] = {"lower": float(np.mean(lost_PxL > 0)), "change": -lost_PxL.sum() / plain_PxL.sum()}
    for name, where_PxL in (("at_peaks", peak_PxL), ("elsewhere", ~peak_PxL)):
        if where_PxL.any():
            found[f"change_{name}"] = -lost_PxL[where_PxL].sum() / plain_PxL[where_PxL].sum()
            found[f"drop_{name}"] = lost_PxL[where_PxL].mean()
    return found
