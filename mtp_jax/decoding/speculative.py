"""Self-speculative decoding's two decisions: which tokens the heads propose, and which of them head 1 accepts.

Arrays only, so that the whole loop runs on the device: shapes follow from the tree, and what the rule is, is read from
the `Sampling` at run time. J is the depth of the tree, Q its size, R its largest width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.decoding.sampling import GREEDY, LOSSLESS, Sampling, draw, highest, probabilities
from mtp_jax.decoding.tree import Tree

_PROPOSE, _ACCEPT, _NEXT = range(3)  # each purpose has its own random numbers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """What the heads 2, 3, .. propose.

    Attributes:
      tokens_BxJxR: candidates of head j + 2, the best (or first drawn) first.
      probs_BxJxV: what they were drawn from; zeros where nothing was drawn.
    """

    tokens_BxJxR: jax.Array
    probs_BxJxV: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accepted:
    """What head 1 made of a block.

    Attributes:
      node_B: the deepest node that is accepted; 0, the root, where no draft is.
      count_B: how many drafts are accepted, which is that node's depth.
      path_BxK: the node at each depth from the root to node_B, K = J + 1; beyond count_B, node_B again.
      token_B: the token after node_B, by head 1.
    """

    node_B: jax.Array
    count_B: jax.Array
    path_BxK: jax.Array
    token_B: jax.Array


def propose(logits_BxJxV: jax.Array, tree: Tree, sampling: Sampling, key_B: jax.Array) -> Candidates:
    """Chooses the candidates of each head.

    Greedy and typical acceptance take the highest logits. Lossless acceptance draws without replacement from the
    distribution after the filters; where that has fewer tokens than the tree has ranks, the rest have probability 0 and
    are never accepted.

    Args:
      logits_BxJxV: of the heads 2..J + 1, all at the last accepted position.
      tree: which candidates are needed.
      sampling: rule, temperature and filters.
      key_B: one random key a row, not used before but for `accept` of the same block.

    Raises:
      ValueError: the logits are of another number of heads, or the vocabulary is smaller than the tree is wide.
    """
    batch, heads, vocab = logits_BxJxV.shape
    width = max(tree.widths, default=1)
    if heads != tree.depth:
        raise ValueError(f"logits of {heads} drafting heads do not fit a tree of depth {tree.depth}: give the heads "
                         f"2..{tree.heads}.")
    if width > vocab:
        raise ValueError(f"the tree takes {width} candidates of a head and the vocabulary has {vocab} ids: use a "
                         "narrower tree.")
    dtype = jnp.promote_types(logits_BxJxV.dtype, jnp.float32)
    if not tree.depth:
        return Candidates(jnp.zeros((batch, 0, width), jnp.int32), jnp.zeros((batch, 0, vocab), dtype))

    def likeliest() -> Candidates:
        return Candidates(_top(logits_BxJxV, width), jnp.zeros(logits_BxJxV.shape, dtype))

    def drawn() -> Candidates:
        probs_BxJxV = probabilities(logits_BxJxV, sampling)
        key = _keys(key_B, _PROPOSE)
        noise_BxJxV = jax.vmap(lambda key: jax.random.gumbel(key, (heads, vocab), dtype))(key)
        # The highest of log q + Gumbel noise, in falling order, are draws without replacement.
        return Candidates(_top(jnp.log(probs_BxJxV) + noise_BxJxV, width), probs_BxJxV)

    return jax.lax.cond(sampling.rule == LOSSLESS, drawn, likeliest)


def as_they_are(tokens_BxJ: jax.Array, vocab: int, dtype: jax.typing.DTypeLike) -> Candidates:
    """Returns drafts that are chosen already as candidates: each had probability 1, whatever the rule.

    Args:
      tokens_BxJ: one draft a head.
      vocab: ids that logits have.
      dtype: of probabilities, fp32 or wider.
    """
    return Candidates(tokens_BxJ[:, :, None], jax.nn.one_hot(tokens_BxJ, vocab, dtype=dtype))


def node_tokens(pending_B: jax.Array, candidates: Candidates, tree: Tree) -> jax.Array:
    """Returns the token of each node, [B, Q]: the root's, which is settled, and the candidates'."""
    tokens_BxJxR = candidates.tokens_BxJxR
    if tree.is_chain:
        drafts = tokens_BxJxR[:, :, 0]
    else:
        width = tokens_BxJxR.shape[2]
        place = np.asarray([(depth - 1) * width + rank for depth, rank in zip(tree.depths[1:], tree.ranks[1:])])
        drafts = tokens_BxJxR.reshape(tokens_BxJxR.shape[0], -1)[:, place]
    return jnp.concatenate([pending_B[:, None].astype(jnp.int32), drafts], axis=1)


def accept(tree: Tree, tokens_BxQ: jax.Array, logits_BxQxV: jax.Array, candidates: Candidates, sampling: Sampling,
           key_B: jax.Array) -> Accepted:
    """Decides how far head 1 agrees with the block, and what it says next.

    Greedy: the deepest path on which every token is the most likely one after its parent; then the most likely token.
    Lossless: siblings are tried in turn and the token after each node is distributed exactly as head 1 has it.
    Typical: the deepest path on which every token is probable enough, of equal ones that with the lower ranks; then a
    draw. A tree of depth 0 chooses one token.

    Args:
      tree: the block's tree.
      tokens_BxQ: its tokens, from `node_tokens`.
      logits_BxQxV: head 1's logits at every node.
      candidates: from `propose`.
      sampling: rule, temperature and filters, the same as `propose` had.
      key_B: one random key a row; may be those that `propose` had for this block.

    Raises:
      ValueError: the logits are of another number of nodes.
    """
    if logits_BxQxV.shape[1] != tree.size or tokens_BxQ.shape[1] != tree.size:
        raise ValueError(f"{tokens_BxQ.shape[1]} tokens and logits at {logits_BxQxV.shape[1]} nodes do not fit a tree "
                         f"of {tree.size} nodes: give one of each a node.")

    def drawn() -> tuple[jax.Array, jax.Array]:
        node_B, probs_BxV = jax.lax.cond(
            sampling.rule == LOSSLESS,
            lambda: _lossless(tree, logits_BxQxV, candidates, sampling, _keys(key_B, _ACCEPT)),
            lambda: _typical(tree, tokens_BxQ, logits_BxQxV, sampling))
        token_B = draw(probs_BxV, _keys(key_B, _NEXT))
        return node_B, jnp.where(sampling.temperature > 0, token_B, highest(probs_BxV))

    node_B, token_B = jax.lax.cond(sampling.rule == GREEDY, lambda: _greedy(tree, tokens_BxQ, logits_BxQxV), drawn)
    if tree.is_chain:
        path_BxK = jnp.minimum(jnp.arange(tree.size, dtype=jnp.int32)[None], node_B[:, None])
        return Accepted(node_B, node_B, path_BxK, token_B)
    return Accepted(node_B, jnp.asarray(tree.depths, jnp.int32)[node_B], jnp.asarray(tree.paths)[node_B], token_B)


def _keys(key_B: jax.Array, purpose: int) -> jax.Array:
    """Returns a key a row for one purpose."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(key_B)


def _top(x: jax.Array, width: int) -> jax.Array:
    """Returns the ids of the `width` highest of x [..., V], highest first."""
    if width == 1:  # a chain needs no sorting
        return highest(x)[..., None]
    return jax.lax.top_k(x, width)[1].astype(jnp.int32)


def _at(values_BxQ: jax.Array, node_B: jax.Array) -> jax.Array:
    """Returns each row's value (or vector) at its own node."""
    index = node_B.reshape(-1, *(1,) * (values_BxQ.ndim - 1))
    return jnp.take_along_axis(values_BxQ, index, axis=1)[:, 0]


def _deepest(tree: Tree, good_BxQ: jax.Array) -> jax.Array:
    """Returns the deepest node with nothing but good nodes on its path; of equal ones that with the lower ranks."""
    if tree.is_chain:  # the first bad draft ends it
        node_Q = jnp.arange(tree.size, dtype=jnp.int32)[None]
        bad_BxQ = ~good_BxQ & (node_Q > 0)
        return jnp.where(bad_BxQ, node_Q - 1, tree.depth).min(axis=1)
    whole_BxQ = (good_BxQ[:, None, :] | ~tree.ancestors[None]).all(axis=2)
    order = sorted(range(tree.size), key=lambda node: (-tree.depths[node], _ranks(tree, node)), reverse=True)
    place = np.argsort(np.asarray(order)).astype(np.int32)
    return jnp.asarray(order, jnp.int32)[jnp.where(whole_BxQ, place[None], 0).max(axis=1)]


def _ranks(tree: Tree, node: int) -> list[int]:
    """Returns the ranks on the path to a node."""
    return [tree.ranks[other] for other in tree.paths[node, 1:tree.depths[node] + 1]]


def _greedy(tree: Tree, tokens_BxQ: jax.Array, logits_BxQxV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the deepest node whose path head 1 would have written, and head 1's next token."""
    best_BxQ = highest(logits_BxQxV)
    if tree.depth == 0:
        return jnp.zeros_like(best_BxQ[:, 0]), best_BxQ[:, 0]
    node_B = _deepest(tree, _rooted(tokens_BxQ[:, 1:] == _parents_of(best_BxQ, tree)))
    return node_B, _at(best_BxQ, node_B)


def _parents_of(values_BxQ: jax.Array, tree: Tree) -> jax.Array:
    """Returns, for each node but the root, the value at its parent."""
    return values_BxQ[:, :-1] if tree.is_chain else values_BxQ[:, np.asarray(tree.parents[1:])]


def _rooted(good_drafts: jax.Array) -> jax.Array:
    """Puts the root, which is always good, before the drafts."""
    return jnp.concatenate([jnp.ones_like(good_drafts[:, :1]), good_drafts], axis=1)


def _typical(tree: Tree, tokens_BxQ: jax.Array, logits_BxQxV: jax.Array,
             sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """Returns the deepest node whose path head 1 finds probable enough, and head 1's probabilities there."""
    probs_BxQxV = probabilities(logits_BxQxV, sampling)
    surprise_BxQxV = jnp.where(probs_BxQxV > 0, -probs_BxQxV * jnp.log(probs_BxQxV), 0)
    enough_BxQ = jnp.minimum(sampling.typical_epsilon, sampling.typical_delta * jnp.exp(-surprise_BxQxV.sum(-1)))
    node_B = jnp.zeros_like(tokens_BxQ[:, 0])
    if tree.depth:
        parents = np.asarray(tree.parents[1:])
        of_draft_BxQ = jnp.take_along_axis(probs_BxQxV[:, parents], tokens_BxQ[:, 1:, None], axis=2)[:, :, 0]
        node_B = _deepest(tree, _rooted(of_draft_BxQ > enough_BxQ[:, parents]))
    return node_B, _at(probs_BxQxV, node_B)


def _lossless(tree: Tree, logits_BxQxV: jax.Array, candidates: Candidates, sampling: Sampling,
              key_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a node, and what to draw the token after it from, such that all of them are distributed as by head 1.

    At each depth the children of the node reached are tried in turn. With p what head 1 has and q what the candidates
    were drawn from, child x is accepted with probability min(1, p(x) / q(x)). Where it is not, p becomes max(p - q, 0)
    and q loses x, both normalised, and the next child is tried by the new p and q. What is left of p after the last
    child gives the next token.
    """
    batch, _, vocab = logits_BxQxV.shape
    width = candidates.tokens_BxJxR.shape[2]
    chance_BxJxR = jax.vmap(lambda key: jax.random.uniform(key, (tree.depth, width), candidates.probs_BxJxV.dtype))(
        key_B)
    child_QxR = np.full((tree.size, width), -1, np.int32)
    for node, children in enumerate(tree.children):
        child_QxR[node, :len(children)] = children

    def one_depth(carry: tuple[jax.Array, jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array, jax.Array]):
        node_B, going_B, p_BxV = carry
        token_BxR, chance_BxR, q_BxV = xs
        p_BxV = jnp.where(going_B[:, None], probabilities(_at(logits_BxQxV, node_B), sampling), p_BxV)
        child_BxR = jnp.asarray(child_QxR)[node_B]

        def one_child(rank: int, state: tuple[jax.Array, jax.Array, jax.Array]):
            p_BxV, q_BxV, taken_B = state
            child_B, token_B = child_BxR[:, rank], token_BxR[:, rank]
            tried_B = going_B & (taken_B < 0) & (child_B >= 0)
            p_B, q_B = _at(p_BxV, token_B), _at(q_BxV, token_B)
            # Where q = 0 there was nothing left to draw: not a candidate. u < 1, so p >= q > 0 is always accepted.
            accepted_B = tried_B & (q_B > 0) & (chance_BxR[:, rank] * q_B < p_B)
            rest_B = (tried_B & ~accepted_B)[:, None]
            is_token_BxV = jnp.arange(vocab, dtype=jnp.int32)[None] == token_B[:, None]
            without_BxV = _normalised(jnp.where(is_token_BxV, 0, q_BxV), jnp.zeros_like(q_BxV))
            return (jnp.where(rest_B, _residual(p_BxV, q_BxV), p_BxV), jnp.where(rest_B, without_BxV, q_BxV),
                    jnp.where(accepted_B, child_B, taken_B))

        p_BxV, _, taken_B = jax.lax.fori_loop(0, width, one_child, (p_BxV, q_BxV, jnp.full_like(node_B, -1)))
        return (jnp.where(taken_B >= 0, taken_B, node_B), taken_B >= 0, p_BxV), None

    # A last round, in which no node has children, gives p where all was accepted.
    by_depth = jax.tree.map(lambda x_BxJ: jnp.pad(jnp.swapaxes(x_BxJ, 0, 1), ((0, 1), (0, 0), (0, 0))),
                            (candidates.tokens_BxJxR, chance_BxJxR, candidates.probs_BxJxV))
    p_BxV = jnp.zeros((batch, vocab), jnp.promote_types(logits_BxQxV.dtype, jnp.float32))
    start = (jnp.zeros(batch, jnp.int32), jnp.ones(batch, bool), p_BxV)
    (node_B, _, p_BxV), _ = jax.lax.scan(one_depth, start, by_depth)
    return node_B, p_BxV


def _residual(p_BxV: jax.Array, q_BxV: jax.Array) -> jax.Array:
    """Returns what is left of p after a draw from q was rejected; p, where q covers it and rejects nothing."""
    return _normalised(jnp.maximum(p_BxV - q_BxV, 0), p_BxV)


def _normalised(weight_BxV: jax.Array, otherwise_BxV: jax.Array) -> jax.Array:
    """Returns weights that add up to 1, or, where all are 0, something else."""
    total_Bx1 = weight_BxV.sum(-1, keepdims=True)
    return jnp.where(total_Bx1 > 0, weight_BxV / jnp.where(total_Bx1 > 0, total_Bx1, 1), otherwise_BxV)
