"""Cross-entropy of all heads without the array of all logits.

N heads times V logits is what makes multi-token training run out of memory (Gloeckle et al. 2024, section 2). Here the
logits exist for one head and one chunk of positions at a time; their gradient is formed on the spot, so that they are
computed once a step and kept never.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.model.primitives import outer_sum, project
from mtp_jax.model.stacks import PLAIN, Execution, fold_heads
from mtp_jax.parallel import constrain, current_layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadSums:
    """Sums over the positions that count, one entry a head; divide loss and correct by count for means.

    Attributes:
      loss_N: negative log-likelihood, nats.
      count_N: positions that count.
      correct_N: positions whose target has the largest logit.
    """

    loss_N: jax.Array
    count_N: jax.Array
    correct_N: jax.Array


@dataclasses.dataclass(frozen=True)
class _Static:
    """What is fixed at trace time."""

    vocab_size: int
    chunks: int
    execution: Execution
    gradient: bool = False
    predictions: bool = False
    each: bool = False  # what every position is worth is wanted, too


def num_chunks(rows: int, length: int, vocab_size: int, logits_bytes: int) -> int:
    """Returns how many chunks keep one block of fp32 logits within `logits_bytes`.

    Args:
      rows: B on one device.
      length: L on one device.
      vocab_size: V on one device.
      logits_bytes: the bound, bytes.
    """
    return max(1, min(length, math.ceil(rows * length * vocab_size * 4 / logits_bytes)))


def parts() -> tuple[int, int]:
    """Returns how many parts the layout in use splits the rows of a batch into, and the positions of a row."""
    layout = current_layout()
    return (1, 1) if layout is None else (layout.size("batch"), layout.size("length"))


def mtp_cross_entropy(h_NxBxLxD: jax.Array, unembedding: jax.Array, targets_NxBxL: jax.Array, mask_NxBxL: jax.Array,
                      scale_N: jax.Array, *, vocab_size: int, chunks: int = 1,
                      execution: Execution = PLAIN) -> tuple[jax.Array, HeadSums]:
    """Returns the weighted loss over all heads, differentiable in the states and the unembedding.

    loss = sum_k scale_k sum_i mask_ki (logsumexp(logits_ki) - logits_ki[target_ki])

    The gradient of a chunk is formed where its logits are, already times scale_k: were the weights applied outside,
    each head would need a gradient of the unembedding of its own. Without differentiation no gradient is formed.
    Softmax and sums are in fp32 (fp64 for fp64 states), matmuls in the states' dtype.

    Args:
      h_NxBxLxD: states of the heads after the final norm.
      unembedding: logit vectors, [V, D] for all heads or [N, V, D] one a head.
      targets_NxBxL: token ids, int32.
      mask_NxBxL: which positions count.
      scale_N: factor of each head's sum: its weight over its number of positions that count in the whole global
        batch. A head of factor 0 is skipped where `execution.skip_idle_heads`. Gets no gradient.
      vocab_size: ids from here on are padding of the vocabulary; their logits are -inf.
      chunks: parts that L is cut into, strided, so that a sharded L needs no collective (trace under `use_layout`,
        which tells how L is split).
      execution: how heads are run.

    Returns:
      The loss, a scalar, and the sums a head, which carry no gradient.
    """
    static = _Static(vocab_size, chunks, execution)
    return _fused(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N)


def mtp_evaluate(h_NxBxLxD: jax.Array, unembedding: jax.Array, targets_NxBxL: jax.Array, mask_NxBxL: jax.Array,
                 active_N: jax.Array, *, vocab_size: int, chunks: int = 1,
                 execution: Execution = PLAIN) -> tuple[HeadSums, jax.Array]:
    """Returns the sums a head and what each head would have said, without forming a gradient.

    Args:
      active_N: heads with False are skipped where `execution.skip_idle_heads`.
      (others): as for `mtp_cross_entropy`.

    Returns:
      The sums, and predictions_NxBxL, the id of the largest logit, int32.
    """
    static = _Static(vocab_size, chunks, execution, predictions=True)
    _, outputs = _run(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, active_N.astype(jnp.float32))
    return outputs["sums"], outputs["predictions"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EachPosition:
    """What the sums are made of; zeros and False where a position does not count.

    Attributes:
      loss_NxBxL: negative log-likelihood, nats.
      correct_NxBxL: whether the target has the largest logit.
      predictions_NxBxL: the id of the largest logit; None where it was not asked for.
    """

    loss_NxBxL: jax.Array
    correct_NxBxL: jax.Array
    predictions_NxBxL: jax.Array | None = None


def weighted_cross_entropy(h_NxBxLxD: jax.Array, unembedding: jax.Array, targets_NxBxL: jax.Array,
                           mask_NxBxL: jax.Array, scale_N: jax.Array, weights_BxL: jax.Array, *, vocab_size: int,
                           chunks: int = 1, execution: Execution = PLAIN) -> tuple[jax.Array, EachPosition]:
    """Returns the loss of `mtp_cross_entropy` with a weight a position, differentiable in that, too.

    loss = sum_k scale_k sum_i weight_i mask_ki nll_ki

    Args:
      weights_BxL: factor of each position, the same for all heads. Its gradient is sum_k scale_k mask_ki nll_ki.
      (others): as for `mtp_cross_entropy`.

    Returns:
      The loss, and what each position is worth without the weights, which carries no gradient.
    """
    static = _Static(vocab_size, chunks, execution, each=True)
    return _weighted(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N, weights_BxL)


def each_position(h_NxBxLxD: jax.Array, unembedding: jax.Array, targets_NxBxL: jax.Array, mask_NxBxL: jax.Array,
                  active_N: jax.Array, *, vocab_size: int, chunks: int = 1,
                  execution: Execution = PLAIN) -> EachPosition:
    """Returns what each position is worth, predictions too, without forming a gradient; arguments as `mtp_evaluate`."""
    static = _Static(vocab_size, chunks, execution, predictions=True, each=True)
    _, outputs = _run(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, active_N.astype(jnp.float32))
    return EachPosition(outputs["loss"], outputs["correct"], outputs["predictions"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N, weights_BxL):
    loss, outputs = _run(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N, weights_BxL)
    return loss, EachPosition(outputs["loss"], outputs["correct"])


def _weighted_forward(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N, weights_BxL):
    static = dataclasses.replace(static, gradient=True)
    loss, outputs = _run(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N, weights_BxL)
    wide = outputs["loss"].dtype
    worth_BxL = jnp.einsum("nbl,n->bl", outputs["loss"], scale_N.astype(wide)).astype(weights_BxL.dtype)
    return ((loss, EachPosition(outputs["loss"], outputs["correct"])),
            (outputs["h_gradient"], outputs["unembedding_gradient"], worth_BxL))


def _weighted_backward(static, residuals, cotangents):
    del static
    g, _ = cotangents
    h_gradient, unembedding_gradient, worth_BxL = (x * g.astype(x.dtype) for x in residuals)
    return h_gradient, unembedding_gradient, None, None, None, worth_BxL


_weighted.defvjp(_weighted_forward, _weighted_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N):
    loss, outputs = _run(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N)
    return loss, outputs["sums"]


def _fused_forward(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N):
    static = dataclasses.replace(static, gradient=True)
    loss, outputs = _run(static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N)
    return (loss, outputs["sums"]), (outputs["h_gradient"], outputs["unembedding_gradient"])


def _fused_backward(static, residuals, cotangents):
    del static
    g, _ = cotangents
    h_gradient, unembedding_gradient = residuals
    return (h_gradient * g.astype(h_gradient.dtype), unembedding_gradient * g.astype(unembedding_gradient.dtype),
            None, None, None)


_fused.defvjp(_fused_forward, _fused_backward)


def _run(static: _Static, h_NxBxLxD, unembedding, targets_NxBxL, mask_NxBxL, scale_N, weights_BxL=None
         ) -> tuple[jax.Array, dict]:
    """Runs every head; the one loop behind loss, gradient and evaluation. Without weights every position counts 1."""
    wide = jnp.promote_types(jnp.float32, h_NxBxLxD.dtype)
    replicated = unembedding.ndim == 3
    # Gathered over fsdp once, not for every chunk of every head.
    shared = None if replicated else constrain(unembedding.astype(h_NxBxLxD.dtype), "vocab", None)
    carry: dict[str, Any] = {"loss": jnp.zeros((), wide)}
    if static.gradient and not replicated:
        carry["unembedding"] = _no_gradient(unembedding.shape, wide)

    def head(carry, inputs):
        matrix = inputs["unembedding"].astype(h_NxBxLxD.dtype) if replicated else shared

        def compute():
            outputs = _one_head(static, wide, inputs["h"], matrix, inputs["targets"], inputs["mask"], inputs["scale"],
                                weights_BxL)
            total = outputs["sums"].loss_N if weights_BxL is None else jnp.sum(outputs["loss"] * weights_BxL)
            loss = total * inputs["scale"].astype(wide)
            return loss, outputs

        if static.execution.skip_idle_heads:
            shapes = jax.eval_shape(compute)
            loss, outputs = jax.lax.cond(inputs["scale"] > 0, compute,
                                         lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
        else:
            loss, outputs = compute()
        carry = {**carry, "loss": carry["loss"] + loss}
        if "unembedding" in carry:
            carry["unembedding"] = carry["unembedding"] + outputs.pop("unembedding_gradient")
        elif static.gradient:
            outputs["unembedding_gradient"] = _added_up(outputs["unembedding_gradient"])
        return carry, outputs

    inputs = {"h": h_NxBxLxD, "targets": targets_NxBxL, "mask": mask_NxBxL, "scale": scale_N}
    if replicated:
        inputs["unembedding"] = unembedding
    # A loop even where layers are unrolled: straight-line code would let the compiler form every head's gradient of the
    # unembedding before it adds them up.
    carry, outputs = fold_heads(head, carry, inputs, dataclasses.replace(
        static.execution, unroll=h_NxBxLxD.shape[0] == static.execution.heads_abreast))
    if static.gradient:
        gradient = outputs["unembedding_gradient"] if replicated else _added_up(carry["unembedding"])
        outputs["unembedding_gradient"] = gradient.astype(unembedding.dtype)
    return carry["loss"], outputs


def _one_head(static: _Static, wide, h_BxLxD, matrix_VxD, targets_BxL, mask_BxL, scale, weights_BxL) -> dict[str, Any]:
    """Runs one head, chunk by chunk; `HeadSums` here holds scalars."""
    B, L, _ = h_BxLxD.shape
    C, S = static.chunks, parts()[1]
    rest = -(L // S) % C

    # Chunk c holds positions c, c + C, c + 2 C, ... of each of the S parts that L lies in: every device keeps its own.
    def cut(x):
        x = x.reshape(B, S, L // S, *x.shape[2:])
        if rest:
            x = jnp.pad(x, ((0, 0), (0, 0), (0, rest), *((0, 0),) * (x.ndim - 3)))
        x = x.reshape(B, S, -1, C, *x.shape[3:])
        return jnp.moveaxis(x.reshape(B, -1, C, *x.shape[4:]), 2, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 2)
        x = x.reshape(B, S, -1, *x.shape[3:])[:, :, :L // S]
        return x.reshape(B, L, *x.shape[3:])

    zero = jnp.zeros((), wide)
    totals: dict[str, Any] = {"sums": HeadSums(zero, zero, zero)}
    if static.gradient:
        totals["unembedding_gradient"] = _no_gradient(matrix_VxD.shape, wide)

    def chunk(totals, inputs):
        h, targets, mask, weights = inputs
        added, outputs = _one_chunk(static, wide, h, targets, mask, weights, matrix_VxD, scale)
        return jax.tree.map(jnp.add, totals, added), outputs

    if C == 1:
        totals, outputs = _one_chunk(static, wide, h_BxLxD, targets_BxL, mask_BxL, weights_BxL, matrix_VxD, scale)
    else:
        inputs = (h_BxLxD, targets_BxL, mask_BxL, weights_BxL)
        totals, outputs = jax.lax.scan(chunk, totals, jax.tree.map(cut, inputs))
        outputs = jax.tree.map(join, outputs)
    return {**totals, **outputs}


def _one_chunk(static: _Static, wide, h_BxLxD, targets_BxL, mask_BxL, weights_BxL, matrix_VxD, scale
               ) -> tuple[dict, dict]:
    """Returns what is added up over chunks and what is laid side by side; the only place where logits exist."""
    V = matrix_VxD.shape[0]
    logits_BxLxV = project(h_BxLxD, matrix_VxD.T, preferred_element_type=wide)
    ids_V = jnp.arange(V, dtype=jnp.int32).reshape(1, 1, V)
    if static.vocab_size < V:
        logits_BxLxV = jnp.where(ids_V < static.vocab_size, logits_BxLxV, -jnp.inf)
    hit_BxLxV = ids_V == targets_BxL[:, :, None]
    weight_BxL = mask_BxL.astype(wide)
    largest_BxL = jnp.max(logits_BxLxV, axis=-1)
    exp_BxLxV = jnp.exp(logits_BxLxV - largest_BxL[:, :, None])
    total_BxL = jnp.sum(exp_BxLxV, axis=-1)
    target_BxL = jnp.sum(jnp.where(hit_BxLxV, logits_BxLxV, 0), axis=-1)
    loss_BxL = jnp.where(mask_BxL, largest_BxL + jnp.log(total_BxL) - target_BxL, 0)
    correct_BxL = mask_BxL & (target_BxL >= largest_BxL)
    added: dict[str, Any] = {"sums": HeadSums(jnp.sum(loss_BxL), jnp.sum(weight_BxL),
                                              jnp.sum(correct_BxL.astype(wide)))}
    outputs: dict[str, Any] = {}
    if static.each:
        outputs |= {"loss": loss_BxL, "correct": correct_BxL}
    if static.predictions:
        outputs["predictions"] = jnp.argmax(logits_BxLxV, axis=-1).astype(jnp.int32)
    if static.gradient:
        factor_BxL = weight_BxL * scale.astype(wide)
        if weights_BxL is not None:
            factor_BxL = factor_BxL * weights_BxL.astype(wide)
        gradient_BxLxV = (exp_BxLxV * (factor_BxL / total_BxL)[:, :, None]
                          - jnp.where(hit_BxLxV, factor_BxL[:, :, None], 0)).astype(h_BxLxD.dtype)
        outputs["h_gradient"] = project(gradient_BxLxV, matrix_VxD)
        added["unembedding_gradient"] = _gradient_by_part(gradient_BxLxV, h_BxLxD, wide)
    return added, outputs


# The gradient of the unembedding is kept apart for each part of the mesh that has rows or positions of its own, on two
# axes in front: a device adds up what is its own, and the devices exchange one sum a step rather than one a chunk.

def _no_gradient(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns zeros for each part."""
    return constrain(jnp.zeros((*parts(), *shape), dtype), "batch", "length", "vocab", None)


def _gradient_by_part(gradient_BxLxV: jax.Array, h_BxLxD: jax.Array, wide: Any) -> jax.Array:
    """Returns the gradient of the unembedding from each part of the mesh, [rows' parts, positions' parts, V, D]."""
    P, S = parts()
    if P * S == 1:
        return outer_sum(gradient_BxLxV, h_BxLxD, preferred_element_type=wide)[None, None]
    g, h = (x.reshape(P, x.shape[0] // P, S, x.shape[1] // S, x.shape[2]) for x in (gradient_BxLxV, h_BxLxD))
    return constrain(jnp.einsum("pbslv,pbsld->psvd", g, h, preferred_element_type=wide), "batch", "length", "vocab",
                     None)


def _added_up(gradient: jax.Array) -> jax.Array:
    """Returns the sum over the parts, [V, D]: the one exchange."""
    return constrain(jnp.sum(gradient, axis=(0, 1)), "vocab", "embed")
