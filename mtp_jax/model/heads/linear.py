"""Linear heads: one D x D map each (Gloeckle et al. 2024, appendix B)."""

from __future__ import annotations

import jax
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.cached import take
from mtp_jax.model.heads.interface import HeadKind, register_head_kind, run_abreast, scale_gradient
from mtp_jax.model.layers import parameter
from mtp_jax.model.primitives import project
from mtp_jax.model.stacks import split_module


class LinearMaps(nnx.Module):
    """N matrices from D to D."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D = config.d_model
        self.kernel = parameter(rngs, config, (("pred_heads", config.num_heads),), (D, D), ("embed", "embed_out"),
                                D ** -0.5)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        return project(x_BxLxD, self.kernel[...])


@register_head_kind("linear")
class LinearHeads(HeadKind):
    """h_k = map_k norm(z), on the whole trunk.

    The final norm comes first, so that a head is one linear map from there to the logits and head 1 folds into an
    exported unembedding.
    """

    layers_per_head = 0
    caches = False

    def parameters(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return LinearMaps(config, rngs)

    def __call__(self, heads, norm, z_BxLxD, context, *, active_N, gates_N, execution, ahead):
        del context
        build, stacked = split_module(heads)
        x_BxLxD = norm(z_BxLxD)

        def run(leaves, gate, x_BxLxD):
            return build(leaves)(scale_gradient(x_BxLxD, gate))

        return run_abreast(run, x_BxLxD, stacked, active_N, gates_N, execution)

    def first(self, heads, norm, z_BxQxD, context, memories, dtype):
        del context, memories, dtype
        x_BxQxD = norm(z_BxQxD)
        return heads[0](x_BxQxD), x_BxQxD

    def further(self, heads, norm, halfway, index_B, context, memories, dtype, used):
        del norm, context, memories, dtype
        x_Bx1xD = take(halfway, index_B)
        return [head(x_Bx1xD) for head in heads[1:used]], []

    def matmul_flops(self, config: ModelConfig, layer_flops: float) -> float:
        del layer_flops
        return 2.0 * config.d_model**2
