"""Section 5.1: n(n+1)/2 terms against n (E8), and the measured weight comes to the same on small chains."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.evaluation.tasks.choice_points import KINDS, step_kinds
from mtp_jax.evaluation.theory import choice_points

LENGTH = 24


@pytest.mark.parametrize("n", range(1, 9))
def test_terms_that_a_wrong_decision_spoils(n):
    step = 12
    # By changing the text: a term is spoiled if its token differs and what it is predicted from does not.
    right = np.arange(LENGTH)
    branch, rejoined = right.copy(), right.copy()
    branch[step:] += 100
    rejoined[step] += 100
    for wrong, rejoins, count in ((branch, False, n * (n + 1) // 2), (rejoined, True, n)):
        spoiled = [(i, k) for i, k in choice_points.terms(LENGTH, n)
                   if right[i + k] != wrong[i + k] and np.array_equal(right[:i + 1], wrong[:i + 1])]
        assert len(spoiled) == count
        assert sorted(spoiled) == sorted(choice_points.spoiled(step, LENGTH, n, rejoins=rejoins))
    assert len(choice_points.terms(LENGTH, n)) == sum(LENGTH - k for k in range(1, n + 1))


def exact_losses(texts, chances, text, n):
    """Returns the losses of n perfect heads on a text, by enumerating a distribution over texts."""
    losses = {k: np.zeros(len(text) - k) for k in range(1, n + 1)}
    for i, k in choice_points.terms(len(text), n):
        same = np.all(texts[:, :i + 1] == text[:i + 1], axis=1)
        hit = same & (texts[:, i + k] == text[i + k])
        losses[k][i] = -math.log(chances[hit].sum() / chances[same].sum())
    return losses


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("choices", [2, 3])
def test_the_weight_of_a_choice_and_of_a_step_without_consequence(n, choices):
    # Ten tokens that are all known, a choice between branches that never meet, or one token that is free: 2 or 3 ways.
    step, known = 8, np.arange(20)
    branches = np.stack([np.where(known < step, known, known + 100 * c) for c in range(choices)])
    meeting = np.stack([np.where(known == step, 50 + c, known) for c in range(choices)])
    chances, bits = np.full(choices, 1 / choices), math.log(choices)
    for texts, factor in ((branches, n * (n + 1) / 2), (meeting, n)):
        losses = exact_losses(texts, chances, texts[1], n)
        weight = choice_points.weights(losses)
        expected = np.zeros(19)
        expected[step - 1] = factor * bits
        np.testing.assert_allclose(weight, expected, atol=1e-12)
        assert choice_points.emphasis(weight, losses[1], n) == pytest.approx(factor / n)


def test_a_choice_that_shows_two_tokens_later():
    # x y z: z repeats x, y is free. Head 2 from before x must guess y, head 3 z; x has what z costs before x is known.
    texts = np.array([[9, x, y, x, 9, 9] for x, y in itertools.product((0, 1), repeat=2)])
    losses = exact_losses(texts, np.full(4, 0.25), texts[1], 3)
    bit = math.log(2)
    np.testing.assert_allclose(choice_points.credits(losses)[3], [bit, 0, 0], atol=1e-12)
    # Tokens 1 and 2 lack terms at the beginning: one head reaches the first, two the second.
    np.testing.assert_allclose(choice_points.weights(losses), [2 * bit, 2 * bit, 0, 0, 0], atol=1e-12)


@given(st.integers(1, 6), st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_the_weights_of_a_row_sum_to_its_loss(n, length, seed):
    random = np.random.default_rng(seed)
    losses = {k: random.exponential(size=max(0, length - k)) for k in range(1, n + 1)}
    weight = choice_points.weights(losses)
    assert weight.shape == (length - 1,)
    assert weight.sum() == pytest.approx(sum(loss.sum() for loss in losses.values()), abs=1e-9)
    for t in range(n, length - n + 1):  # whole steps: the formula of the header
        d = choice_points.credits(losses)
        assert weight[t - 1] == pytest.approx(sum((n - m + 1) * d[m][t - 1] for m in range(1, n + 1)), abs=1e-9)


def test_intervals_are_over_rows():
    weight, own = np.array([3.0, 3.0, 6.0]), np.array([1.0, 1.0, 2.0])
    assert choice_points.emphasis_interval(weight, own, 2) == (1.5, 1.5)
    low, high = choice_points.emphasis_interval(np.array([2.0, 6.0]), np.ones(2), 2)
    assert (low, high) == (1.0, 3.0)
    assert np.isnan(choice_points.emphasis_interval(np.zeros(3), np.zeros(3), 2)).all()
    assert np.isnan(choice_points.emphasis(np.zeros(3), np.zeros(3), 2))


def test_kinds_of_steps():
    tokenizer = ByteTokenizer()
    row = np.concatenate([[tokenizer.bos_id], tokenizer.encode("def foo_1(é):\n x"), [tokenizer.eos_id]])
    kinds = [KINDS[kind] for kind in step_kinds(row, tokenizer)]
    assert kinds == ["end", "first", "second", "third", "space", "first", "second", "third", "later", "later", "sign",
                     "first", "second", "sign", "sign", "space", "space", "first", "end"]


class Pieces:
    """A tokenizer whose tokens hold the space before a word."""

    def decode(self, ids):
        return ["", " the", " fox", "es", ".", "\n", " 1", " ("][ids[0]]


def test_kinds_of_tokens_that_hold_a_space():
    kinds = [KINDS[kind] for kind in step_kinds(np.array([0, 1, 2, 3, 4, 3, 5, 6, 7, 3]), Pieces())]
    assert kinds == ["end", "first", "first", "second", "sign", "first", "space", "first", "sign", "first"]
