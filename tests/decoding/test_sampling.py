"""Filters: against numpy step by step, at their borders, and in what they cost when they are off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.decoding.sampling import GREEDY, LOSSLESS, TYPICAL, draw, highest, make_sampling, probabilities
from tests.decoding.lossless import filtered

V, REAL = 16, 11  # ids from REAL on do not exist
JITTED = jax.jit(probabilities)


def random_logits(seed, rows=8, scale=2.0):
    logits = scale * np.random.default_rng(seed).normal(size=(rows, V))
    logits[:, REAL:] = -np.inf
    return logits


def single(value):
    """Rounds as a scalar of `Sampling` is rounded."""
    return float(np.float32(value))


SETTINGS = st.fixed_dictionaries({}, optional={
    "temperature": st.floats(0.125, 4).map(single), "top_k": st.integers(0, V + 4),
    "top_p": st.floats(0.05, 1).map(single), "min_p": st.floats(0, 0.9).map(single)})


@given(st.integers(0, 2**20), SETTINGS)
def test_filters_are_those_of_numpy(seed, settings):
    logits = random_logits(seed)
    with jax.enable_x64(True):
        probs = np.asarray(JITTED(jnp.asarray(logits), make_sampling(**{"temperature": 1.0, **settings})))
    want = np.stack([filtered(row, **settings) for row in logits])
    assert probs.dtype == np.float64
    assert ((probs > 0) == (want > 0)).all()
    np.testing.assert_allclose(probs, want, rtol=1e-12, atol=0)


def test_filters_see_what_the_ones_before_them_left():
    probs = np.array([0.5, 0.25, 0.15, 0.1])
    # Of the two that top-k leaves the first has 2/3; alone, top-p would keep both of 0.5 and 0.25.
    got = probabilities(jnp.log(probs), make_sampling(1.0, top_k=2, top_p=0.6))
    np.testing.assert_allclose(got, [1, 0, 0, 0], atol=1e-6)
    # At temperature 1/2 the shares are 25, 6.25, 2.25, 1 of 34.5: top-p 0.7 keeps one, where 1 would keep two.
    got = probabilities(jnp.log(probs), make_sampling(0.5, top_p=0.7))
    np.testing.assert_allclose(got, [1, 0, 0, 0], atol=1e-6)
    # 0.25 is half of the highest; at temperature 1/2 it is a quarter of it.
    assert (np.asarray(probabilities(jnp.log(probs), make_sampling(1.0, min_p=0.49))) > 0).tolist() == [1, 1, 0, 0]
    assert (np.asarray(probabilities(jnp.log(probs), make_sampling(0.5, min_p=0.49))) > 0).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("settings, kept", [
    ({"top_k": 1}, [1, 1, 0, 0, 0]), ({"top_k": 3}, [1, 1, 1, 1, 0]), ({"top_k": 50}, [1, 1, 1, 1, 0]),
    ({"top_p": 0.1}, [1, 1, 0, 0, 0]), ({"top_p": 1.0}, [1, 1, 1, 1, 0]), ({"min_p": 0.999}, [1, 1, 0, 0, 0])])
def test_equal_logits_stay_or_go_together(settings, kept):
    logits = jnp.asarray([2.0, 2.0, 1.0, 1.0, -jnp.inf])
    assert (np.asarray(probabilities(logits, make_sampling(1.0, **settings))) > 0).tolist() == kept


@pytest.mark.parametrize("dtype, wide", [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_probabilities_are_wide_and_add_up_to_1(dtype, wide):
    with jax.enable_x64(True):
        probs = JITTED(jnp.asarray(random_logits(0), dtype), make_sampling(0.8, top_k=7, top_p=0.9, min_p=0.01))
        assert probs.dtype == wide
        np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6 if wide == "float32" else 1e-14)


def test_off_filters_keep_the_tail():
    logits = jnp.asarray([0.0, *[-15.0] * 9])  # in fp32 the shares before the last ones round to 1
    assert (probabilities(logits, make_sampling(1.0, top_k=10)) > 0).all()


def test_the_lowest_temperature_is_the_argmax_and_0_counts_as_1():
    logits = jnp.asarray(random_logits(3), jnp.float32)
    cold = np.asarray(probabilities(1e6 * logits, make_sampling(1e-6)))
    assert (cold == np.eye(V)[np.argmax(logits, -1)]).all()
    np.testing.assert_array_equal(probabilities(logits, make_sampling()), probabilities(logits, make_sampling(1.0)))


def test_nothing_is_sorted_unless_a_filter_needs_it():
    jaxpr = jax.make_jaxpr(probabilities)(jnp.zeros((2, V)), make_sampling(1.0))
    sorting, = [eqn for eqn in jaxpr.eqns if "sort" in str(eqn)]
    assert sorting.primitive.name == "cond"
    assert ["sort" in str(branch) for branch in sorting.params["branches"]] == [False, True]


def test_settings_are_no_reason_to_compile_again():
    function = jax.jit(lambda *args: probabilities(*args))  # of its own: jit shares what one function compiled
    for settings in ({}, {"temperature": 0.7}, {"temperature": 2, "top_k": 3, "top_p": 0.5, "min_p": 0.1}):
        function(jnp.zeros((2, V)), make_sampling(**settings))
    assert function._cache_size() == 1


@given(st.lists(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 1e-30, 2.5]), min_size=6, max_size=6), min_size=1,
                max_size=4))
def test_the_highest_is_argmax(rows):
    rows = np.asarray(rows, np.float32)
    assert highest(jnp.asarray(rows)).tolist() == np.argmax(rows, -1).tolist()


def test_the_highest_tells_apart_what_only_fp64_does(x64):
    assert int(highest(jnp.asarray([1.0, 1.0 + 1e-12, 1.0]))) == 1


def test_nothing_is_the_highest_among_nan():
    assert highest(jnp.asarray([[0.0, np.nan, 1.0], [0.0, -np.inf, -1.0]])).tolist() == [3, 0]


def test_draws_follow_the_weights_and_each_row_its_own_key():
    rows = 20_000
    weight = np.array([0.0, 3.0, 1.0, 0.0, 4.0], np.float32)
    keys = jax.random.split(jax.random.key(0), rows)
    drawn = np.asarray(draw(jnp.broadcast_to(weight, (rows, 5)), keys))
    share = np.bincount(drawn, minlength=5) / rows
    assert share[0] == share[3] == 0
    np.testing.assert_allclose(share, weight / 8, atol=5 * np.sqrt(0.25 / rows))
    assert (np.asarray(draw(jnp.broadcast_to(weight, (7, 5)), keys[100:107])) == drawn[100:107]).all()


def test_the_rule_follows_temperature_and_typical():
    assert [int(make_sampling(*given).rule) for given in ((), (0.0, 5, 0.5), (0.7,))] == [GREEDY, GREEDY, LOSSLESS]
    assert [int(make_sampling(t, typical=True).rule) for t in (0.0, 1.0)] == [TYPICAL, TYPICAL]


@pytest.mark.parametrize("settings, message", [
    ({"temperature": -0.5}, "temperature=-0.5 must be 0"), ({"temperature": 1e-9}, "or at least 1e-06"),
    ({"temperature": np.nan}, "temperature=nan"), ({"temperature": np.inf}, "and finite"),
    ({"top_k": -1}, "top_k=-1 must be a whole number"), ({"top_k": 2.5}, "top_k=2.5"),
    ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"), ({"top_p": 1.1}, "top_p=1.1"),
    ({"min_p": -0.1}, r"min_p=-0.1 must lie in \[0, 1\)"), ({"min_p": 1.0}, "min_p=1.0"),
    ({"typical_epsilon": 0.0}, r"typical_epsilon=0.0 must lie in \(0, 1\]"),
    ({"typical_delta": -1.0}, "typical_delta=-1.0 must be above 0")])
def test_nonsense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_sampling(**settings)
