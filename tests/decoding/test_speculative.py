"""Proposing and accepting: against a walk in plain Python, and where probabilities are 0 or 1."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.decoding import speculative
from mtp_jax.decoding.sampling import make_sampling
from mtp_jax.decoding.speculative import Candidates, accept, node_tokens, propose
from mtp_jax.decoding.tree import Tree
from tests.decoding.lossless import filtered

TREES = {
    "root": Tree.chain(1), "chain of 2": Tree.chain(2), "chain of 5": Tree.chain(5),
    "wide": Tree((-1, 0, 0, 0), (0, 0, 1, 2)),
    "bushy": Tree.prune([[0.5, 0.25, 0.125]] * 3, 14),
    # The later branch is the deeper one, and listed depth first.
    "odd": Tree((-1, 0, 1, 0, 3, 4, 3), (0, 0, 0, 1, 0, 0, 1)),
}
ROWS, MANY = 16, 20_000
EXAMPLES = hypothesis.settings(max_examples=20)  # of 16 rows each


@functools.partial(jax.jit, static_argnums=0)
def block(tree, drafts_BxJxV, logits_BxQxV, sampling, key_B):
    """Returns one block's candidates, tokens and what is accepted; the pending token is 0."""
    candidates = propose(drafts_BxJxV, tree, sampling, key_B)
    tokens_BxQ = node_tokens(jnp.zeros(len(key_B), jnp.int32), candidates, tree)
    return candidates, tokens_BxQ, accept(tree, tokens_BxQ, logits_BxQxV, candidates, sampling, key_B)


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def random_block(tree, seed, vocab=6, real=5, levels=4):
    """Returns logits of drafts and nodes with many ties; ids from `real` on do not exist."""
    rng = np.random.default_rng(seed)
    drafts = rng.integers(0, levels, (ROWS, tree.depth, vocab)).astype(np.float32)
    logits = rng.integers(0, levels, (ROWS, tree.size, vocab)).astype(np.float32)
    # Head 1 mostly says what one of the candidates is, else no path would be deep.
    for depth, parent in zip(tree.depths[1:], tree.parents[1:]):
        logits[:, parent] += rng.integers(0, 2, (ROWS, 1)) * drafts[:, depth - 1]
    drafts[..., real:] = logits[..., real:] = -np.inf
    return drafts, logits


def naive_candidates(drafts_JxV, width):
    """Returns the ids of the highest logits of each head, of equal ones the first."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:width] for row in drafts_JxV]


def deepest(tree, good):
    """Returns the deepest of the nodes reached by good nodes only, of equal ones that with the lower ranks."""
    reached = [(0, [], 0)]
    for _, ranks, node in reached:  # grows on the way
        reached += [(len(ranks) + 1, [*ranks, rank], child)
                    for rank, child in enumerate(tree.children[node]) if good(node, child)]
    most = max(depth for depth, _, _ in reached)
    return min((ranks, node) for depth, ranks, node in reached if depth == most)[1]


def check_path(tree, accepted, row):
    node = int(accepted.node_B[row])
    assert int(accepted.count_B[row]) == tree.depths[node]
    assert accepted.path_BxK[row].tolist() == tree.paths[node].tolist()


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@EXAMPLES
@given(seed=st.integers(0, 2**20))
def test_greedy_is_a_walk(tree, seed):
    drafts, logits = random_block(tree, seed)
    candidates, tokens, accepted = block(tree, drafts, logits, make_sampling(), keys(ROWS))
    for row in range(ROWS):
        proposed = naive_candidates(drafts[row], max(tree.widths, default=1))
        assert candidates.tokens_BxJxR[row].tolist() == proposed
        said = [0, *(proposed[depth - 1][rank] for depth, rank in zip(tree.depths[1:], tree.ranks[1:]))]
        assert tokens[row].tolist() == said
        node, path = 0, [0]
        while follows := [child for child in tree.children[node] if said[child] == np.argmax(logits[row, node])]:
            node = follows[0]
            path.append(node)
        assert int(accepted.node_B[row]) == node and int(accepted.token_B[row]) == np.argmax(logits[row, node])
        assert accepted.path_BxK[row].tolist() == path + [node] * (tree.depth + 1 - len(path))
        assert int(accepted.count_B[row]) == len(path) - 1
    assert not candidates.probs_BxJxV.any()


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@EXAMPLES
@given(seed=st.integers(0, 2**20), temperature=st.sampled_from([0.0, 0.5, 2.0]))
def test_typical_is_the_deepest_path_of_probable_tokens(tree, seed, temperature):
    drafts, logits = random_block(tree, seed)
    sampling = make_sampling(temperature, typical=True, typical_epsilon=0.3, typical_delta=0.6, top_k=4)
    _, tokens, accepted = block(tree, drafts, logits, sampling, keys(ROWS))
    for row in range(ROWS):
        probs = np.stack([filtered(node, temperature or 1.0, top_k=4) for node in logits[row]])
        entropy = -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1)
        enough = np.minimum(single(0.3), single(0.6) * np.exp(-entropy))
        node = deepest(tree, lambda parent, child: probs[parent, tokens[row, child]] > enough[parent])  # noqa: B023
        assert int(accepted.node_B[row]) == node
        check_path(tree, accepted, row)
        token = int(accepted.token_B[row])
        assert probs[node, token] > 0 if temperature else token == np.argmax(logits[row, node])


def single(value):
    """Rounds as a scalar of `Sampling` is rounded."""
    return float(np.float32(value))


def test_the_rule_read_is_the_rule_used():
    """Greedy stops at the root and typical acceptance goes on."""
    tree = TREES["chain of 2"]
    drafts = np.tile(np.float32([[3, 2, 0, 0, 0, 0]]), (ROWS, 1, 1))
    logits = np.tile(np.float32([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0]]), (ROWS, 1, 1))
    counts = [int(block(tree, drafts, logits, sampling, keys(ROWS))[2].count_B.max())
              for sampling in (make_sampling(), make_sampling(typical=True))]
    assert counts == [0, 1]


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_p_equal_to_q_accepts_every_first_candidate(tree):
    drafts = np.random.default_rng(0).normal(size=(ROWS, tree.depth, 6)).astype(np.float32)
    logits = np.zeros((ROWS, tree.size, 6), np.float32)
    for child, parent in enumerate(tree.parents[1:], 1):
        logits[:, parent] = drafts[:, tree.depths[child] - 1]
    _, _, accepted = block(tree, drafts, logits, make_sampling(0.8, top_k=4), keys(ROWS))
    node = 0
    while tree.children[node]:
        node = tree.children[node][0]
    assert (accepted.node_B == node).all() and (accepted.count_B == tree.depths[node]).all()


def test_where_rounding_lets_q_cover_p_a_rejection_draws_from_p():
    p, q = jnp.asarray([[0.0, 0.25, 0.75], [0.0, 0.25, 0.75]]), jnp.asarray([[0.0, 0.25, 0.7500001], [0.5, 0.0, 0.5]])
    np.testing.assert_allclose(speculative._residual(p, q), [[0, 0.25, 0.75], [0, 0.5, 0.5]])


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
def test_one_hot_p_and_q_are_greedy(tree, temperature):
    rng = np.random.default_rng(1)
    drafts = rng.permuted(np.tile(np.arange(6.0), (ROWS, tree.depth, 1)), axis=-1).astype(np.float32)
    logits = rng.permuted(np.tile(np.arange(6.0), (ROWS, tree.size, 1)), axis=-1).astype(np.float32)
    for depth, parent in zip(tree.depths[1:], tree.parents[1:]):
        logits[: ROWS // 2, parent] = drafts[: ROWS // 2, depth - 1]
    cold = block(tree, drafts, logits, make_sampling(temperature), keys(ROWS))[2]
    for row in range(ROWS):  # q has one token, so only the first child of a node can be accepted
        node, drafted, said = 0, drafts[row].argmax(-1), logits[row].argmax(-1)
        while tree.children[node] and drafted[tree.depths[node]] == said[node]:
            node = tree.children[node][0]
        assert int(cold.node_B[row]) == node and int(cold.token_B[row]) == said[node]
    if tree.depth:
        assert cold.count_B[: ROWS // 2].min() >= 1 and cold.count_B.min() == 0


@functools.cache
def many(settings=(), shifted=False):
    """Returns p, q and what 20,000 rows make of three siblings; `shifted`: p and q share no token."""
    tree, rng = TREES["wide"], np.random.default_rng(4)
    drafts, logits = 0.7 * rng.normal(size=(2, 6))
    if shifted:
        drafts[2:] = logits[:3] = -np.inf
    settings = dict(settings)
    candidates, _, accepted = block(tree, np.tile(drafts, (MANY, 1, 1)).astype(np.float32),
                                    np.tile(logits, (MANY, tree.size, 1)).astype(np.float32),
                                    make_sampling(1.0, **settings), keys(MANY))
    return filtered(logits, **settings), filtered(drafts, **settings), candidates, accepted


def test_disjoint_supports_accept_nothing_and_draw_from_p():
    p, q, candidates, accepted = many(shifted=True)
    assert not (p * q).any() and np.count_nonzero(q) < max(TREES["wide"].widths)
    assert not accepted.count_B.any() and np.isfinite(candidates.probs_BxJxV).all()
    share = np.bincount(accepted.token_B, minlength=6) / MANY
    np.testing.assert_allclose(share, p, atol=5 * np.sqrt(0.25 / MANY))
    assert not share[:3].any()


def rate(p, q, width):
    """Returns how often one of `width` draws without replacement from q is accepted, by its definition."""
    if width == 0 or q.sum() == 0:
        return 0.0
    left = np.maximum(p - q, 0)
    left = left / left.sum() if left.sum() else p
    total = 0.0
    for x in np.flatnonzero(q):
        accepted = min(1.0, p[x] / q[x])
        without = np.where(np.arange(len(q)) == x, 0, q)
        without = without / without.sum() if without.sum() else without
        total += q[x] * (accepted + (1 - accepted) * rate(left, without, width - 1))
    return total


@pytest.mark.parametrize("settings", [(), (("top_k", 3),)], ids=["all", "top 3"])
def test_drafts_are_accepted_as_often_as_the_rule_allows(settings):
    """A rule that accepted nothing would be lossless too."""
    p, q, _, accepted = many(settings)
    for width in (1, 2, 3):
        want, got = rate(p, q, width), float(((accepted.node_B > 0) & (accepted.node_B <= width)).mean())
        assert 0.2 < want < 0.99 and abs(got - want) < 4 * np.sqrt(want * (1 - want) / MANY)


def test_candidates_are_drawn_without_replacement_in_order():
    _, q, candidates, _ = many()
    first, second, _ = np.asarray(candidates.tokens_BxJxR[:, 0]).T
    pair = np.bincount(6 * first + second, minlength=36).reshape(6, 6) / MANY
    want = np.array([[q[a] * q[b] / (1 - q[a]) if a != b else 0 for b in range(6)] for a in range(6)])
    np.testing.assert_allclose(pair, want, atol=5 * np.sqrt(0.25 / MANY))
    assert not np.diag(pair).any()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9}, {"temperature": 0.9, "typical": True}],
                         ids=["greedy", "lossless", "typical"])
def test_a_row_depends_on_itself_only(settings):
    tree, sampling = TREES["bushy"], make_sampling(**settings)
    drafts, logits = random_block(tree, 7)
    whole = block(tree, drafts, logits, sampling, keys(ROWS))
    some = np.array([11, 3, 4])
    part = block(tree, drafts[some], logits[some], sampling, keys(ROWS)[some])
    for got, want in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(got, np.asarray(want)[some])
    other = block(tree, drafts, logits, sampling, keys(ROWS, seed=1))[2]
    assert (jnp.array_equal(other.token_B, whole[2].token_B)) == (not settings)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "typical": True}],
                         ids=["greedy", "lossless", "typical"])
def test_ids_that_do_not_exist_are_neither_accepted_nor_drawn(settings):
    tree, real = TREES["bushy"], 2  # three candidates a head, of two ids that exist
    drafts = np.tile(np.where(np.arange(6) < real, 0, -np.inf), (ROWS, tree.depth, 1)).astype(np.float32)
    logits = np.tile(np.where(np.arange(6) < real, 0, -np.inf), (ROWS, tree.size, 1)).astype(np.float32)
    deepest_seen = 0
    for seed in range(20):
        _, tokens, accepted = block(tree, drafts, logits, make_sampling(**settings), keys(ROWS, seed))
        assert (accepted.token_B < real).all()
        assert (np.take_along_axis(np.asarray(tokens), np.asarray(accepted.path_BxK), axis=1) < real).all()
        deepest_seen = max(deepest_seen, int(accepted.count_B.max()))
    assert deepest_seen == tree.depth


def test_logits_of_64_bits_stay_so(x64):
    tree = Tree.chain(3)
    drafts = np.zeros((1, 2, 4)) + np.array([0, 1e-12, 0, 0])
    logits = np.zeros((1, 3, 4)) + np.array([0, 1e-12, 0, 0])
    candidates, _, accepted = block(tree, drafts, logits, make_sampling(), keys(1))
    assert accepted.count_B.tolist() == [2] and candidates.probs_BxJxV.dtype == np.float64
    assert block(tree, drafts, logits, make_sampling(1.0), keys(1))[0].probs_BxJxV.dtype == np.float64


def test_a_greedy_chain_sorts_nothing():
    tree = Tree.chain(3)
    arguments = (jnp.zeros((1, 2, 8)), jnp.zeros((1, 3, 8)), make_sampling(), keys(1))
    text = str(jax.make_jaxpr(lambda *given: block(tree, *given))(*arguments))
    assert "top_k" not in text
    assert "top_k" in str(jax.make_jaxpr(lambda *given: block(TREES["wide"], *given))(
        jnp.zeros((1, 1, 8)), jnp.zeros((1, 4, 8)), make_sampling(), keys(1)))


def test_rules_and_settings_are_no_reason_to_compile_again():
    drafts, logits = random_block(TREES["bushy"], 0)
    compiled = []
    for settings in ({}, {"temperature": 0.5}, {"temperature": 0.5, "typical": True, "top_p": 0.5}):
        block(TREES["bushy"], drafts, logits, make_sampling(**settings), keys(ROWS))
        compiled.append(block._cache_size())
    assert len(set(compiled)) == 1


@pytest.mark.parametrize("call, message", [
    (lambda: propose(jnp.zeros((1, 2, 8)), Tree.chain(2), make_sampling(), keys(1)),
     r"logits of 2 drafting heads do not fit a tree of depth 1: give the heads 2\.\.2"),
    (lambda: propose(jnp.zeros((1, 1, 2)), TREES["wide"], make_sampling(), keys(1)),
     "takes 3 candidates of a head and the vocabulary has 2 ids"),
    (lambda: accept(Tree.chain(2), jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 3, 8)),
                    Candidates(jnp.zeros((1, 1, 1), jnp.int32), jnp.zeros((1, 1, 8))), make_sampling(), keys(1)),
     "3 tokens and logits at 3 nodes do not fit a tree of 2 nodes")])
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
