r"""The weight that the n-token loss gives each transition (section 5.1 and appendix L.3 of the paper).

By counting: a term (i, k) predicts token i + k from the tokens up to i. A wrong decision at step t spoils the terms
that are made before it (i < t) and whose token it changes: all tokens from t on where it is a choice point, which makes
n(n+1)/2 terms, and token t alone where the paths meet again, which makes n.

By measuring, on a trained model: let l_k(j) be the loss of head k on token j, which it predicts from the tokens up to
j - k, and d_1(j) = l_1(j), d_m(j) = l_m(j) - l_{m-1}(j). What head m - 1 knows and head m does not is token j - m + 1:
d_m(j) is how much better token j is foreseen once that one is known, and is credited to it. So each loss is a sum of
credits, l_k(j) = d_1(j) + .. + d_k(j), and the n losses of token j hold d_m(j) n - m + 1 times. The weight of step t is
all that is credited to token t,

    W(t) = n d_1(t) + (n-1) d_2(t+1) + .. + 1 d_n(t+n-1),

and the weights of a row sum to its n-token loss, exactly. A choice of entropy H that decides the next n - 1 tokens,
which nothing else tells, has W = H n(n+1)/2; one that tells nothing of them, H n: the two counts. The emphasis of some
steps is their sum of W over n times their sum of d_1: 1 for inconsequential ones, (n+1)/2 for such choice points.

d_m also holds what head m loses by being a worse predictor than head m - 1, which is no fact of the text: an emphasis
is to be compared between steps of one model, and with that of all its steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Term = tuple[int, int]  # position i whose token is the last known one, head k


def terms(length: int, n: int) -> list[Term]:
    """Returns the loss terms of a row: (i, k) predicts token i + k from tokens 0..i."""
    return [(i, k) for i in range(length) for k in range(1, n + 1) if i + k < length]


def spoiled(step: int, length: int, n: int, *, rejoins: bool) -> list[Term]:
    """Returns the terms that a wrong decision at a step spoils.

    Args:
      step: t, the token that is decided.
      length: of the row, in tokens.
      n: heads.
      rejoins: whether the paths meet again behind it, so that no token after t depends on it.
    """
    return [(i, k) for i, k in terms(length, n) if i < step and (i + k == step if rejoins else i + k >= step)]


def credits(losses: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Returns d_m at each token that heads 1..m all predict.

    Args:
      losses: l_k by the position from which head k predicts: losses[k][i] is its loss on token i + k, [length - k].

    Returns:
      {m: d_m of tokens m, m + 1, .., [length - m]}.
    """
    return {m: losses[m] if m == 1 else losses[m] - losses[m - 1][1:] for m in range(1, len(losses) + 1)}


def weights(losses: Mapping[int, np.ndarray]) -> np.ndarray:
    """Returns W of tokens 1..length - 1; it sums to the row's n-token loss.

    Near a row's ends terms are missing, as in training: steps n..length - n have them all.

    Args:
      losses: as for `credits`, of all n heads.
    """
    n, length = len(losses), len(losses[1]) + 1
    total = np.zeros(length, np.float64)
    for m, credit in credits(losses).items():
        token = np.arange(m, length)
        total[token - m + 1] += (np.minimum(n, token) - m + 1) * credit  # heads m..n that reach the token
    return total[1:]


def emphasis(weight: np.ndarray, own: np.ndarray, n: int) -> float:
    """Returns the sum of W over n times the sum of d_1, of some steps; nan where they carry no loss."""
    carried = n * float(np.sum(own))
    return float(np.sum(weight)) / carried if carried > 0 else float("nan")


def emphasis_interval(weight: np.ndarray, own: np.ndarray, n: int, *, confidence: float = 0.9, draws: int = 1000,
                      seed: int = 0) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of an emphasis over rows of text.

    Args:
      weight: sum of W of a row's steps of the kind in question, [rows].
      own: sum of their d_1, [rows].
      n: heads.
      confidence: of the interval.
      draws: resamples of the rows.
      seed: of the resampling.
    """
    chosen = np.random.default_rng(seed).integers(0, len(own), (draws, len(own)))
    carried = n * own[chosen].sum(axis=1)
    shares = np.divide(weight[chosen].sum(axis=1), carried, out=np.full(draws, np.nan), where=carried > 0)
    if np.isnan(shares).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
