"""Targets of every head, and where they count."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtp_jax.parallel import constrain


def multi_token_targets(tokens_BxL: jax.Array, segments_BxL: jax.Array, positions_BxL: jax.Array,
                        num_heads: int) -> tuple[jax.Array, jax.Array]:
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

    Returns:
      targets_NxBxL, ids, 0 where none; mask_NxBxL, bool.
    """
    B, L = tokens_BxL.shape
    tokens_BxL, segments_BxL, positions_BxL = (constrain(x, "batch", None)
                                               for x in (tokens_BxL, segments_BxL, positions_BxL))
    targets, masks = [], []
    for k in range(1, num_heads + 1):
        missing = jnp.zeros((B, min(k, L)), jnp.int32)
        here, there = slice(0, max(L - k, 0)), slice(k, None)
        valid = ((segments_BxL[:, here] == segments_BxL[:, there]) & (segments_BxL[:, here] > 0)
                 & (positions_BxL[:, there] == positions_BxL[:, here] + k))
        targets.append(jnp.concatenate([tokens_BxL[:, there].astype(jnp.int32), missing], axis=1))
        masks.append(jnp.concatenate([valid, missing.astype(bool)], axis=1))
    return (constrain(jnp.stack(targets), "pred_heads", "batch", "length"),
            constrain(jnp.stack(masks), "pred_heads", "batch", "length"))
