"""Activation redistribution: against plain numpy, and the properties that the source promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.model.redistribution import Redistribution, measure, noise_at, redistribute

B, L, F = 2, 8, 40  # of every test, so that they share programs
STATISTICS = ("token", "tensor")


@functools.partial(jax.jit, static_argnames="loop")
def moved(x, positions, arm, valid=None, loop=0):
    return redistribute(x, positions, arm, valid_BxL=valid, loop=loop)


measured = jax.jit(measure)
drawn = jax.jit(noise_at, static_argnames="features")


def silu(seed, shape=(B, L, F), scale=3.0):
    x = np.random.default_rng(seed).normal(size=shape) * scale
    return (x / (1 + np.exp(-x))).astype(np.float32)


def places():
    return np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))


def top_k(x, u, arm):
    """The method as it reads, for one group of activations [S]: medians, then the k smallest by sorting."""
    size = np.abs(x)
    mad = max(np.median(np.abs(size - np.median(size))), 1e-12)
    epsilon = 1.4826 * mad * float(arm.c)
    share = np.mean(size < epsilon)
    fraction = np.clip(share, arm.p_min, arm.p_max) if arm.fraction is None else arm.fraction
    chosen = np.argsort(size, kind="stable")[:round(float(fraction) * len(x))]
    top = max(0.0, np.percentile(x if arm.percentile_of == "values" else size, float(arm.p1)))
    target = np.where(x < 0, -u * np.abs(x.min()), u * top)
    y = x.copy()
    y[chosen] = target[chosen] + (x[chosen] if arm.mode == "add" else 0)
    return y, chosen


CHANGES = ({}, {"c": 0.5, "p1": 90}, {"c": 3.0}, {"fraction": 0.4, "percentile_of": "magnitudes", "p1": 85},
           {"c": 0.5, "mode": "add"}, {"c": 0.0, "p_min": 0.0}, {"c": 0.5, "noise": "none"})


@pytest.mark.parametrize("statistics, changes", [
    pytest.param(statistics, changes, marks=() if number < 3 or statistics == "tensor" and number == 3 else
                 pytest.mark.slow)  # the others are programs of their own
    for statistics in STATISTICS for number, changes in enumerate(CHANGES)])
def test_it_is_the_method_as_it_reads(statistics, changes):
    arm = Redistribution.create(**{"statistics": statistics, **changes})
    x = silu(1)
    u = np.asarray(drawn(arm, places(), F))
    y = np.asarray(moved(x, places(), arm))
    groups = [(slice(None), slice(None))] if statistics == "tensor" else list(np.ndindex(B, L))
    for at in groups:
        want, chosen = top_k(x[at].ravel(), u[at].ravel(), arm)
        np.testing.assert_allclose(y[at].ravel(), want, rtol=1e-5, atol=1e-7)
        assert (y[at].ravel() != x[at].ravel()).sum() == len(chosen)
    if changes.get("c") == 0.0:
        assert np.array_equal(y, x)
    else:
        assert not np.array_equal(y, x)


def rounded(seed, scale, digits):
    """Returns activations rounded so that some are equal and some are 0."""
    return np.round(silu(seed, scale=scale), digits).astype(np.float32)


ROWS = st.builds(rounded, st.integers(0, 10_000), st.floats(0.01, 20), st.integers(1, 5))
SETTINGS = st.builds(
    Redistribution.create, c=st.floats(0, 2), p1=st.floats(0, 100), p_min=st.floats(0, 0.2), p_max=st.floats(0.2, 1),
    fraction=st.none() | st.floats(0, 1), seed=st.integers(0, 9), statistics=st.sampled_from(STATISTICS))


@settings(max_examples=40)
@given(x=ROWS, arm=SETTINGS)
def test_signs_stay_and_what_moves_stays_below_the_percentile(x, arm):
    y, found = np.asarray(moved(x, places(), arm)), jax.device_get(measured(x, arm))
    assert np.signbit(y[x < 0]).all() and (y[x >= 0] >= 0).all()
    changed = y.view(np.uint32) != x.view(np.uint32)  # what stays, stays bit by bit
    assert (y <= np.where(changed & (x >= 0), found.top, np.inf)).all()
    assert (-y <= np.where(changed & (x < 0), found.bottom, np.inf)).all()
    # Only what is among the smallest moves, and what is of equal magnitude.
    size = (-1, F) if arm.statistics == "token" else (1, -1)
    groups = zip(changed.reshape(size), np.abs(x).reshape(size), found.chosen.ravel())
    for moves, magnitudes, count in groups:
        largest = np.sort(magnitudes)[count - 1] if count else -1
        assert not moves[magnitudes > largest].any()
        assert count <= (magnitudes <= largest).sum() if count else not moves.any()


@settings(max_examples=15)
@given(x=ROWS, statistics=st.sampled_from(STATISTICS))
def test_a_fraction_of_zero_is_the_identity_bit_by_bit(x, statistics):
    x[0, 0, 0] = -0.0
    arm = Redistribution.create(fraction=0.0, statistics=statistics, percentile_of="magnitudes")
    y = np.asarray(moved(x, places(), arm))
    assert np.array_equal(y.view(np.uint32), x.view(np.uint32))


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("c, p1", [(0.1, 95), (0.32, 90), (0.13, 99.5)])
def test_fewer_are_near_zero(statistics, c, p1):
    arm = Redistribution.create(c=c, p1=p1, statistics=statistics, p_min=0.0, p_max=1.0)
    x = silu(2)
    found = jax.device_get(measured(x, arm))
    y = np.asarray(moved(x, places(), arm))
    before, after = (np.mean(np.abs(values) < found.epsilon) for values in (x, y))
    assert 0.02 < before and after < 0.5 * before
    assert np.mean(np.abs(y)) > np.mean(np.abs(x))


def test_token_statistics_do_not_depend_on_how_the_sequence_is_cut():
    arm = Redistribution.create(c=0.5)
    x, positions = silu(3), places()
    whole = np.asarray(moved(x, positions, arm))
    parts = [np.asarray(moved(x[:, i:i + 2], positions[:, i:i + 2], arm)) for i in range(0, L, 2)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    backwards = np.asarray(moved(x[::-1, ::-1], positions[::-1, ::-1], arm))
    assert np.array_equal(backwards[::-1, ::-1], whole)
    tensor = Redistribution.create(c=0.5, statistics="tensor")
    doubled = np.concatenate([x[:1], 2 * x[1:]])  # another row of the call
    assert not np.array_equal(np.asarray(moved(doubled, positions, tensor))[0],
                              np.asarray(moved(x, positions, tensor))[0])
    assert np.array_equal(np.asarray(moved(doubled, positions, arm))[0], whole[0])


@pytest.mark.parametrize("statistics", STATISTICS)
def test_padding_counts_in_no_statistics_and_stays(statistics):
    arm = Redistribution.create(c=0.5, statistics=statistics)
    x = silu(4)
    valid = np.arange(L)[None] < np.array([[3], [L]])
    one = np.asarray(moved(x, places(), arm, valid))
    garbage = np.where(valid[:, :, None], x, 100.0).astype(np.float32)
    other = np.asarray(moved(garbage, places(), arm, valid))
    assert np.array_equal(one[valid], other[valid])
    assert np.array_equal(one[~valid], x[~valid]) and np.array_equal(other[~valid], garbage[~valid])


def test_noise_is_keyed_by_seed_loop_position_and_feature():
    arm = Redistribution.create()
    positions = np.array([[0, 1, 7], [7, 0, 3]], np.int32)
    u = np.asarray(drawn(arm, positions, 500))
    assert u.shape == (2, 3, 500) and (0 <= u).all() and (u < 1).all() and abs(u.mean() - 0.5) < 0.03
    assert np.array_equal(u[0, 2], u[1, 0]) and np.array_equal(u[0, 0], u[1, 1])
    for other in (u[0, 1], drawn(arm, positions, 500, 1)[0, 0],
                  drawn(Redistribution.create(seed=1), positions, 500)[0, 0]):
        assert abs(np.corrcoef(u[0, 0], np.asarray(other))[0, 1]) < 0.2
    assert (np.asarray(noise_at(Redistribution.create(noise="none"), np.array([[3]]), 5)) == 0.5).all()


@pytest.mark.slow
def test_statistics_are_in_fp32_and_the_rest_keeps_its_dtype():
    arm = Redistribution.create(c=0.5)
    x = jnp.asarray(silu(5), jnp.bfloat16)
    y = moved(x, places(), arm)
    assert y.dtype == jnp.bfloat16 and measured(silu(5), arm).epsilon.dtype == jnp.float32
    stays = np.asarray(x == y)
    assert 0.6 < stays.mean() < 0.99


@pytest.mark.slow
def test_other_numbers_compile_nothing_anew():
    x = silu(6)
    moved(x, places(), Redistribution.create())
    before = moved._cache_size()
    moved(x, places(), Redistribution.create(c=0.7, p1=80, p_min=0.1, p_max=0.9, seed=3))
    assert moved._cache_size() == before
    moved(x, places(), Redistribution.create(mode="add", noise="none"))
    assert moved._cache_size() == before + 1


@pytest.mark.parametrize("bad, words", [
    ({"c": -0.1}, "c=-0.1 must be 0 or above"), ({"c": float("nan")}, "c=nan"), ({"p1": 101}, "p1=101 must lie in 0"),
    ({"p1": -1}, "percentile"), ({"p_min": 0.5, "p_max": 0.1}, "p_min=0.5 is above p_max=0.1"),
    ({"fraction": 1.5}, "fraction=1.5 must lie in 0..1"), ({"seed": -1}, "seed=-1"), ({"seed": 0.5}, "seed=0.5"),
    ({"mode": "replac"}, 'Did you mean "replace"'), ({"statistics": "tokens"}, 'Did you mean "token"'),
    ({"noise": "off"}, "noise='off' is not one of"), ({"percentile_of": "value"}, 'Did you mean "values"')])
def test_bad_settings_are_told(bad, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        Redistribution.create(**bad)
