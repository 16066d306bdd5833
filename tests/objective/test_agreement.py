"""Agreement with head 1, against a loop over every position."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.objective import agreement_sums, multi_token_targets


def brute_force(predictions, mask, active):
    """Returns (agree, count, accepted, accepted_count), one position at a time."""
    N, B, L = predictions.shape
    agree, count, accepted, accepted_count = np.zeros(N), np.zeros(N), 0, 0
    for b in range(B):
        for i in range(L):
            agrees = [False] * N
            for k in range(N):
                if mask[k, b, i]:
                    count[k] += 1
                    if active[k] and i + k < L and predictions[k, b, i] == predictions[0, b, i + k]:
                        agrees[k] = True
                        agree[k] += 1
            if mask[:, b, i].all():
                accepted_count += 1
                for k in range(1, N):
                    if not agrees[k]:
                        break
                    accepted += 1
    return agree, count, accepted, accepted_count


def check(predictions, mask, active):
    got = agreement_sums(predictions, mask, active)
    for value, want in zip((got.agree_N, got.count_N, got.accepted, got.accepted_count),
                           brute_force(predictions, mask, active)):
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, want)


def packed_mask(segments, num_heads):
    """Returns the mask of rows whose documents are runs of equal segment ids."""
    B, L = segments.shape
    mask = np.zeros((num_heads, B, L), bool)
    for k in range(1, num_heads + 1):
        mask[k - 1, :, :max(L - k, 0)] = segments[:, :max(L - k, 0)] == segments[:, k:]
    return mask


@given(st.sampled_from([(1, 1, 5), (2, 2, 7), (4, 1, 9), (4, 2, 3)]), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_equals_a_loop_over_every_position(shape, seed, vocab_size):
    random = np.random.default_rng(seed)
    N, B, L = shape
    segments = np.sort(random.integers(1, 3, (B, L)))
    active = random.integers(0, 3, N) > 0
    active[0] = True
    check(random.integers(0, vocab_size, shape).astype(np.int32), packed_mask(segments, N), active)


def test_a_case_by_hand():
    """Head 2 at i is right about head 1 at i + 1 in two of three places; head 3 in the one place it has."""
    predictions = np.asarray([[[5, 6, 7, 8]], [[6, 0, 8, 0]], [[7, 0, 0, 0]]], np.int32)
    mask = np.asarray([[[True, True, True, False]], [[True, True, False, False]], [[True, False, False, False]]])
    sums = jax.jit(agreement_sums)(predictions, mask, np.ones(3, bool))
    assert sums.agree_N.tolist() == [3, 1, 1] and sums.count_N.tolist() == [3, 2, 1]
    assert float(sums.accepted) == 2 and float(sums.accepted_count) == 1


@given(st.integers(0, 2**32 - 1))
def test_equals_the_loop_where_only_what_follows_a_token_counts(seed):
    random = np.random.default_rng(seed)
    tokens, segments = random.integers(0, 3, (2, 12)), np.sort(random.integers(1, 3, (2, 12)))
    positions = np.stack([np.concatenate([np.arange(np.sum(row == one)) for one in (1, 2)]) for row in segments])
    _, mask = multi_token_targets(tokens, segments, positions.astype(np.int32), 3, 0)
    check(random.integers(0, 2, (3, 2, 12)).astype(np.int32), np.asarray(mask), np.ones(3, bool))


def test_perfect_drafts_of_answers_are_accepted_whole():
    """Heads 2 and 3 have targets in the answer from places where head 1 has none: those say nothing of acceptance."""
    tokens = np.asarray([[1, 1, 1, 9, 2, 3, 4, 5]], np.int32)
    _, mask = multi_token_targets(tokens, np.ones_like(tokens), np.arange(8, dtype=np.int32)[None], 3, 9)
    says = np.append(tokens[0, 1:], [0, 0, 0])  # head 1, at each position
    sums = agreement_sums(np.stack([says[k:k + 8] for k in range(3)])[:, None], mask, np.ones(3, bool))
    assert float(sums.accepted_count) == 2 and float(sums.accepted) == 4


@pytest.mark.parametrize("idle", [1, 2])
def test_a_head_that_did_not_run_ends_the_prefix(idle):
    predictions, mask = np.zeros((3, 1, 6), np.int32), packed_mask(np.ones((1, 6)), 3)
    active = np.arange(3) != idle
    sums = agreement_sums(predictions, mask, active)
    assert sums.agree_N[idle] == 0 and sums.agree_N[0] == 5
    assert float(sums.accepted) == (idle - 1) * float(sums.accepted_count) and float(sums.accepted_count) == 3
