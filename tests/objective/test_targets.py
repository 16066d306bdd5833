"""Targets and masks: a case written by hand, and a loop over every entry."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.objective import multi_token_targets
from tests import plain_model

# Ten tokens: documents of four, three and one token, and padding. The second and third document carry the same segment
# id, as rows cut from a longer stream may; their positions tell them apart.
TOKENS = [[11, 12, 13, 14, 21, 22, 23, 31, 0, 0]]
SEGMENTS = [[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]
POSITIONS = [[0, 1, 2, 3, 0, 1, 2, 0, 0, 1]]
TARGETS = [[12, 13, 14, None, 22, 23, None, None, None, None],
           [13, 14, None, None, 23, None, None, None, None, None],
           [14, None, None, None, None, None, None, None, None, None],
           [None] * 10]


def test_ten_tokens_in_three_documents():
    targets_NxBxL, mask_NxBxL = multi_token_targets(*map(np.asarray, (TOKENS, SEGMENTS, POSITIONS)), num_heads=4)
    assert targets_NxBxL.shape == (4, 1, 10) and targets_NxBxL.dtype == np.int32
    for k, row in enumerate(TARGETS):
        found = [int(t) if m else None for t, m in zip(targets_NxBxL[k, 0], mask_NxBxL[k, 0])]
        assert found == row, f"head {k + 1}"


def test_every_target_past_the_row_is_0_and_does_not_count():
    ones = np.ones((1, 3), np.int32)
    targets_NxBxL, mask_NxBxL = multi_token_targets(7 * ones, ones, np.arange(3)[None], num_heads=5)
    assert targets_NxBxL[:, 0].tolist() == [[7, 7, 0], [7, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert mask_NxBxL[:, 0].tolist() == [[True, True, False], [True, False, False], *[[False] * 3] * 3]


@st.composite
def rows(draw):
    """Draws rows that need not be well formed: any segments and any positions, near enough to match often."""
    B, L = draw(st.sampled_from([(1, 1), (2, 6), (1, 10)]))
    numbers = [draw(st.lists(st.integers(0, top), min_size=B * L, max_size=B * L)) for top in (9, 2, 3)]
    if draw(st.booleans()):  # the usual case: positions that count up
        numbers[2] = list(range(L)) * B
    return [np.asarray(x, np.int32).reshape(B, L) for x in numbers]


@given(rows(), st.sampled_from([1, 4, 8]))
def test_equals_a_loop_over_every_entry(row, num_heads):
    tokens, segments, positions = row
    targets_NxBxL, mask_NxBxL = multi_token_targets(tokens, segments, positions, num_heads)
    want, counts = plain_model.targets({"tokens": tokens, "segments": segments, "positions": positions}, num_heads)
    np.testing.assert_array_equal(mask_NxBxL, counts)
    np.testing.assert_array_equal(np.where(counts, targets_NxBxL, 0), np.where(counts, want, 0))


@pytest.mark.parametrize("seed", range(3))
def test_packed_documents_under_jit(seed):
    """Random packed rows of documents: head k counts max(0, length - k) targets in each."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 6, 8)
    segments = np.repeat(np.arange(1, 9), lengths)[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    tokens = random.integers(0, 99, segments.shape).astype(np.int32)
    targets, mask = jax.jit(multi_token_targets, static_argnums=3)(tokens, segments, positions, 4)
    assert mask.sum((1, 2)).tolist() == [np.maximum(lengths - k, 0).sum() for k in (1, 2, 3, 4)]
    for k in range(4):
        places = np.flatnonzero(mask[k, 0])
        assert np.array_equal(targets[k, 0][places], tokens[0][places + k + 1])


END = 5


@pytest.mark.parametrize("tokens, counts", [
    ([1, 1, 5, 2, 3], [0, 0, 0, 1, 1]), ([5, 1, 5, 2, 3], [0, 1, 1, 1, 1]), ([1, 1, 1, 1, 5], [0, 0, 0, 0, 0])])
def test_only_what_follows_the_end_of_the_prompt_counts(tokens, counts):
    row = np.asarray([tokens], np.int32)
    _, mask = multi_token_targets(row, np.ones_like(row), np.arange(5, dtype=np.int32)[None], 3, END)
    for k in (1, 2, 3):
        assert mask[k - 1, 0].tolist() == [bool(c) for c in counts[k:]] + [False] * k


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**16), st.sampled_from([1, 2, 4]))
def test_the_end_of_the_prompt_in_packed_documents(lengths, seed, num_heads):
    """A document's prompt ends where its own first end lies; what another document holds changes nothing."""
    random, L = np.random.default_rng(seed), 25
    lengths = [*lengths, L - sum(lengths)]
    tokens = random.integers(3, 7, (1, L)).astype(np.int32)
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    _, all_of_them = multi_token_targets(tokens, segments, positions, num_heads)
    _, mask = multi_token_targets(tokens, segments, positions, num_heads, END)
    for k in range(1, num_heads + 1):
        for i in range(L):
            document = tokens[0, i - positions[0, i]:i + k]
            want = bool(all_of_them[k - 1, 0, i]) and END in document
            assert bool(mask[k - 1, 0, i]) == want


def test_a_document_that_began_in_another_row():
    """Positions go on from the row before: only this row's tokens are looked at."""
    tokens, positions = np.asarray([[5, 1, 2]], np.int32), np.asarray([[7, 8, 9]], np.int32)
    _, mask = multi_token_targets(tokens, np.ones_like(tokens), positions, 1, END)
    assert mask[0, 0].tolist() == [True, True, False]
