"""Medusa heads: each is a few residual layers on the model's last state (Cai et al. 2024, arXiv 2401.10774)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.cached import take
from mtp_jax.model.heads.interface import HeadKind, register_head_kind, run_abreast, scale_gradient
from mtp_jax.model.layers import parameter
from mtp_jax.model.primitives import project
from mtp_jax.model.stacks import checkpoint, split_module


class ResidualLayers(nnx.Module):
    """x + silu(W x), `medusa_layers` times one after the other, for each of heads 2..N; the forward is of one head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, stack = config.d_model, (("pred_heads", config.num_heads - 1), ("layers", config.medusa_layers))
        # Zeros, as Medusa has it: each head starts as head 1 and learns what differs k - 1 tokens further.
        self.kernel = parameter(rngs, config, stack, (D, D), ("embed", "embed_out"), 0.0)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        for i in range(kernel.shape[0]):
            x_BxLxD = x_BxLxD + jax.nn.silu(project(x_BxLxD, kernel[i]))
        return x_BxLxD


@register_head_kind("medusa")
class MedusaHeads(HeadKind):
    """h_1 = norm(z), h_k = residual_k(norm(z)): head 1 is the plain model, whose trunk is whole.

    With `train.trainable=("heads/*",)` only the heads train and the text of the model stays what it was (Medusa-1).
    """

    layers_per_head = 0
    first_own = 2
    abreast = False  # N - 1 of them share no axis of the mesh with N targets; they cost little beside the unembedding
    caches = False

    def parameters(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return ResidualLayers(config, rngs) if config.num_heads > 1 else nnx.Module()

    def __call__(self, heads, norm, z_BxLxD, context, *, active_N, gates_N, execution, ahead):
        x_BxLxD = norm(z_BxLxD)
        if active_N.shape[0] == 1:
            return x_BxLxD[None]
        build, stacked = split_module(heads)

        def run(leaves, gate, x_BxLxD):
            return build(leaves)(scale_gradient(x_BxLxD, gate))

        further = run_abreast(checkpoint(run, execution.remat), x_BxLxD, stacked, active_N[1:],
                              None if gates_N is None else gates_N[1:], execution)
        return jnp.concatenate([x_BxLxD[None], further])

    def first(self, heads, norm, z_BxQxD, context, memories, dtype):
        del heads, context, memories, dtype
        x_BxQxD = norm(z_BxQxD)
        return x_BxQxD, x_BxQxD

    def further(self, heads, norm, halfway, index_B, context, memories, dtype, used):
        del norm, context, memories, dtype
        x_Bx1xD = take(halfway, index_B)
        return [head(x_Bx1xD) for head in heads[:used - 1]], []

    def matmul_flops(self, config: ModelConfig, layer_flops: float) -> float:
        del layer_flops
        return 2.0 * config.medusa_layers * config.d_model**2
