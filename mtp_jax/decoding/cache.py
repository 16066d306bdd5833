"""The cache: keys and values of every layer and head for the tokens that are settled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtp_jax.config import ModelConfig
from mtp_jax.model import get_head_kind, num_trunk_layers
from mtp_jax.model.cached import KeysValues
from mtp_jax.parallel import constrain

AXES = ("batch", "kv_heads", None, "head_dim")  # of keys and values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values, as an explicit pytree: in and out of every step.

    Attributes:
      trunk: one a loop and layer of the trunk, loop by loop, each [B, K, capacity, C].
      heads: one a head that is loaded and has layers of its own, from the first; none for a kind without layers.
      lengths_B: how many positions of each row count; what lies behind them is not read.
    """

    trunk: tuple[KeysValues, ...]
    heads: tuple[KeysValues, ...]
    lengths_B: jax.Array

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return (*self.trunk, *self.heads)[0].keys_BxKxSxC.shape[2]


def cache_bytes(config: ModelConfig, *, batch: int, capacity: int, heads: int,
                dtype: jax.typing.DTypeLike | None = None) -> int:
    """Returns the size of a cache.

    2 (loops x layers of the trunk + heads loaded) B K capacity C bytes(dtype) + 4 B, over all devices. A head counts
    if its kind gives it a layer (of kind "sequential" head 1 has none); of kind "anticausal" all heads are loaded
    whatever `heads` is.

    Args:
      config: the model's shape.
      batch: B, rows.
      capacity: positions a row.
      heads: k, how many heads are used.
      dtype: of keys and values; None: config.dtype.
    """
    layers = config.loops * num_trunk_layers(config) + cached_heads(config, heads)
    size = jnp.dtype(dtype or config.dtype).itemsize
    return 2 * layers * batch * config.kv_heads * capacity * config.attention_head_dim * size + 4 * batch


def cached_heads(config: ModelConfig, heads: int) -> int:
    """Returns how many heads have something to remember when the first `heads` are used."""
    kind = get_head_kind(config.head_kind)
    return kind.own(kind.loaded(config.num_heads, heads)) if kind.caches else 0


def fill(trunk: Sequence[KeysValues], heads: Sequence[KeysValues], lengths_B: jax.Array, capacity: int) -> Cache:
    """Returns a cache that holds the keys and values of prompts [B, K, P, C] and has room up to `capacity`."""
    def room(x_BxKxPxC: jax.Array) -> jax.Array:
        pad = ((0, 0), (0, 0), (0, capacity - x_BxKxPxC.shape[2]), (0, 0))
        return constrain(jnp.pad(x_BxKxPxC, pad), *AXES)

    return Cache(tuple(jax.tree.map(room, new) for new in trunk), tuple(jax.tree.map(room, new) for new in heads),
                 lengths_B)


def write(cache: Cache, trunk: Sequence[KeysValues], heads: Sequence[KeysValues], path_BxK: jax.Array | None,
          advance_B: jax.Array, after: Sequence[jax.Array], *, again: int = 0) -> Cache:
    """Puts part of a block behind what is cached.

    Args:
      cache: must have room for K more positions in every row that goes on. A row that is done may lack it: its own
        last positions are then written over, which nobody reads any more.
      trunk: the block's keys and values, one a layer, [B, K, Q, C].
      heads: likewise, one a head.
      path_BxK: which positions of the block to keep, in order; None: all of them.
      advance_B: how many of these count from now on; the rest lies behind the length and is written over later.
      after: what the forward of the block ends in, each [B, positions, features]. Nothing is written before it is
        known: the old cache has been read then, so that the new one can take its place.
      again: how many settled positions what `heads` holds begins before the block, or from the first position where
        there are not as many.

    Returns:
      The new cache; in place where the old one is not needed any more.
    """
    start_B = _once_known(cache.lengths_B, after)

    def put(start_B: jax.Array, old_BxKxSxC: jax.Array, new_BxKxQxC: jax.Array) -> jax.Array:
        if path_BxK is not None:
            new_BxKxQxC = jnp.take_along_axis(new_BxKxQxC, path_BxK[:, None, :, None], axis=2)
        return constrain(_put_rows(old_BxKxSxC, new_BxKxQxC, start_B), *AXES)

    in_trunk = functools.partial(put, start_B)
    in_heads = functools.partial(put, jnp.maximum(start_B - again, 0)) if again else in_trunk
    return Cache(jax.tree.map(in_trunk, cache.trunk, tuple(trunk)), jax.tree.map(in_heads, cache.heads, tuple(heads)),
                 cache.lengths_B + advance_B)


def _once_known(start_B: jax.Array, after: Sequence[jax.Array]) -> jax.Array:
    """Returns `start_B`, by way of `after`.

    Else the compiler sees no order between a layer's attention, which reads the old cache, and the write into it, and
    copies the whole cache twice in every step. No barrier tells it: those are gone before copies are placed. That no
    result is NaN it cannot know, and where one is, the text is lost anyway.
    """
    for x_BxQxD in after:
        if x_BxQxD.shape[1]:
            start_B = start_B + jnp.any(jnp.isnan(x_BxQxD[:, :, 0]), axis=1).astype(start_B.dtype)
    return start_B


def _put_rows(old: jax.Array, new: jax.Array, start_B: jax.Array) -> jax.Array:
    """Returns `old` with new[b] written into row b at position start_B[b] of axis 2."""
    zero = jnp.zeros((), start_B.dtype)
    if old.shape[0] == 1:
        return jax.lax.dynamic_update_slice(old, new, (zero, zero, start_B[0], zero))
    return jax.vmap(lambda old, new, start: jax.lax.dynamic_update_slice(old, new, (zero, start, zero)))(
        old, new, start_B)
