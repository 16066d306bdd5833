"""What the two-token loss weighs (section 5.2 and appendix L.2 of the paper): entropies and information, in nats.

X is the next token, Y the one after it; a joint distribution is an array [X, Y] that sums to 1. The paper's identities,

    H(X) + H(Y) = H(X|Y) + 2 I(X;Y) + H(Y|X)
    H(p_X, q_X) + H(p_Y, q_Y) = H(p_X|Y, q_X|Y) + 2 I_p||q(X;Y) + H(p_Y|X, q_Y|X)        (Lemma L.3)

hold for what these functions compute, which `tests/evaluation/test_information.py` checks on random distributions.
"""

from __future__ import annotations

import numpy as np


def cross_entropy(p: np.ndarray, q: np.ndarray) -> float:
    """Returns H(p, q) = -sum p log q over all entries; inf where q rules out what p does not."""
    p, q = np.ravel(p), np.ravel(q)
    there = p > 0
    with np.errstate(divide="ignore"):
        return float(-np.sum(p[there] * np.log(q[there])))


def entropy(p: np.ndarray) -> float:
    """Returns H(p) = H(p, p)."""
    return cross_entropy(p, p)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Returns D(p || q) = sum p log(p / q); inf where q rules out what p does not."""
    p, q = np.ravel(p), np.ravel(q)
    there = p > 0
    with np.errstate(divide="ignore"):
        return float(np.sum(p[there] * (np.log(p[there]) - np.log(q[there]))))


def marginals(joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distributions of X and of Y."""
    return joint.sum(axis=1), joint.sum(axis=0)


def conditional_cross_entropy(p: np.ndarray, q: np.ndarray, *, given: str) -> float:
    """Returns the mean over the given variable, drawn from p, of the cross-entropy of the other's distributions.

    Args:
      p: joint that outcomes are drawn from.
      q: joint that predicts.
      given: "x": H(p_Y|X, q_Y|X); "y": H(p_X|Y, q_X|Y).
    """
    p, q = (p, q) if given == "x" else (p.T, q.T)
    return float(sum(weight * cross_entropy(p[x] / weight, q[x] / q[x].sum())
                     for x, weight in enumerate(p.sum(axis=1)) if weight > 0))


def mutual_information(p: np.ndarray) -> float:
    """Returns I(X;Y) = D(p || p_X p_Y)."""
    return divergence(p, np.outer(*marginals(p)))


def relative_mutual_information(p: np.ndarray, q: np.ndarray) -> float:
    """Returns I_p||q(X;Y) = D(p || q_X q_Y) - D(p || q): how much better the joint q predicts p than its marginals do.

    It is I_p where q is p, symmetric in X and Y, and below 0 where q has tokens hang together that in p do not.
    """
    return divergence(p, np.outer(*marginals(q))) - divergence(p, q)
