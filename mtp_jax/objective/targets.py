"""Targets of every head, and where they count."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtp_jax.parallel import constrain


def multi_token_targets(tokens_BxL: jax.Array, segments_BxL: jax.Array, positions_BxL: jax.Array,
                        num_heads: int, prompt_end: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the target of every head at every position, and whether it counts.

    The target of head k (from 1) at position i is token i + k of the same row. It counts if i and i + k lie in the
    same document: the segment id is the same and position(i + k) == position(i) + k. Segments alone do not tell two
    neighbouring documents with one id apart, nor do positions alone. Each target is cut from the original ids, never
    from another head's, so no error builds up from head to head.

    Shift first, shard after: where a mesh splits positions, a token's targets may lie on another device. The ids, a few
    bytes a token, are gathered before they are shifted, and their results laid out as the states are.

    Args:
      tokens_BxL: token ids.
      segments_BxL: document number in the row, from 1; 0 is padding and never counts.
      positions_BxL: position in the document.
      num_heads: N.
      prompt_end: id of a token: a target counts only after its first place in the document, for every head, wherever
        the head stands. Of a document that began in another row only what this row holds is looked at. None: all count.

    Returns:
      targets_NxBxL, ids, 0 where none; mask_NxBxL, bool.
    """
    B, L = tokens_BxL.shape
    tokens_BxL, segments_BxL, positions_BxL = (constrain(x, "batch", None)
                                               for x in (tokens_BxL, segments_BxL, positions_BxL))
    answered_BxL = None if prompt_end is None else _after(tokens_BxL == prompt_end, positions_BxL)
    targets, masks = [], []
    for k in range(1, num_heads + 1):
        missing = jnp.zeros((B, min(k, L)), jnp.int32)
        here, there = slice(0, max(L - k, 0)), slice(k, None)
        valid = ((segments_BxL[:, here] == segments_BxL[:, there]) & (segments_BxL[:, here] > 0)
                 & (positions_BxL[:, there] == positions_BxL[:, here] + k))
        if answered_BxL is not None:
            valid &= answered_BxL[:, there]
        targets.append(jnp.concatenate([tokens_BxL[:, there].astype(jnp.int32), missing], axis=1))
        masks.append(jnp.concatenate([valid, missing.astype(bool)], axis=1))
    return (constrain(jnp.stack(targets), "pred_heads", "batch", "length"),
            constrain(jnp.stack(masks), "pred_heads", "batch", "length"))


def _after(marked_BxL: jax.Array, positions_BxL: jax.Array) -> jax.Array:
    """Returns where a token of the same document that is marked lies before."""
    places_BxL = jax.lax.broadcasted_iota(jnp.int32, marked_BxL.shape, 1)
    last_BxL = jax.lax.cummax(jnp.where(marked_BxL, places_BxL, -1), axis=1)
    before_BxL = jnp.pad(last_BxL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return before_BxL >= jnp.maximum(places_BxL - positions_BxL, 0)
