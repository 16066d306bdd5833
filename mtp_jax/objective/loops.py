"""The objectives of a looped trunk with N heads (Zhu et al. 2025, section 3.4).

Heads are read after every loop. Stage I trains everything on the loss that is expected when a token leaves after loop t
with probability p(t), less beta times the entropy of p; without the entropy p would collapse on the last loop:

    sum_k scale_k sum_i mask_ki sum_t p_i(t) nll_ki(t)  -  beta mean_i H(p_i)

Stage II trains the gate alone, to go on where head 1 still improves: with I_t = max(0, nll(t-1) - nll(t)) it is the
cross-entropy of 1 - lambda_t against sigmoid(sharpness (I_t - margin)), over t = 2..T, divided by T.

The T states of a position lie side by side on the batch axis, row b loop t at b T + t: one pass over them makes one
gradient of the unembedding, and a mesh that splits rows splits them alike.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtp_jax.model.exit_gate import log_exit_distribution
from mtp_jax.model.stacks import PLAIN, Execution
from mtp_jax.objective.cross_entropy import EachPosition, HeadSums, each_position, weighted_cross_entropy
from mtp_jax.parallel import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopSums:
    """Sums over the positions that count, in fp32 or wider; batches add up.

    Attributes:
      loss_NxT: negative log-likelihood of each head after each loop, nats.
      correct_NxT: positions whose target has the largest logit.
      expected_N: sum over positions of sum_t p(t) nll(t).
      count_N: positions that count for each head.
      exit_T: sum over positions of p(t).
      entropy: sum over positions of H(p), nats.
      count: positions at which some head has a target, over which p and H are summed.
    """

    loss_NxT: jax.Array
    correct_NxT: jax.Array
    expected_N: jax.Array
    count_N: jax.Array
    exit_T: jax.Array
    entropy: jax.Array
    count: jax.Array


def positions_of(mask_NxBxL: jax.Array) -> jax.Array:
    """Returns where some head has a target, [B, L]: there the exit distribution matters."""
    return jnp.any(mask_NxBxL, axis=0)


def expected_loss(h_NxBxTxLxD: jax.Array, gate_TxBxL: jax.Array, unembedding: jax.Array, targets_NxBxL: jax.Array,
                  mask_NxBxL: jax.Array, scale_N: jax.Array, entropy_scale: jax.Array, *, vocab_size: int,
                  chunks: int = 1, execution: Execution = PLAIN) -> tuple[jax.Array, LoopSums]:
    """Returns the objective of Stage I, differentiable in states, gate and unembedding.

    Args:
      h_NxBxTxLxD: states of the heads after each loop and the final norm.
      gate_TxBxL: the gate's logits.
      unembedding: as for `mtp_cross_entropy`.
      targets_NxBxL: token ids, int32.
      mask_NxBxL: which positions count.
      scale_N: factor of each head's sum; gets no gradient.
      entropy_scale: beta over the number of positions (`positions_of`) in the whole global batch.
      vocab_size: ids from here on are padding.
      chunks: parts that L is cut into.
      execution: how heads are run.

    Returns:
      The loss, a scalar, and sums, which carry no gradient.
    """
    T = gate_TxBxL.shape[0]
    p_TxBxL, entropy_BxL = _exits(gate_TxBxL)
    loss, each = weighted_cross_entropy(
        _side_by_side(h_NxBxTxLxD), unembedding, _again(targets_NxBxL, T), _again(mask_NxBxL, T), scale_N,
        jnp.swapaxes(p_TxBxL, 0, 1).reshape(-1, p_TxBxL.shape[2]), vocab_size=vocab_size, chunks=chunks,
        execution=execution)
    counts_BxL = positions_of(mask_NxBxL).astype(entropy_BxL.dtype)
    loss = loss - entropy_scale.astype(loss.dtype) * jnp.sum(entropy_BxL * counts_BxL).astype(loss.dtype)
    return loss, jax.lax.stop_gradient(_sums(each, p_TxBxL, entropy_BxL, mask_NxBxL))


def gate_loss(h_NxBxTxLxD: jax.Array, gate_TxBxL: jax.Array, unembedding: jax.Array, targets_NxBxL: jax.Array,
              mask_NxBxL: jax.Array, scale: jax.Array, active_N: jax.Array, *, sharpness: float, margin: float,
              vocab_size: int, chunks: int = 1, execution: Execution = PLAIN) -> tuple[jax.Array, LoopSums]:
    """Returns the objective of Stage II.

    Its labels carry no gradient. What the gate reads does: it is `train.trainable` that keeps the trunk as it is.

    Args:
      scale: 1 over the number of head 1's positions in the whole global batch.
      active_N: heads that are computed; head 1 must be.
      sharpness: k, slope of the label.
      margin: gamma, nats by which a loop must improve head 1's loss.
      (others): as for `expected_loss`.

    Returns:
      The loss, a scalar, and sums.
    """
    states, matrix = jax.lax.stop_gradient((h_NxBxTxLxD, unembedding))
    each, _ = every_loop_of(states, matrix, targets_NxBxL, mask_NxBxL, active_N, vocab_size=vocab_size, chunks=chunks,
                            execution=execution)
    nll_BxTxL = _apart(each.loss_NxBxL, gate_TxBxL.shape[0])[0]
    worth_TxBxL = jnp.swapaxes(jax.nn.sigmoid(
        sharpness * (jnp.maximum(nll_BxTxL[:, :-1] - nll_BxTxL[:, 1:], 0) - margin)), 0, 1)  # of loops 2..T
    later_TxBxL = gate_TxBxL[1:]
    cross_TxBxL = -(worth_TxBxL * jax.nn.log_sigmoid(-later_TxBxL)
                    + (1 - worth_TxBxL) * jax.nn.log_sigmoid(later_TxBxL))
    total = jnp.sum(cross_TxBxL * mask_NxBxL[:1].astype(cross_TxBxL.dtype)) / gate_TxBxL.shape[0]
    return total * scale.astype(total.dtype), loop_sums(each, jax.lax.stop_gradient(gate_TxBxL), mask_NxBxL)


def every_loop_of(h_NxBxTxLxD: jax.Array, unembedding: jax.Array, targets_NxBxL: jax.Array, mask_NxBxL: jax.Array,
                  active_N: jax.Array, *, vocab_size: int, chunks: int = 1, execution: Execution = PLAIN
                  ) -> tuple[EachPosition, jax.Array]:
    """Returns what each position is worth after each loop, without forming a gradient; arguments as `mtp_evaluate`.

    Returns:
      Arrays over the loops side by side, [N, B T, L], for `loop_sums`; and the last loop's predictions_NxBxL.
    """
    T = h_NxBxTxLxD.shape[2]
    each = each_position(_side_by_side(h_NxBxTxLxD), unembedding, _again(targets_NxBxL, T), _again(mask_NxBxL, T),
                         active_N, vocab_size=vocab_size, chunks=chunks, execution=execution)
    assert each.predictions_NxBxL is not None  # `each_position` always makes them
    return each, _apart(each.predictions_NxBxL, T)[:, :, -1]


def loop_sums(each: EachPosition, gate_TxBxL: jax.Array, mask_NxBxL: jax.Array) -> LoopSums:
    """Returns the sums of what `every_loop_of` returned, under the gate's exit distribution."""
    return _sums(each, *_exits(gate_TxBxL), mask_NxBxL)


def last_loop(sums: LoopSums) -> HeadSums:
    """Returns the heads' sums after the last loop: what the model says when no token leaves early."""
    return HeadSums(sums.loss_NxT[:, -1], sums.count_N, sums.correct_NxT[:, -1])


def _exits(gate_TxBxL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the exit distribution p_TxBxL and its entropy, nats, [B, L]."""
    log_p_TxBxL = log_exit_distribution(gate_TxBxL)
    p_TxBxL = jnp.exp(log_p_TxBxL)
    return p_TxBxL, -jnp.sum(p_TxBxL * log_p_TxBxL, axis=0)


def _sums(each: EachPosition, p_TxBxL: jax.Array, entropy_BxL: jax.Array, mask_NxBxL: jax.Array) -> LoopSums:
    """Adds up."""
    T = p_TxBxL.shape[0]
    loss_NxBxTxL, correct_NxBxTxL = _apart(each.loss_NxBxL, T), _apart(each.correct_NxBxL, T)
    wide = loss_NxBxTxL.dtype
    counts_BxL = positions_of(mask_NxBxL).astype(wide)
    return LoopSums(
        loss_NxT=jnp.sum(loss_NxBxTxL, axis=(1, 3)), correct_NxT=jnp.sum(correct_NxBxTxL.astype(wide), axis=(1, 3)),
        expected_N=jnp.einsum("nbtl,tbl->n", loss_NxBxTxL, p_TxBxL.astype(wide)),
        count_N=jnp.sum(mask_NxBxL.astype(wide), axis=(1, 2)),
        exit_T=jnp.einsum("tbl,bl->t", p_TxBxL.astype(wide), counts_BxL),
        entropy=jnp.sum(entropy_BxL.astype(wide) * counts_BxL), count=jnp.sum(counts_BxL))


def _side_by_side(h_NxBxTxLxD: jax.Array) -> jax.Array:
    """Returns [N, B T, L, D]."""
    N, B, T, L, D = h_NxBxTxLxD.shape
    return constrain(h_NxBxTxLxD.reshape(N, B * T, L, D), "pred_heads", "batch", "length", None)


def _again(x_NxBxL: jax.Array, T: int) -> jax.Array:
    """Returns the same for each of T loops, [N, B T, L]."""
    return constrain(jnp.repeat(x_NxBxL, T, axis=1), "pred_heads", "batch", "length")


def _apart(x_NxBxL: jax.Array, T: int) -> jax.Array:
    """Returns [N, B, T, L] of what lies side by side."""
    N, rows, L = x_NxBxL.shape
    return x_NxBxL.reshape(N, rows // T, T, L)
