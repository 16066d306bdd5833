"""Whether texts are distributed as they should be: the filters once more in numpy, and a chi-square test."""

import numpy as np
from scipy.special import gammaincc  # scipy comes with jax


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Returns the probabilities [V] of one row of logits [V], filter by filter as transformers' warpers do it.

    Each filter sees what the one before it left, in the order temperature, top-k, top-p, min-p.
    """
    def softmax(scores):
        weight = np.exp(scores - scores.max())
        return weight / weight.sum()

    scores = np.asarray(logits, np.float64) / temperature
    if top_k:
        scores = np.where(scores < np.sort(scores)[-min(top_k, len(scores))], -np.inf, scores)
    if top_p < 1:
        rising = np.argsort(scores)
        removed = np.cumsum(softmax(scores)[rising]) <= 1 - top_p
        removed[-1] = False
        scores = np.where(removed[np.argsort(rising)], -np.inf, scores)
    probs = softmax(scores)
    return softmax(np.where(probs < min_p * probs.max(), -np.inf, scores))


def chi_square(samples_Rx3, distribution_5x5x5, fewest=5.0):
    """Returns the p-value of texts against the distribution that they should have.

    Texts expected fewer than `fewest` times count as one; where they are too few even together, the rarest of the other
    texts join them.

    Args:
      samples_Rx3: R texts of 3 ids. Any other length does as well, where the distribution has as many axes.
      distribution_5x5x5: the probability of each text.
      fewest: the smallest expectation that the test may be used with.
    """
    samples, distribution = np.asarray(samples_Rx3), np.asarray(distribution_5x5x5, np.float64)
    if (samples < 0).any() or (samples >= distribution.shape).any():
        return 0.0  # an id that does not exist
    cells = np.ravel_multi_index(tuple(samples.T), distribution.shape)
    seen = np.bincount(cells, minlength=distribution.size)
    expected = distribution.ravel() * len(samples)
    if seen[expected == 0].any():
        return 0.0
    order = np.argsort(-expected)
    seen, expected = seen[order], expected[order]
    alone = int((expected >= fewest).sum())
    while alone and 0 < expected[alone:].sum() < fewest:
        alone -= 1
    merge = [*range(alone), alone] if expected[alone:].sum() > 0 else [*range(alone)]
    seen, expected = np.add.reduceat(seen, merge), np.add.reduceat(expected, merge)
    if len(merge) < 2:
        raise ValueError(f"{len(samples)} texts fill {len(merge)} cells: draw more.")
    return float(gammaincc((len(merge) - 1) / 2, ((seen - expected) ** 2 / expected).sum() / 2))
