"""Every transform is undone by its other half, and means what the formats mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.convert.transforms import Copy, Folded, InterleavedLinear, InterleavedNorm, Linear, Vocabulary
from mtp_jax.model.primitives import rotary, rotary_tables

sizes = st.integers(1, 5)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_back_undoes_out(width, heads, half, seed):
    random = np.random.default_rng(seed)
    for transform, shape in [(Copy(), (width,)), (Linear(), (width, heads)), (Linear(), (width, heads, 2 * half)),
                             (Linear(inputs=2), (heads, 2 * half, width)),
                             (InterleavedLinear(), (width, heads, 2 * half)), (InterleavedNorm(), (2 * half,))]:
        array = random.standard_normal(shape).astype(np.float32)
        tensor = transform.out(array)
        assert tensor.shape == transform.shape(shape)
        np.testing.assert_array_equal(transform.back(tensor, shape), array)


def test_a_linear_layer_is_torchs():
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((3, 8)), random.standard_normal((8, 2, 4))
    ours = np.einsum("ld,dac->lac", x, weight).reshape(3, 8)
    np.testing.assert_allclose(x @ Linear().out(weight).T, ours, rtol=1e-12)
    o, weight = random.standard_normal((3, 2, 4)), random.standard_normal((2, 4, 8))
    np.testing.assert_allclose(o.reshape(3, 8) @ Linear(inputs=2).out(weight).T, np.einsum("lac,acd->ld", o, weight),
                               rtol=1e-12)


@pytest.mark.parametrize("wrong", [False, True])
def test_interleaved_pairs_turn_as_ours(wrong):
    """Meta turns (2c, 2c + 1) as a complex number; scores of queries and keys must not change."""
    random, positions = np.random.default_rng(0), np.arange(6)[None]
    x = random.standard_normal((1, 6, 16)).astype(np.float32)
    queries, keys = (random.standard_normal((16, 2, 8)).astype(np.float32) for _ in range(2))
    cos, sin = rotary_tables(positions, 8, theta=10_000.0)
    ours = [np.asarray(rotary(np.einsum("bld,dac->blac", x, w), cos, sin)) for w in (queries, keys)]
    turn = np.exp(1j * positions[0][:, None] * 10_000.0 ** (-np.arange(0, 8, 2) / 8))[None, :, None]
    theirs = []
    for w in (queries, keys):
        matrix = (Linear() if wrong else InterleavedLinear()).out(w)
        pairs = (x @ matrix.T).reshape(1, 6, 2, 4, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
        theirs.append(np.stack([turned.real, turned.imag], -1).reshape(1, 6, 2, 8))
    scores = [np.einsum("blac,bmac->balm", *pair) for pair in (ours, theirs)]
    assert np.allclose(*scores, rtol=1e-4, atol=1e-4) != wrong


def test_vocabulary_is_cut_and_padded():
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    transform = Vocabulary(rows=4)
    assert transform.shape((6, 2)) == (4, 2)
    np.testing.assert_array_equal(transform.out(array), array[:4])
    back = transform.back(array[:4], (6, 2))
    np.testing.assert_array_equal(back[:4], array[:4])
    assert back.shape == (6, 2) and not back[4:].any()


def test_a_linear_head_folds_into_the_unembedding():
    random = np.random.default_rng(0)
    x, kernel, unembedding = (random.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 4), (8, 4)))
    folded = Folded(rows=6).fold(unembedding, kernel)
    np.testing.assert_allclose(x @ folded.T, (x @ kernel) @ unembedding[:6].T, rtol=1e-4, atol=1e-5)
