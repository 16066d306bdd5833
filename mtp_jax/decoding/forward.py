"""The forwards of decoding: a prompt as a whole, a block of tokens behind a cache, and the next drafts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ModelConfig
from mtp_jax.decoding.cache import Cache, fill
from mtp_jax.decoding.tree import Tree
from mtp_jax.decoding.weights import Weights, builders, embed, unembed
from mtp_jax.model import get_head_kind
from mtp_jax.model.cached import BlockContext, KeysValues, block_context, prompt_context, take
from mtp_jax.parallel import constrain


@dataclasses.dataclass(frozen=True)
class Verified:
    """Half a forward of a block: all that does not depend on which drafts are accepted.

    Attributes:
      h_BxQxD: states of head 1 after the final norm.
      trunk: the block's keys and values in each layer of the trunk.
      halfway: what the head kind needs for the drafts.
      context: of the block.
    """

    h_BxQxD: jax.Array
    trunk: tuple[KeysValues, ...]
    halfway: Any
    context: BlockContext


def read_prompt(config: ModelConfig, weights: Weights, tokens_BxP: jax.Array, lengths_B: jax.Array, *, heads: int,
                capacity: int, dtype: jax.typing.DTypeLike, kernel: str) -> tuple[jax.Array, jax.Array, Cache]:
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

    Returns:
      logits_BxV of head 1 after the last token, the states of heads 2..k there, h_BxJxD with J = k - 1, and the cache.
    """
    verified = read_rows(config, weights, tokens_BxP, lengths_B, dtype=dtype, kernel=kernel)
    last_B = lengths_B - 1
    logits_BxV = unembed(config, weights, take(verified.h_BxQxD, last_B), 1)[:, 0]
    h_BxJxD, news = draft(config, weights, verified, None, last_B, heads=heads, dtype=dtype)
    return logits_BxV, h_BxJxD, fill(verified.trunk, news, lengths_B, capacity)


def read_rows(config: ModelConfig, weights: Weights, tokens_BxP: jax.Array, lengths_B: jax.Array, *,
              dtype: jax.typing.DTypeLike, kernel: str) -> Verified:
    """Runs trunk and head 1 on whole rows, with nothing cached; the arguments are those of `read_prompt`."""
    context = prompt_context(config, lengths_B, tokens_BxP.shape[1], kernel)
    nothing = (None,) * len(weights.heads)
    return _verify(config, weights, tokens_BxP, context, (None,) * len(weights.trunk), nothing, dtype)


def verify(config: ModelConfig, weights: Weights, cache: Cache, tokens_BxQ: jax.Array, tree: Tree) -> Verified:
    """Runs trunk and head 1 on a block behind the cache.

    Args:
      config: the model's shape.
      weights: its parameters.
      cache: the settled tokens.
      tokens_BxQ: one token a node of the tree; the root is the token that follows the cached ones.
      tree: which nodes see which.
    """
    positions_BxQ = cache.lengths_B[:, None] + jnp.asarray(np.array(tree.depths, np.int32))[None]
    visible_BxQxQ = jnp.broadcast_to(jnp.asarray(tree.ancestors)[None], (tokens_BxQ.shape[0], tree.size, tree.size))
    context = block_context(config, positions_BxQ, visible_BxQxQ, cache.lengths_B)
    return _verify(config, weights, tokens_BxQ, context, cache.trunk, _memories(weights, cache), cache_dtype(cache))


def draft(config: ModelConfig, weights: Weights, verified: Verified, cache: Cache | None, node_B: jax.Array, *,
          heads: int, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, list[KeysValues]]:
    """Runs heads 2..k where they are to draft, and gives all heads the keys and values of the block.

    Args:
      config: the model's shape.
      weights: its parameters.
      verified: from `verify` or of a prompt.
      cache: as for `verify`; None: nothing is cached yet.
      node_B: the position in the block after which they draft.
      heads: k.
      dtype: of the cache.

    Returns:
      Their states after the final norm, h_BxJxD with J = k - 1, and the block's keys and values, one a head.
    """
    build, kind = builders(config), get_head_kind(config.head_kind)
    memories = (None,) * len(weights.heads) if cache is None else _memories(weights, cache)
    states, news = kind.further([build.head(leaves) for leaves in weights.heads], build.norm(weights.final_norm),
                                verified.halfway, node_B, verified.context, memories, dtype, heads)
    if not states:
        B, _, D = verified.h_BxQxD.shape
        return jnp.zeros((B, 0, D), verified.h_BxQxD.dtype), news
    return jnp.concatenate(states, axis=1), news


def draft_logits(config: ModelConfig, weights: Weights, h_BxJxD: jax.Array) -> jax.Array:
    """Returns the logits of heads 2..J + 1 from their states, [B, J, V]."""
    if len(weights.unembedding_DxV) == 1 or h_BxJxD.shape[1] == 0:
        return unembed(config, weights, h_BxJxD, 1)
    return jnp.concatenate([unembed(config, weights, h_BxJxD[:, j:j + 1], j + 2) for j in range(h_BxJxD.shape[1])],
                           axis=1)


def cache_dtype(cache: Cache) -> jnp.dtype:
    """Returns the dtype of keys and values."""
    return (*cache.trunk, *cache.heads)[0].keys_BxKxSxC.dtype


def _verify(config, weights, tokens_BxQ, context, trunk_memories, head_memories, dtype) -> Verified:
    """Runs embedding, trunk and head 1."""
    build, kind = builders(config), get_head_kind(config.head_kind)
    x_BxQxD = constrain(embed(config, weights, tokens_BxQ), "batch", "length", None)
    news = []
    for leaves, memory in zip(weights.trunk, trunk_memories):
        layer = build.layer(leaves)
        news.append(layer.keys_values(x_BxQxD, context, dtype))
        x_BxQxD = layer.extend(x_BxQxD, context, memory, news[-1])
    h_BxQxD, halfway = kind.first([build.head(leaves) for leaves in weights.heads], build.norm(weights.final_norm),
                                  x_BxQxD, context, head_memories, dtype)
    return Verified(h_BxQxD, tuple(news), halfway, context)


def _memories(weights: Weights, cache: Cache) -> tuple[KeysValues | None, ...]:
    """Returns what each head has cached."""
    return cache.heads or (None,) * len(weights.heads)
