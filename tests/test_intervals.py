"""Intervals cover the truth as often as they say, and known cases come out."""

import math

import numpy as np
import pytest
from scipy import stats

from mtp_jax.intervals import bootstrap, mean_estimate, paired_difference


def test_the_t_interval_is_scipys():
    values = [0.31, 0.42, 0.38, 0.29, 0.5]
    found = mean_estimate(values, confidence=0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.38, low, high, 5))


def test_pairs_take_away_what_both_share():
    shared = np.array([0.0, 5.0, -3.0, 9.0])
    found = paired_difference(shared + 1, shared)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))


def test_one_value_has_no_interval():
    found = mean_estimate([2.0])
    assert found.mean == 2 and math.isnan(found.low) and math.isnan(found.high)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = sum(low <= 0.3 <= high for low, high in (
        bootstrap(random.random(200) < 0.3, confidence=0.9, draws=400, seed=trial) for trial in range(300)))
    assert 0.84 <= held / 300 <= 0.95


def test_the_bootstrap_of_equal_values_is_the_value():
    assert bootstrap([0.25] * 10) == (0.25, 0.25)


@pytest.mark.parametrize("call", [lambda: bootstrap([]), lambda: mean_estimate([]),
                                  lambda: paired_difference([1.0], [1.0, 2.0])])
def test_nothing_to_go_by(call):
    with pytest.raises(ValueError):
        call()
