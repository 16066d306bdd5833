"""Section 5.2: the identities hold to 1e-10 (E7), and the measurement is that of a model read token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.tasks.information import at_position, draw_positions
from mtp_jax.evaluation.theory import information as info
from mtp_jax.evaluation.theory.two_tokens import next_two
from tests.decoding.checks import decoding_model
from tests.decoding.models import random_model


@st.composite
def joints(draw, zeros=True):
    """Returns two joints p, q of one shape; p may have zeros, also whole rows, q has none."""
    X, Y, seed = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    p, q = (random.dirichlet(np.full(X * Y, draw(st.sampled_from((0.2, 1.0, 30.0))))).reshape(X, Y) for _ in range(2))
    if zeros and X * Y > 1:
        p = p * (random.random((X, Y)) < 0.7)
        p = p / p.sum() if p.sum() > 0 else np.full((X, Y), 1 / (X * Y))
    return p, (q + 1e-6) / (q + 1e-6).sum()


@given(joints())
def test_entropies_of_two_tokens(pair):
    p, _ = pair
    p_X, p_Y = info.marginals(p)
    x_given_y, y_given_x = (info.conditional_cross_entropy(p, p, given=name) for name in "yx")
    shared = info.mutual_information(p)
    assert info.entropy(p_X) == pytest.approx(x_given_y + shared, abs=1e-10)
    assert info.entropy(p_X) + info.entropy(p_Y) == pytest.approx(x_given_y + 2 * shared + y_given_x, abs=1e-10)
    assert shared > -1e-12


@given(joints())
def test_lemma_l3(pair):
    p, q = pair
    (p_X, p_Y), (q_X, q_Y) = info.marginals(p), info.marginals(q)
    shared = info.relative_mutual_information(p, q)
    losses = info.cross_entropy(p_X, q_X) + info.cross_entropy(p_Y, q_Y)
    x_given_y, y_given_x = (info.conditional_cross_entropy(p, q, given=name) for name in "yx")
    assert info.cross_entropy(p_X, q_X) == pytest.approx(x_given_y + shared, abs=1e-10)
    assert losses == pytest.approx(x_given_y + 2 * shared + y_given_x, abs=1e-10)
    assert shared == pytest.approx(losses - info.cross_entropy(p, q), abs=1e-10)
    assert shared == pytest.approx(info.relative_mutual_information(p.T, q.T), abs=1e-10)
    assert info.relative_mutual_information(p, p) == pytest.approx(info.mutual_information(p), abs=1e-10)


def test_relative_mutual_information_can_be_negative():
    p, q = np.full((2, 2), 0.25), np.array([[0.45, 0.05], [0.05, 0.45]])  # q sees a bond that p has not
    assert info.relative_mutual_information(p, q) == pytest.approx(-0.5108, abs=1e-4)
    assert info.mutual_information(q) == pytest.approx(0.3681, abs=1e-4) and info.mutual_information(p) == 0
    assert info.cross_entropy(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf


def test_the_numbers_of_a_position_are_those_of_its_joint():
    random = np.random.default_rng(0)
    first, second = random.dirichlet(np.ones(5)), random.dirichlet(np.ones(5), 5)
    joint, ahead = first[:, None] * second, random.dirichlet(np.ones(5))
    order = np.argsort(-first)
    found = at_position(np.log(first), order, np.log(second[order]), np.log(ahead), 3, 1)
    marginal = joint.sum(axis=0)
    wanted = {"entropy_x": info.entropy(first), "entropy_y": info.entropy(marginal), "covered": 1, "lemma": 0,
              "mutual_information": info.mutual_information(joint), "loss_x": -np.log(first[3]),
              "loss_y": -np.log(marginal[1]), "loss_y_given_x": -np.log(second[3, 1]),
              "loss_x_given_y": -np.log(joint[3, 1] / marginal[1]), "head_2_loss": -np.log(ahead[1]),
              "relative_information": np.log(second[3, 1] / marginal[1]),
              "head_2_divergence": info.divergence(marginal, ahead)}
    assert found == {name: pytest.approx(value, abs=1e-12) for name, value in wanted.items()}
    few = at_position(np.log(first), order[:2], np.log(second[order[:2]]), None, int(order[0]), 1)
    assert few["covered"] == pytest.approx(first[order[:2]].sum()) and "head_2_loss" not in few
    assert at_position(np.log(first), order[:2], np.log(second[order[:2]]), None, int(order[4]), 1) == {}


@pytest.mark.parametrize("kind", [
    "parallel", "sequential", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("anticausal", "linear"))])
def test_the_next_two_tokens_are_those_of_reading_on(kind, x64):
    model = decoding_model(random_model(kind))
    random = np.random.default_rng(1)
    contexts = [random.integers(0, 11, length).astype(np.int32) for length in (9, 2, 14)]
    two = next_two(model, contexts, branches=11)
    assert (two.ahead_BxV is None) == (kind == "sequential")
    rows = [np.append(context, [x, y]) for context in contexts for x in (0, 7) for y in (3, 10)]
    readings = iter(Scorer(model).read(rows, heads=(1,) if two.ahead_BxV is None else (1, 2)))
    for b in range(len(contexts)):
        for x in (0, 7):
            for y in (3, 10):
                reading = next(readings)
                place = int(np.flatnonzero(two.tokens_BxK[b] == x)[0])
                np.testing.assert_allclose([two.first_BxV[b, x], two.second_BxKxV[b, place, y]],
                                           reading.logprob[1][-2:], atol=1e-9)
                if two.ahead_BxV is not None:
                    np.testing.assert_allclose(two.ahead_BxV[b, y], reading.logprob[2][-1], atol=1e-9)
        assert sorted(two.tokens_BxK[b]) == list(range(11))
        assert np.all(np.diff(two.first_BxV[b, two.tokens_BxK[b]]) <= 0)


def test_positions_are_spread_over_rows_and_fit():
    rows = [np.arange(40), np.arange(100), np.arange(33)]
    places = draw_positions(rows, 30, 64, seed=0)
    assert [len(row) for row, _ in places[:3]] == [40, 100, 33] and len(places) == 30
    assert all(16 <= end <= min(len(row) - 2, 63) for row, end in places)
    assert len({(len(row), end) for row, end in places}) == 30
    assert len(draw_positions(rows[2:], 1000, 64, seed=0)) == 16  # a row of 33 has no more


def test_wrong_branches_and_contexts(x64):
    model = decoding_model(random_model("parallel"))
    with pytest.raises(ValueError, match="branches=12 must lie in 1..11"):
        next_two(model, [np.arange(3)], branches=12)
    with pytest.raises(ValueError, match="Context 0 has 1 tokens"):
        next_two(model, [np.arange(1)], branches=2)
