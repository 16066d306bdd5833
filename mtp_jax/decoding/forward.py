"""The forwards of decoding: a prompt as a whole, a block of tokens behind a cache, and the next drafts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ModelConfig
from mtp_jax.decoding.cache import Cache, fill
from mtp_jax.decoding.sampling import highest
from mtp_jax.decoding.tree import Tree
from mtp_jax.decoding.trunk import Left, run_trunk
from mtp_jax.decoding.weights import Weights, builders, embed, unembed
from mtp_jax.model import get_head_kind
from mtp_jax.model.cached import BlockContext, KeysValues, block_context, prompt_context, take
from mtp_jax.parallel import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Line:
    """What a kind that drafts in turn keeps from block to block; J heads draft, R = J - 1 (0 where J is 0).

    Module m reads the token m places after each position. Behind the last settled token it read drafts, and what it
    made of its last m - 1 positions has to be made again once these are known.

    Attributes:
      tokens_BxJ: the drafts, one a head.
      settled_BxR: the last settled tokens that a forward has read; those of a shorter text stand at the end.
      h_BxRxD: the states of head 1 there.
    """

    tokens_BxJ: jax.Array
    settled_BxR: jax.Array
    h_BxRxD: jax.Array


@dataclasses.dataclass(frozen=True)
class Drafted:
    """The other half.

    Attributes:
      drafts: what the next block is made of: h_BxJxD, or a `Line` where the kind drafts in turn.
      h_BxJxD: states of heads 2..k after the final norm, J = k - 1.
      news: keys and values, one a head that caches: of the block, or, drafting in turn, of the block and the R
        positions before it (as many as there are, from the first).
    """

    drafts: Any
    h_BxJxD: jax.Array
    news: list[KeysValues]


@dataclasses.dataclass(frozen=True)
class Verified:
    """Half a forward of a block: all that does not depend on which drafts are accepted.

    Attributes:
      tokens_BxQ: the block.
      h_BxQxD: states of head 1 after the final norm.
      trunk: the block's keys and values in each layer of the trunk, loop by loop.
      halfway: what the head kind needs for the drafts.
      context: of the block.
      left: when positions left a looped trunk; None where all its loops are run.
    """

    tokens_BxQ: jax.Array
    h_BxQxD: jax.Array
    trunk: tuple[KeysValues, ...]
    halfway: Any
    context: BlockContext
    left: Left | None = None


def read_prompt(config: ModelConfig, weights: Weights, tokens_BxP: jax.Array, lengths_B: jax.Array, *, heads: int,
                capacity: int, dtype: jax.typing.DTypeLike, kernel: str, choose: Callable[[jax.Array], jax.Array]
                ) -> tuple[jax.Array, jax.Array, Drafted, Cache]:
    """Runs the model on prompts.

    Args:
      config: the model's shape.
      weights: its parameters.
      tokens_BxP: the prompts, padded behind their end.
      lengths_B: their lengths, at least 1.
      heads: k, how many heads are used.
      capacity: positions a row of the cache, at least P.
      dtype: of the cache.
      kernel: attention kernel by name.
      choose: logits [B, V] -> head 1's token [B], which drafting in turn starts from.

    Returns:
      logits_BxV of head 1 after the last token, the token chosen, what heads 2..k draft there, and the cache.
    """
    verified = read_rows(config, weights, tokens_BxP, lengths_B, dtype=dtype, kernel=kernel)
    return after_prompt(config, weights, verified, lengths_B, heads=heads, capacity=capacity, dtype=dtype,
                        choose=choose)


def after_prompt(config: ModelConfig, weights: Weights, verified: Verified, lengths_B: jax.Array, *, heads: int,
                 capacity: int, dtype: jax.typing.DTypeLike, choose: Callable[[jax.Array], jax.Array]
                 ) -> tuple[jax.Array, jax.Array, Drafted, Cache]:
    """Returns what `read_prompt` does, of prompts that `read_rows` has read."""
    last_B = lengths_B - 1
    logits_BxV = unembed(config, weights, take(verified.h_BxQxD, last_B), 1)[:, 0]
    token_B = choose(logits_BxV)
    drafted = draft(config, weights, verified, None, last_B, heads=heads, dtype=dtype, token_B=token_B)
    return logits_BxV, token_B, drafted, fill(verified.trunk, drafted.news, lengths_B, capacity)


def read_rows(config: ModelConfig, weights: Weights, tokens_BxP: jax.Array, lengths_B: jax.Array, *,
              dtype: jax.typing.DTypeLike, kernel: str) -> Verified:
    """Runs trunk and head 1 on whole rows, with nothing cached.

    Args:
      config: the model's shape.
      weights: its parameters.
      tokens_BxP: rows, padded behind their end.
      lengths_B: their lengths, at least 1.
      dtype: of the cache.
      kernel: attention kernel by name.
    """
    context = prompt_context(config, lengths_B, tokens_BxP.shape[1], kernel)
    nothing = (None,) * len(weights.heads)
    return _verify(config, weights, tokens_BxP, context, (None,) * (config.loops * len(weights.trunk)), nothing, dtype)


def verify(config: ModelConfig, weights: Weights, cache: Cache, tokens_BxQ: jax.Array, tree: Tree,
           running_B: jax.Array | None = None) -> Verified:
    """Runs trunk and head 1 on a block behind the cache.

    Args:
      config: the model's shape.
      weights: its parameters.
      cache: the settled tokens.
      tokens_BxQ: one token a node of the tree; the root is the token that follows the cached ones.
      tree: which nodes see which.
      running_B: rows that anybody needs; of a looped trunk no loop is run for the others alone. None: all.
    """
    positions_BxQ = cache.lengths_B[:, None] + jnp.asarray(np.array(tree.depths, np.int32))[None]
    visible_BxQxQ = jnp.broadcast_to(jnp.asarray(tree.ancestors)[None], (tokens_BxQ.shape[0], tree.size, tree.size))
    context = block_context(config, positions_BxQ, visible_BxQxQ, cache.lengths_B)
    return _verify(config, weights, tokens_BxQ, context, cache.trunk, _memories(weights, cache), cache_dtype(cache),
                   running_B)


def draft(config: ModelConfig, weights: Weights, verified: Verified, cache: Cache | None, node_B: jax.Array, *,
          heads: int, dtype: jax.typing.DTypeLike, token_B: jax.Array, before: Any = None) -> Drafted:
    """Runs heads 2..k where they are to draft, and gives all heads the keys and values of the block.

    Args:
      config: the model's shape.
      weights: its parameters; those of heads 2..k and no others where the kind drafts in turn.
      verified: from `verify` or of a prompt.
      cache: as for `verify`; None: nothing is cached yet.
      node_B: the position in the block after which they draft.
      heads: k.
      dtype: of the cache.
      token_B: the token after that position, which head 1 has chosen; read where the kind drafts in turn.
      before: the drafts that the block was made of; None with `cache`.
    """
    build, kind = builders(config), get_head_kind(config.head_kind)
    modules = [build.head(leaves) for leaves in weights.heads]
    if kind.in_turn:
        return _draft_in_turn(config, weights, modules, verified, cache, node_B, token_B, before, dtype)
    memories = (None,) * len(weights.heads) if cache is None else _memories(weights, cache)
    states, news = kind.further(modules, build.norm(weights.final_norm), verified.halfway, node_B, verified.context,
                                memories, dtype, heads)
    h_BxJxD = _side_by_side(states, verified)
    return Drafted(h_BxJxD, h_BxJxD, news)


def settled(heads: int) -> int:
    """Returns R, how many settled positions the modules of a kind that drafts in turn make again in a block."""
    return max(heads - 2, 0)


def _draft_in_turn(config, weights, modules, verified, cache, node_B, token_B, before, dtype) -> Drafted:
    """Runs modules over the block and the settled positions before it, whose tokens ahead are now all known."""
    J, R = len(modules), settled(len(modules) + 1)
    h_BxWxD, tokens_BxW, context, last_B = verified.h_BxQxD, verified.tokens_BxQ, verified.context, node_B
    memories: tuple[KeysValues | None, ...] = (None,) * J
    if cache is not None:
        B, Q = tokens_BxW.shape
        known_B = jnp.minimum(cache.lengths_B, R)
        start_B, last_B, memories = cache.lengths_B - known_B, known_B + node_B, _memories(weights, cache)
        if R:  # what there is of the settled positions, then the block, from the first place on
            place_BxW = jnp.minimum((R - known_B)[:, None] + jnp.arange(R + Q)[None], R + Q - 1)
            h_BxWxD, tokens_BxW = (_at(jnp.concatenate([old, new], axis=1), place_BxW) for old, new in (
                (before.h_BxRxD, h_BxWxD), (before.settled_BxR, tokens_BxW)))
        causal_BxWxW = jnp.broadcast_to(jnp.tril(jnp.ones((R + Q, R + Q), bool))[None], (B, R + Q, R + Q))
        context = block_context(config, start_B[:, None] + jnp.arange(R + Q)[None], causal_BxWxW, start_B)
    line_BxE = jnp.pad(tokens_BxW, ((0, 0), (0, J + 1)))
    line_BxE = jnp.where(jnp.arange(line_BxE.shape[1])[None] == last_B[:, None] + 1, token_B[:, None], line_BxE)
    line_BxE, states, news = get_head_kind(config.head_kind).in_line(
        modules, h_BxWxD, line_BxE, last_B, context, memories, dtype, lambda ids: _embed(config, weights, ids),
        lambda h_Bx1xD, head: highest(unembed(config, weights, h_Bx1xD, head))[:, 0])
    kept_BxR = jnp.maximum(last_B[:, None] + 1 - R + jnp.arange(R)[None], 0)
    drafts = Line(_at(line_BxE, last_B[:, None] + 2 + jnp.arange(J)[None]), _at(tokens_BxW, kept_BxR),
                  _at(h_BxWxD, kept_BxR))
    return Drafted(drafts, _side_by_side(states, verified), news)


def states_in_line(config: ModelConfig, weights: Weights, verified: Verified, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns the states of heads 2.. at every position of whole rows, h_BxPxJxD, of a kind that drafts in turn: what
    they make of the text itself instead of drafts."""
    modules = [builders(config).head(leaves) for leaves in weights.heads]
    line_BxE = jnp.pad(verified.tokens_BxQ, ((0, 0), (0, len(modules) + 1)))
    _, states, _ = get_head_kind(config.head_kind).in_line(
        modules, verified.h_BxQxD, line_BxE, None, verified.context, (None,) * len(modules), dtype,
        lambda ids: _embed(config, weights, ids), lambda h_Bx1xD, head: line_BxE[:, 0])
    return jnp.stack(states, axis=2)


def states_everywhere(config: ModelConfig, weights: Weights, verified: Verified, *, heads: int,
                      dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns the states of heads 2..`heads` at every position of whole rows, h_BxPxJxD; those of a kind that drafts in
    turn read the text itself instead of drafts."""
    kind, build = get_head_kind(config.head_kind), builders(config)
    if kind.in_turn:
        return states_in_line(config, weights, verified, dtype)[:, :, :heads - 1]
    states, _ = kind.further([build.head(leaves) for leaves in weights.heads], build.norm(weights.final_norm),
                             verified.halfway, None, verified.context, (None,) * len(weights.heads), dtype, heads)
    return jnp.stack(states, axis=2)


def draft_logits(config: ModelConfig, weights: Weights, h_BxJxD: jax.Array) -> jax.Array:
    """Returns the logits of heads 2..J + 1 from their states, [B, J, V]."""
    if len(weights.unembedding_DxV) == 1 or h_BxJxD.shape[1] == 0:
        return unembed(config, weights, h_BxJxD, 1)
    return jnp.concatenate([unembed(config, weights, h_BxJxD[:, j:j + 1], j + 2) for j in range(h_BxJxD.shape[1])],
                           axis=1)


def cache_dtype(cache: Cache) -> jnp.dtype:
    """Returns the dtype of keys and values."""
    return (*cache.trunk, *cache.heads)[0].keys_BxKxSxC.dtype


def _verify(config, weights, tokens_BxQ, context, trunk_memories, head_memories, dtype, running_B=None) -> Verified:
    """Runs embedding, trunk and head 1."""
    build, kind = builders(config), get_head_kind(config.head_kind)
    counts_BxQ = None if context.segments_BxQ is None else context.segments_BxQ > 0
    if running_B is not None:
        counts_BxQ = jnp.broadcast_to(running_B[:, None], tokens_BxQ.shape)
    z_BxQxD, news, left = run_trunk(config, weights, _embed(config, weights, tokens_BxQ), context, trunk_memories,
                                    dtype, counts_BxQ)
    h_BxQxD, halfway = kind.first([build.head(leaves) for leaves in weights.heads], build.norm(weights.final_norm),
                                  z_BxQxD, context, head_memories, dtype)
    return Verified(tokens_BxQ, h_BxQxD, news, halfway, context, left)


def _embed(config: ModelConfig, weights: Weights, tokens_BxQ: jax.Array) -> jax.Array:
    """Returns the token vectors, laid out as the trunk takes them."""
    return constrain(embed(config, weights, tokens_BxQ), "batch", "length", None)


def _at(x_BxQ: jax.Array, place_BxP: jax.Array) -> jax.Array:
    """Returns several positions of each row, [B, P, ...]."""
    return jnp.take_along_axis(x_BxQ, place_BxP.reshape(*place_BxP.shape, *(1,) * (x_BxQ.ndim - 2)), axis=1)


def _side_by_side(states: list[jax.Array], verified: Verified) -> jax.Array:
    """Returns h_BxJxD of J states h_Bx1xD."""
    B, _, D = verified.h_BxQxD.shape
    return jnp.concatenate(states, axis=1) if states else jnp.zeros((B, 0, D), verified.h_BxQxD.dtype)


def _memories(weights: Weights, cache: Cache) -> tuple[KeysValues | None, ...]:
    """Returns what each head has cached."""
    return cache.heads or (None,) * len(weights.heads)
