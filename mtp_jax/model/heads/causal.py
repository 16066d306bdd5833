"""Causal heads: head k stacks on heads 1..k-1 (Gloeckle et al. 2024, appendix B)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.cached import take
from mtp_jax.model.heads.interface import HeadKind, register_head_kind, scale_gradient
from mtp_jax.model.layers import Block
from mtp_jax.model.stacks import checkpoint, scan, split_module


def run_chain(heads, norm, z_BxLxD, context, active_N, gates_N, execution) -> jax.Array:
    """Runs the heads as one deeper trunk, in their stored order; returns norm(state after each) [N, B, L, D]."""
    build, stacked = split_module(heads)

    def run(leaves, gate, s_BxLxD):
        s_BxLxD = build(leaves)(scale_gradient(s_BxLxD, gate), context)
        return s_BxLxD, norm(s_BxLxD)

    run = checkpoint(run, execution.remat)

    def head(s_BxLxD, inputs):
        leaves, active, gate = inputs
        if not execution.skip_idle_heads:
            return run(leaves, gate, s_BxLxD)
        return jax.lax.cond(active, run, lambda leaves, gate, s_BxLxD: (s_BxLxD, jnp.zeros_like(s_BxLxD)),
                            leaves, gate, s_BxLxD)

    _, h_NxBxLxD = scan(head, z_BxLxD, (stacked, active_N, gates_N), execution.unroll)
    return h_NxBxLxD


@register_head_kind("causal")
class CausalHeads(HeadKind):
    """s_k = layer_k(s_{k-1}), s_0 = z, h_k = norm(s_k): later tokens are read out deeper."""

    abreast = False

    def parameters(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return Block(config, rngs, (("pred_heads", config.num_heads),))

    def __call__(self, heads, norm, z_BxLxD, context, *, active_N, gates_N, execution, ahead):
        return run_chain(heads, norm, z_BxLxD, context, active_N, gates_N, execution)

    def first(self, heads, norm, z_BxQxD, context, memories, dtype):
        new = heads[0].keys_values(z_BxQxD, context, dtype)
        s_BxQxD = heads[0].extend(z_BxQxD, context, memories[0], new)
        return norm(s_BxQxD), (s_BxQxD, new)

    def further(self, heads, norm, halfway, index_B, context, memories, dtype, used):
        s_BxQxD, first = halfway
        states, news = [], [first]
        for j in range(1, len(heads)):
            news.append(heads[j].keys_values(s_BxQxD, context, dtype))
            if j < len(heads) - 1:  # the next head's keys and values need this one everywhere
                s_BxQxD = heads[j].extend(s_BxQxD, context, memories[j], news[j])
                s_Bx1xD = take(s_BxQxD, index_B)
            else:
                s_Bx1xD = heads[j].extend(take(s_BxQxD, index_B), context.at(index_B), memories[j], news[j])
            states.append(norm(s_Bx1xD))
        return states[:used - 1], news

    def active(self, weights_N: jax.Array) -> jax.Array:
        """A head is needed as long as one that stacks on it has a weight."""
        return jnp.flip(jnp.cumsum(jnp.flip(weights_N > 0))) > 0

    def detached_gates(self, num_heads: int) -> jax.Array:
        """One cut, between head 1 and head 2; the heads after it still train each other."""
        return jnp.where(jnp.arange(num_heads) == 1, 0.0, 1.0)
