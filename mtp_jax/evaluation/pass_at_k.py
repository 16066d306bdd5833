"""pass@k by the unbiased estimator of Chen et al. 2021."""

from __future__ import annotations

import math


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Returns the probability that at least one of k completions passes, drawn of a problem's without putting back.

    1 - C(samples - passed, k) / C(samples, k), in whole numbers, so that nothing is rounded before the last step.

    Args:
      samples: completions of the problem.
      passed: how many of them pass.
      k: how many are drawn.

    Raises:
      ValueError: k is larger than the number of samples, or a count makes no sense.
    """
    if not 0 <= passed <= samples:
        raise ValueError(f"{passed} of {samples} samples cannot have passed.")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} must lie in 1..{samples}, the number of samples of a problem: draw more, or lower k.")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)
