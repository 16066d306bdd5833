"""Anticausal heads: head k stacks on heads k+1..N (Gloeckle et al. 2024, appendix B)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.cached import KeysValues, take
from mtp_jax.model.heads.causal import run_chain
from mtp_jax.model.heads.interface import HeadKind, register_head_kind
from mtp_jax.model.layers import Block
from mtp_jax.model.stacks import split_module


@register_head_kind("anticausal")
class AnticausalHeads(HeadKind):
    """s_k = layer_k(s_{k+1}), s_{N+1} = z, h_k = norm(s_k): the next token is read out last, at full depth."""

    abreast = False
    backwards = True

    def parameters(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return Block(config, rngs, (("pred_heads", config.num_heads),))

    def __call__(self, heads, norm, z_BxLxD, context, *, active_N, gates_N, execution, ahead):
        build, stacked = split_module(heads)
        backwards = build(jax.tree.map(lambda x: jnp.flip(x, axis=0), stacked))
        h_NxBxLxD = run_chain(backwards, norm, z_BxLxD, context, jnp.flip(active_N),
                              None if gates_N is None else jnp.flip(gates_N), execution)
        return jnp.flip(h_NxBxLxD, axis=0)

    def first(self, heads, norm, z_BxQxD, context, memories, dtype):
        states: list[jax.Array] = []
        news: list[KeysValues] = []
        for head, memory in zip(reversed(heads), reversed(memories)):
            news.insert(0, head.keys_values(z_BxQxD, context, dtype))
            z_BxQxD = head.extend(z_BxQxD, context, memory, news[0])
            states.insert(0, z_BxQxD)
        return norm(states[0]), (states, news)

    def further(self, heads, norm, halfway, index_B, context, memories, dtype, used):
        states, news = halfway
        return [norm(take(s_BxQxD, index_B)) for s_BxQxD in states[1:used]], news

    def loaded(self, num_heads: int, used: int) -> int:
        """All: head 1 stacks on the others."""
        return num_heads

    def active(self, weights_N: jax.Array) -> jax.Array:
        """A head is needed as long as one that stacks on it has a weight."""
        return jnp.cumsum(weights_N > 0) > 0

    def detached_gates(self, num_heads: int) -> jax.Array:
        """Head 1 reads the trunk through all the others, so their gradients share one path and cannot be cut apart."""
        if num_heads == 1:
            return jnp.ones(1)
        raise ValueError("objective.detach_trunk=True cannot be had with model.head_kind='anticausal': head 1 stacks "
                         "on the other heads. Use another head kind, or train.trainable to freeze.")
