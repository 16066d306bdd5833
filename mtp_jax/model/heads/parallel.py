"""Parallel heads: each is one transformer layer on the trunk's output (Gloeckle et al. 2024, section 2)."""

from __future__ import annotations

from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.cached import take
from mtp_jax.model.heads.interface import HeadKind, register_head_kind, run_abreast, scale_gradient
from mtp_jax.model.layers import Block
from mtp_jax.model.stacks import checkpoint, split_module


@register_head_kind("parallel")
class ParallelHeads(HeadKind):
    """h_k = norm(layer_k(z)): no head sees another."""

    def parameters(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return Block(config, rngs, (("pred_heads", config.num_heads),))

    def __call__(self, heads, norm, z_BxLxD, context, *, active_N, gates_N, execution, ahead):
        build, stacked = split_module(heads)

        def run(leaves, gate, z_BxLxD):
            return norm(build(leaves)(scale_gradient(z_BxLxD, gate), context))

        return run_abreast(checkpoint(run, execution.remat), z_BxLxD, stacked, active_N, gates_N, execution)

    def first(self, heads, norm, z_BxQxD, context, memories, dtype):
        new = heads[0].keys_values(z_BxQxD, context, dtype)
        return norm(heads[0].extend(z_BxQxD, context, memories[0], new)), (z_BxQxD, new)

    def further(self, heads, norm, halfway, index_B, context, memories, dtype, used):
        z_BxQxD, first = halfway
        news = [first, *(head.keys_values(z_BxQxD, context, dtype) for head in heads[1:])]
        z_Bx1xD, there = take(z_BxQxD, index_B), context.at(index_B)
        return [norm(heads[j].extend(z_Bx1xD, there, memories[j], news[j])) for j in range(1, used)], news
