"""How often the further heads say what head 1 will say: what self-speculative decoding lives on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AgreementSums:
    """Sums over positions; divide by the counts for means.

    Attributes:
      agree_N: positions where head k at i names the token that head 1 names at i + k - 1.
      count_N: positions where both have a target.
      accepted: sum of the lengths of the agreeing prefixes of heads 2..N.
      accepted_count: positions where all N heads have a target.
    """

    agree_N: jax.Array
    count_N: jax.Array
    accepted: jax.Array
    accepted_count: jax.Array


def agreement_sums(predictions_NxBxL: jax.Array, mask_NxBxL: jax.Array, active_N: jax.Array) -> AgreementSums:
    """Compares each head with head 1's own later prediction on the data's context.

    Agreement is not accuracy: a draft is accepted if head 1 would have said the same, right or wrong. 1 + accepted /
    accepted_count estimates the tokens that one forward yields in greedy self-speculative decoding; it is an
    estimate on data, whose context the model did not write.

    Args:
      predictions_NxBxL: the id of the largest logit of each head.
      mask_NxBxL: where each head has a target.
      active_N: heads that ran; the others agree nowhere.

    Returns:
      The sums, in fp32.
    """
    N, _, L = predictions_NxBxL.shape
    # With objective.prompt_end a further head may have a target where head 1 has none.
    every_BxL = jnp.all(mask_NxBxL, axis=0)
    agree, prefix, accepted = [], every_BxL, jnp.zeros(())
    for k in range(N):  # head k + 1 at i against head 1 at i + k
        later = jnp.pad(predictions_NxBxL[0][:, k:], ((0, 0), (0, min(k, L))), constant_values=-1)
        same_BxL = (predictions_NxBxL[k] == later) & mask_NxBxL[k] & active_N[k]
        agree.append(jnp.sum(same_BxL.astype(jnp.float32)))
        prefix = prefix & same_BxL
        if k:
            accepted = accepted + jnp.sum(prefix.astype(jnp.float32))
    count_N = jnp.sum(mask_NxBxL.astype(jnp.float32), axis=(1, 2))
    return AgreementSums(jnp.stack(agree), count_N, accepted, jnp.sum(every_BxL.astype(jnp.float32)))
