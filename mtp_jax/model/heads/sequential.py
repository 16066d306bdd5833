"""Sequential heads: a chain of modules, each of which reads the token that the head before it predicts (DeepSeek-V3,
arXiv 2412.19437, section 2.2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.cached import take
from mtp_jax.model.heads.interface import HeadKind, register_head_kind, scale_gradient
from mtp_jax.model.layers import Block, RMSNorm, parameter
from mtp_jax.model.primitives import project
from mtp_jax.model.stacks import checkpoint, scan, split_module
from mtp_jax.parallel import constrain


class SequentialModules(nnx.Module):
    """The modules of heads 2..N; the forward methods are written for one."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        stack, D = (("pred_heads", config.num_heads - 1),), config.d_model
        self.embedding_norm = RMSNorm(config, rngs, stack)
        self.state_norm = RMSNorm(config, rngs, stack)
        self.projection = parameter(rngs, config, stack, (2 * D, D), ("embed", "embed_out"), config.init_std)
        self.block = Block(config, rngs, stack)
        self.norm = RMSNorm(config, rngs, stack)

    def merge(self, token_BxLxD: jax.Array, h_BxLxD: jax.Array) -> jax.Array:
        """Returns the input of the block, of the token ahead (the upper half of the projection) and the state."""
        both_BxLxE = jnp.concatenate([self.embedding_norm(token_BxLxD), self.state_norm(h_BxLxD)], axis=-1)
        return constrain(project(both_BxLxE, self.projection[...]), "batch", "residual", None)


@register_head_kind("sequential")
class SequentialHeads(HeadKind):
    """h_1 = norm(z); h_k at i = norm_k(block_k(projection_k [token i + k - 1, h_{k-1} at i])), both parts normed first.

    Head k knows the k - 1 tokens before the one that it predicts: those of the text in training, the drafts of the
    heads before it when decoding. The trunk is whole, and head 1 reads it out.
    """

    layers_per_head = 0
    abreast = False
    first_own = 2
    in_turn = True

    def parameters(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return SequentialModules(config, rngs) if config.num_heads > 1 else nnx.Module()

    def __call__(self, heads, norm, z_BxLxD, context, *, active_N, gates_N, execution, ahead):
        h_BxLxD, N = norm(z_BxLxD), active_N.shape[0]
        if N == 1:
            return h_BxLxD[None]
        build, stacked = split_module(heads)
        cut = None if gates_N is None else gates_N[1]  # the embedding is the trunk's: what cuts it off cuts every read

        def run(leaves, gate, places, h_BxLxD):
            module: Any = build(leaves)
            token_BxLxD = scale_gradient(ahead(places), cut)
            return module.norm(module.block(module.merge(token_BxLxD, scale_gradient(h_BxLxD, gate)), context))

        run = checkpoint(run, execution.remat)

        def head(h_BxLxD, inputs):
            leaves, active, gate, places = inputs
            if not execution.skip_idle_heads:
                h_BxLxD = run(leaves, gate, places, h_BxLxD)
            else:  # after an idle head all are idle, so what it hands on is read by none
                h_BxLxD = jax.lax.cond(active, run, lambda leaves, gate, places, h_BxLxD: jnp.zeros_like(h_BxLxD),
                                       leaves, gate, places, h_BxLxD)
            return h_BxLxD, h_BxLxD

        inputs = (stacked, active_N[1:], None if gates_N is None else gates_N[1:], jnp.arange(1, N))
        _, further = scan(head, h_BxLxD, inputs, execution.unroll)
        return jnp.concatenate([h_BxLxD[None], further])

    def first(self, heads, norm, z_BxQxD, context, memories, dtype):
        del heads, context, memories, dtype
        h_BxQxD = norm(z_BxQxD)
        return h_BxQxD, h_BxQxD

    def in_line(self, heads, h_BxQxD, line_BxE, index_B, context, memories, dtype, embed, say):
        states, news = [], []
        Q = h_BxQxD.shape[1]
        for m, (module, memory) in enumerate(zip(heads, memories), 1):
            x_BxQxD = module.merge(embed(line_BxE[:, m:m + Q]), h_BxQxD)
            news.append(module.block.keys_values(x_BxQxD, context, dtype))
            if index_B is not None and m == len(heads):  # nobody reads the last module but at one position
                x_BxQxD, context = take(x_BxQxD, index_B), context.at(index_B)
            h_BxQxD = module.norm(module.block.extend(x_BxQxD, context, memory, news[-1]))
            if index_B is None:
                states.append(h_BxQxD)
                continue
            states.append(h_BxQxD if m == len(heads) else take(h_BxQxD, index_B))
            place_B = index_B + 1 + m
            line_BxE = jnp.where(jnp.arange(line_BxE.shape[1])[None] == place_B[:, None],
                                 say(states[-1], m + 1)[:, None], line_BxE)
        return line_BxE, states, news

    def active(self, weights_N: jax.Array) -> jax.Array:
        """A head is needed as long as a later one, which reads its state, has a weight."""
        return jnp.flip(jnp.cumsum(jnp.flip(weights_N > 0))) > 0

    def detached_gates(self, num_heads: int) -> jax.Array:
        """One cut, between head 1 and head 2, and another before every embedding that a module reads."""
        return jnp.where(jnp.arange(num_heads) == 1, 0.0, 1.0)

    def layers(self, heads: int) -> int:
        return self.own(heads)

    def matmul_flops(self, config: ModelConfig, layer_flops: float) -> float:
        return layer_flops + 4.0 * config.d_model**2
