"""Texts drawn with drafts are distributed as head 1 alone has them; what is not lossless is noticed.

The model is a table: the next token depends on the two before it, at random; each drafting head has a table of its own,
which depends on the two tokens before the pending one, all that a parallel head has seen. Ids from 5 on do not exist.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from mtp_jax.decoding import speculative
from mtp_jax.decoding.sampling import make_sampling
from mtp_jax.decoding.tree import Tree
from tests.decoding.lossless import chi_square, filtered

REAL, V, LENGTH, ROWS = 5, 8, 3, 20_000
NONE = REAL  # stands before the text
TREES = {"chain": Tree.chain(3), "tree": Tree((-1, 0, 0, 0, 1, 1, 2), (0, 0, 1, 2, 0, 1, 0))}
FILTERS = {"off": {}, "temperature": {"temperature": 0.6}, "top_k": {"top_k": 2}, "top_p": {"top_p": 0.75},
           "min_p": {"min_p": 0.3}, "all": {"temperature": 1.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1}}


def table(seed, *axes):
    logits = 1.2 * np.random.default_rng(seed).normal(size=(*axes, V))
    logits[..., REAL:] = -np.inf
    return jnp.asarray(logits, jnp.float32)


HEAD_1, DRAFTS = table(0, REAL + 1, REAL + 1), table(1, REAL + 1, REAL + 1, LENGTH - 1)


def expected(settings):
    """Returns the probability of each text of three tokens."""
    after = {pair: filtered(HEAD_1[pair], **settings)[:REAL] for pair in itertools.product(range(REAL + 1), repeat=2)}
    distribution = np.zeros((REAL,) * LENGTH)
    for a, b, c in np.ndindex(distribution.shape):
        distribution[a, b, c] = after[NONE, NONE][a] * after[NONE, a][b] * after[a, b][c]
    return distribution


def make_texts(tree, chosen=False):
    """Returns a jitted function that decodes ROWS texts with (sampling of drafts, sampling, seed); a fresh one.

    Args:
      tree: of the blocks.
      chosen: the drafts are the likeliest tokens, chosen before anything is drawn, as heads in turn choose theirs.
    """
    above = np.maximum(np.asarray(tree.parents), 0)

    def block(carry, key):
        texts_BxL, length_B, before_Bx3, drafting, sampling = carry  # before: the last tokens, the pending one last
        key_B = jax.random.split(key, ROWS)
        drafts_BxJxV = DRAFTS[before_Bx3[:, 0], before_Bx3[:, 1]]
        candidates = (speculative.as_they_are(jnp.argmax(drafts_BxJxV, axis=-1), V, jnp.float32) if chosen else
                      speculative.propose(drafts_BxJxV, tree, drafting, key_B))
        tokens_BxQ = speculative.node_tokens(before_Bx3[:, 2], candidates, tree)
        parent_BxQ = tokens_BxQ[:, above].at[:, 0].set(before_Bx3[:, 1])
        accepted = speculative.accept(tree, tokens_BxQ, HEAD_1[parent_BxQ, tokens_BxQ], candidates, sampling, key_B)
        path_BxK = jnp.take_along_axis(tokens_BxQ, accepted.path_BxK, axis=1)
        place_K = jnp.arange(tree.depth + 1)[None]
        # The accepted drafts, then head 1's own token.
        new_BxK = jnp.where(place_K < accepted.count_B[:, None], jnp.roll(path_BxK, -1, axis=1),
                            accepted.token_B[:, None])
        place_BxK = jnp.where(place_K <= accepted.count_B[:, None], length_B[:, None] + place_K, LENGTH)
        texts_BxL = texts_BxL.at[jnp.arange(ROWS)[:, None], place_BxK].set(new_BxK, mode="drop")
        line_BxL = jnp.concatenate([before_Bx3, new_BxK], axis=1)
        last_Bx3 = accepted.count_B[:, None] + 1 + jnp.arange(3)[None]
        return (texts_BxL, length_B + accepted.count_B + 1, jnp.take_along_axis(line_BxL, last_Bx3, axis=1), drafting,
                sampling), None

    @jax.jit
    def texts(drafting, sampling, seed):
        start = (jnp.full((ROWS, LENGTH), -1, jnp.int32), jnp.zeros(ROWS, jnp.int32),
                 jnp.full((ROWS, 3), NONE, jnp.int32), drafting, sampling)
        # A block adds a token at least.
        return jax.lax.scan(block, start, jax.random.split(jax.random.key(seed), LENGTH))[0][0]

    return texts


@pytest.fixture(scope="module")
def sound():
    """The decoders as they are, one a tree."""
    return {name: make_texts(tree) for name, tree in TREES.items()}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", FILTERS)
def test_texts_are_distributed_as_head_1_has_them(name, tree, sound):
    sampling = make_sampling(**{"temperature": 1.0, **FILTERS[name]})
    p_value = chi_square(sound[tree](sampling, sampling, 0), expected(FILTERS[name]))
    print(f"p = {p_value:.3g}")
    assert p_value > 1e-3


def test_drafts_that_were_chosen_already_are_lossless():
    texts = make_texts(TREES["chain"], chosen=True)
    for settings in ({}, {"top_p": 0.75}):
        sampling = make_sampling(**{"temperature": 1.0, **settings})
        p_value = chi_square(texts(sampling, sampling, 0), expected(settings))
        print(f"p = {p_value:.3g}")
        assert p_value > 1e-3


@pytest.mark.parametrize("tree", TREES)
def test_typical_acceptance_is_not_lossless(tree, sound):
    sampling = make_sampling(1.0, typical=True)
    p_value = chi_square(sound[tree](sampling, sampling, 0), expected({}))
    print(f"p = {p_value:.3g}")
    assert p_value < 1e-6


@pytest.mark.parametrize("tree", TREES)
def test_a_filter_that_was_not_asked_for_is_noticed(tree, sound):
    """The texts are drawn with a filter and compared with head 1 unfiltered."""
    sampling = make_sampling(1.0, top_k=4)
    p_value = chi_square(sound[tree](sampling, sampling, 0), expected({}))
    print(f"p = {p_value:.3g}")
    assert p_value < 1e-6


@pytest.mark.parametrize("tree", TREES)
def test_any_q_is_lossless_if_it_is_the_one_drawn_from(tree, sound):
    p_value = chi_square(sound[tree](make_sampling(0.5, top_k=2), make_sampling(1.0), 0), expected({}))
    print(f"p = {p_value:.3g}")
    assert p_value > 1e-3


def keep_p(p_BxV, q_BxV):
    """The planted fault: q is not taken off."""
    return p_BxV


def forget_to_normalise(weight_BxV, otherwise_BxV):
    """The planted fault among siblings: what is left does not add up to 1."""
    return weight_BxV


@pytest.mark.parametrize("tree, name, fault", [
    ("chain", "_residual", keep_p), ("tree", "_residual", keep_p), ("tree", "_normalised", forget_to_normalise)])
def test_a_planted_fault_is_noticed(tree, name, fault, monkeypatch):
    monkeypatch.setattr(speculative, name, fault)
    p_value = chi_square(make_texts(TREES[tree])(make_sampling(1.0), make_sampling(1.0), 0), expected({}))
    print(f"p = {p_value:.3g}")
    assert p_value < 1e-6


def test_chi_square_is_scipys_where_nothing_is_merged():
    distribution = np.random.default_rng(0).dirichlet(np.full(125, 5.0)).reshape(5, 5, 5)
    cells = np.random.default_rng(1).choice(125, size=20_000, p=distribution.ravel())
    texts = np.stack(np.unravel_index(cells, (5, 5, 5)), axis=1)
    assert (20_000 * distribution).min() > 5
    want = chisquare(np.bincount(cells, minlength=125), 20_000 * distribution.ravel()).pvalue
    assert 0.01 < want and chi_square(texts, distribution) == pytest.approx(want, rel=1e-9)


def test_chi_square_merges_what_is_rare_and_keeps_its_level():
    distribution = np.zeros((5, 5, 5))
    distribution[0, 0] = [0.6, 0.3, 0.0994, 0.0003, 0.0003]  # of 2000 texts, 0.6 each; together with the third
    rng = np.random.default_rng(2)
    values = [chi_square(np.stack([0 * last, 0 * last, last], axis=1), distribution)
              for last in rng.choice(5, size=(400, 2000), p=distribution[0, 0])]
    assert 0.3 < np.mean(np.less(values, 0.5)) < 0.7 and min(values) > 1e-4


def test_chi_square_refuses_texts_that_cannot_be():
    distribution = np.zeros((5, 5, 5))
    distribution[0, 0, :2] = 0.5
    good = np.array([[0, 0, 0], [0, 0, 1]] * 50)
    assert chi_square(good, distribution) == 1
    for impossible in ([0, 0, 2], [0, 0, 5], [-1, 0, 0]):
        assert chi_square(np.vstack([good, impossible]), distribution) == 0
    with pytest.raises(ValueError, match="draw more"):
        chi_square(good[:4], distribution)
