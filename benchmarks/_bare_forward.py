"""The forwards of decoding without decoding: what the generation loop is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ModelConfig
from mtp_jax.decoding import DecodingModel
from mtp_jax.decoding.cache import Cache, cached_heads, write
from mtp_jax.decoding.forward import Line, cache_dtype, draft, draft_logits, settled, verify
from mtp_jax.decoding.tree import Tree
from mtp_jax.decoding.weights import Weights, first_heads, unembed
from mtp_jax.model import get_head_kind
from mtp_jax.model.cached import KeysValues
from mtp_jax.parallel import use_layout


class BareForward:
    """The same forward again and again on the device: no tokens are chosen, compared or emitted, and no row ends.

    It is made of the loop's own pieces: logits of heads 2..k from their states, trunk and head 1 on all nodes with
    their logits, keys and values for all heads, heads 2..k at one node, keys and values written into the cache, always
    at the same place. Each forward's tokens depend on the logits of the one before it, and all logits are kept, so that
    the compiler can neither move work out of the loop nor leave it out.

    Args:
      model: with its heads.
      tree: of the block.
      batch: rows.
      capacity: positions a row of the cache.
      filled: positions of it that count.
    """

    def __init__(self, model: DecodingModel, tree: Tree, *, batch: int, capacity: int, filled: int):
        self.weights = first_heads(model.config, model.weights, tree.heads)
        self.tree, config, dtype = tree, model.config, jnp.dtype(model.cache_dtype)
        room = jnp.zeros((batch, config.kv_heads, capacity, config.attention_head_dim), dtype)

        def memory() -> KeysValues:
            return KeysValues(room.copy(), room.copy())

        heads = len(self.weights.heads) if cached_heads(config, tree.heads) else 0
        cache = Cache(tuple(memory() for _ in self.weights.trunk), tuple(memory() for _ in range(heads)),
                      jnp.full(batch, filled, jnp.int32))
        wide = jnp.promote_types(jnp.float32, config.dtype)
        vocab = config.padded_vocab_size
        self.state = (cache, nothing_drafted(config, batch, tree),
                      jnp.zeros((batch, tree.depth, vocab), wide), jnp.zeros((batch, tree.size, vocab), wide))
        self.tokens_BxQ = np.zeros((batch, tree.size), np.int32)
        self.zeros_B = np.zeros(batch, np.int32)

        def repeat(weights: Weights, state, tokens_BxQ: jax.Array, zeros_B: jax.Array, times: jax.Array):
            with use_layout(model.layout):
                return jax.lax.fori_loop(0, times, lambda _, state: one_forward(
                    config, weights, state, tokens_BxQ, zeros_B, tree), state)

        self.program: Callable = jax.jit(repeat, donate_argnums=1).lower(
            self.weights, self.state, self.tokens_BxQ, self.zeros_B, np.int32(1)).compile()

    def seconds(self, times: int) -> float:
        """Returns the seconds of one of `times` forwards."""
        start = time.perf_counter()
        self.state = jax.block_until_ready(self.program(self.weights, self.state, self.tokens_BxQ, self.zeros_B,
                                                        np.int32(times)))
        return (time.perf_counter() - start) / times


def nothing_drafted(config: ModelConfig, batch: int, tree: Tree) -> Any:
    """Returns zeros in the place of `forward.Drafted.drafts`."""
    def states(positions: int) -> jax.Array:
        return jnp.zeros((batch, positions, config.d_model), config.dtype)

    if not get_head_kind(config.head_kind).in_turn:
        return states(tree.depth)
    again = settled(tree.heads)
    return Line(jnp.zeros((batch, tree.depth), jnp.int32), jnp.zeros((batch, again), jnp.int32), states(again))


def one_forward(config: ModelConfig, weights: Weights, state, tokens_BxQ: jax.Array, zeros_B: jax.Array, tree: Tree):
    """Runs one forward; `zeros_B`, unknown to the compiler, is the node at which to draft and the advance."""
    cache, drafts, drafts_BxJxV, logits_BxQxV = state
    in_turn = get_head_kind(config.head_kind).in_turn  # then the logits of drafts are computed, and used up, in `draft`
    # Never true, which the compiler cannot know.
    changed_B = (jnp.abs(logits_BxQxV[:, 0, 0]) == 1e30).astype(jnp.int32)
    drafts_BxJxV = drafts_BxJxV if in_turn else draft_logits(config, weights, drafts)
    verified = verify(config, weights, cache, tokens_BxQ + changed_B[:, None], tree)
    logits_BxQxV = unembed(config, weights, verified.h_BxQxD, 1)
    drafted = draft(config, weights, verified, cache, zeros_B, heads=tree.heads, dtype=cache_dtype(cache),
                    token_B=zeros_B, before=drafts)
    # A tree's path is gathered in the loop too: that is the price of a tree, not of a forward.
    path_BxK = None if tree.is_chain else jnp.tile(zeros_B[:, None], (1, tree.heads))
    cache = write(cache, verified.trunk, drafted.news, path_BxK, zeros_B, (logits_BxQxV, drafted.h_BxJxD),
                  again=settled(tree.heads) if in_turn else 0)
    return cache, drafted.drafts, drafts_BxJxV, logits_BxQxV
