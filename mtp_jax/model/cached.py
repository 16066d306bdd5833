"""Attention of new positions to cached ones: what decoding adds to the layers.

A block of Q new positions sees the positions cached before it and, of itself, what a mask allows: the positions up to
its own in a chain, its ancestors in a tree. The cache is read and never written here: the keys and values of the block
come out beside the result, and who holds the cache keeps those that it wants.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from mtp_jax.config import ModelConfig
from mtp_jax.model.primitives import rotary_angles


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeysValues:
    """Keys and values of S positions of one layer.

    Attributes:
      keys_BxKxSxC: rotated keys.
      values_BxKxSxC: values.
    """

    keys_BxKxSxC: jax.Array
    values_BxKxSxC: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockContext:
    """What every layer needs to know of a block of Q positions, computed once a forward.

    Attributes:
      cos_BxQxC: from `rotary_tables`, fp32 (fp64 in fp64).
      sin_BxQxC: likewise.
      visible_BxQxQ: [b, i, j] True where position i of the block sees position j of the block.
      cached_B: how many cached positions count, int32; all of them are seen by the whole block.
      segments_BxQ: set where a prompt is read and nothing is cached: the seam `attention` then does the work and
        `visible_BxQxQ` is not formed for all pairs. 1 for tokens, 0 for padding behind them.
      positions_BxQ: position in the text, from 0; None for single positions (`at`), which nobody asks for theirs.
      kernel: name of the attention kernel for that.
    """

    cos_BxQxC: jax.Array
    sin_BxQxC: jax.Array
    visible_BxQxQ: jax.Array | None
    cached_B: jax.Array | None
    segments_BxQ: jax.Array | None = None
    positions_BxQ: jax.Array | None = None
    kernel: str = dataclasses.field(default="xla", metadata={"static": True})

    def at(self, index_B: jax.Array | None) -> BlockContext:
        """Returns the context of one position of each row (None: of all), as queries: its angles and what it sees."""
        if index_B is None:
            return self
        visible_Bx1xQ = None
        if self.visible_BxQxQ is not None:
            visible_Bx1xQ = take(self.visible_BxQxQ, index_B)
        elif self.segments_BxQ is not None:
            visible_Bx1xQ = (jnp.arange(self.segments_BxQ.shape[1])[None] <= index_B[:, None])[:, None]
        return BlockContext(take(self.cos_BxQxC, index_B), take(self.sin_BxQxC, index_B), visible_Bx1xQ, self.cached_B)


def block_context(config: ModelConfig, positions_BxQ: jax.Array, visible_BxQxQ: jax.Array,
                  cached_B: jax.Array) -> BlockContext:
    """Returns the context of a block behind cached positions.

    Args:
      config: the model's shape.
      positions_BxQ: position in the text, from 0.
      visible_BxQxQ: which positions of the block see which.
      cached_B: how many cached positions count.
    """
    return BlockContext(*rotary_angles(config, positions_BxQ), visible_BxQxQ, cached_B, positions_BxQ=positions_BxQ)


def prompt_context(config: ModelConfig, lengths_B: jax.Array, Q: int, kernel: str) -> BlockContext:
    """Returns the context of prompts that begin at position 0 and are padded to Q tokens."""
    positions_BxQ = jnp.broadcast_to(jnp.arange(Q, dtype=jnp.int32), (lengths_B.shape[0], Q))
    segments_BxQ = (positions_BxQ < lengths_B[:, None]).astype(jnp.int32)
    return BlockContext(*rotary_angles(config, positions_BxQ), None, None, segments_BxQ, positions_BxQ, kernel)


def take(x_BxQxD: jax.Array, index_B: jax.Array | None) -> jax.Array:
    """Returns position `index_B[b]` of each row, [B, 1, ...]; None: all of them as they are."""
    if index_B is None:
        return x_BxQxD
    index = index_B.reshape(-1, *[1] * (x_BxQxD.ndim - 1))
    return jnp.take_along_axis(x_BxQxD, index, axis=1)


def cached_attention(q_BxRxAxC: jax.Array, memory: KeysValues | None, new: KeysValues, context: BlockContext
                     ) -> jax.Array:
    """Softmax attention of R queries to the cached positions and to those of the block that they see.

    Args:
      q_BxRxAxC: queries, rotated.
      memory: what is cached, S positions of which the first `context.cached_B` count; None: nothing.
      new: keys and values of the block, Q positions.
      context: of the queries.

    Returns:
      o_BxRxAxC in the dtype of the queries; the softmax is in fp32 or wider.
    """
    B, R, A, C = q_BxRxAxC.shape
    K = new.keys_BxKxSxC.shape[1]
    wide = jnp.promote_types(jnp.float32, q_BxRxAxC.dtype)
    # All queries that share a KV head lie together: [B, K, G R, C].
    q = jnp.moveaxis(q_BxRxAxC.reshape(B, R, K, A // K, C), 1, 3).reshape(B, K, -1, C)
    assert context.visible_BxQxQ is not None  # only a prompt as a whole has none, and that goes to `attention`
    visible = jnp.tile(context.visible_BxQxQ, (1, A // K, 1))[:, None]
    scores = [jnp.where(visible, _scores(q, new, wide), -jnp.inf)]
    if memory is not None:
        assert context.cached_B is not None
        counts = jnp.arange(memory.keys_BxKxSxC.shape[2])[None] < context.cached_B[:, None]
        scores.append(jnp.where(counts[:, None, None], _scores(q, memory, wide), -jnp.inf))
    # A position sees itself, so that no row is empty. Two parts, one softmax: concatenating caches would copy them.
    largest = functools.reduce(jnp.maximum, [jnp.max(part, axis=-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - largest) for part in scores]
    total = functools.reduce(jnp.add, [jnp.sum(part, axis=-1, keepdims=True) for part in weights])
    o = _values(weights[0], new, q.dtype, wide)
    if memory is not None:
        o = o + _values(weights[1], memory, q.dtype, wide)
    o = (o / total).astype(q.dtype)
    return jnp.moveaxis(o.reshape(B, K, A // K, R, C), 3, 1).reshape(B, R, A, C)


def _scores(q_BxKxRxC: jax.Array, seen: KeysValues, wide: jnp.dtype) -> jax.Array:
    """Returns q . k / sqrt(C), [B, K, R, S]."""
    return jnp.einsum("bkrc,bksc->bkrs", q_BxKxRxC, seen.keys_BxKxSxC.astype(q_BxKxRxC.dtype),
                      preferred_element_type=wide) / math.sqrt(q_BxKxRxC.shape[-1])


def _values(weights_BxKxRxS: jax.Array, seen: KeysValues, dtype: jnp.dtype, wide: jnp.dtype) -> jax.Array:
    """Returns the weighted sum of values, [B, K, R, C]."""
    return jnp.einsum("bkrs,bksc->bkrc", weights_BxKxRxS.astype(dtype), seen.values_BxKxSxC.astype(dtype),
                      preferred_element_type=wide)
