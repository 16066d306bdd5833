"""The transformer block: RMSNorm, rotary attention with grouped KV heads, SwiGLU.

Every module takes `stack`, the leading axes of its parameters: `(("layers", 7),)` makes the parameters of seven blocks
in one, which `stacks.py` runs one after the other or side by side. The forward methods are written for one block.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.attention import attention
from mtp_jax.parallel import constrain

Stack = tuple[tuple[str, int], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowContext:
    """What every layer needs to know of the rows, computed once a forward.

    Attributes:
      segments_BxL: document number in the row, from 1; 0 is padding.
      positions_BxL: position in the document.
      cos_BxLxC: cosine of the rotary angles, fp32 (fp64 in fp64), the halves of C alike.
      sin_BxLxC: sine of them.
      kernel: name of the attention kernel.
    """

    segments_BxL: jax.Array
    positions_BxL: jax.Array
    cos_BxLxC: jax.Array
    sin_BxLxC: jax.Array
    kernel: str = dataclasses.field(metadata={"static": True})


def row_context(config: ModelConfig, segments_BxL: jax.Array, positions_BxL: jax.Array, kernel: str) -> RowContext:
    """Computes the rotary angles of the rows and bundles them with the segments."""
    dtype = jnp.promote_types(jnp.float32, config.dtype)
    C = config.attention_head_dim
    frequency_C = config.rope_theta ** (-jnp.arange(0, C, 2, dtype=dtype) / C)
    angle_BxLxC = positions_BxL.astype(dtype)[:, :, None] * frequency_C[None, None, :]
    angle_BxLxC = jnp.concatenate([angle_BxLxC, angle_BxLxC], axis=-1)
    return RowContext(segments_BxL, positions_BxL, jnp.cos(angle_BxLxC), jnp.sin(angle_BxLxC), kernel)


def parameter(rngs: nnx.Rngs, config: ModelConfig, stack: Stack, shape: tuple[int, ...], axes: tuple[str, ...],
              std: float | None) -> nnx.Param:
    """Makes a parameter with its logical axes: normal with deviation `std`, or ones where `std` is None."""
    full = tuple(size for _, size in stack) + shape
    dtype = jnp.dtype(config.param_dtype)
    if std is None:
        value = jnp.ones(full, dtype)
    else:
        value = (std * jax.random.normal(rngs.params(), full, jnp.promote_types(jnp.float32, dtype))).astype(dtype)
    return nnx.Param(value, logical_axes=tuple(name for name, _ in stack) + axes)


def output_std(config: ModelConfig) -> float:
    """Deviation of the matrices that write to the residual stream, so that it does not grow with depth."""
    return config.init_std / math.sqrt(2 * config.num_layers)


class RMSNorm(nnx.Module):
    """Division by the root mean square, times a learned scale; statistics in fp32."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: Stack = (), size: int | None = None):
        self.eps = config.norm_eps
        self.scale = parameter(rngs, config, stack, (size or config.d_model,), ("norm",), None)

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        scale = self.scale[...].astype(wide.dtype)
        return (wide * jax.lax.rsqrt(mean_square + self.eps) * scale.reshape((1,) * (x.ndim - 1) + (-1,))
                ).astype(x.dtype)


def rotate(x_BxLxAxC: jax.Array, context: RowContext) -> jax.Array:
    """Rotary embedding on half-split pairs: feature c goes with feature c + C/2 (the Hugging Face convention)."""
    wide = x_BxLxAxC.astype(context.cos_BxLxC.dtype)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (wide * context.cos_BxLxC[:, :, None, :] + turned * context.sin_BxLxC[:, :, None, :]
            ).astype(x_BxLxAxC.dtype)


class Attention(nnx.Module):
    """Causal self-attention inside a document, with grouped KV heads and optional QK-norm."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: Stack = ()):
        D, A, K, C = config.d_model, config.num_attention_heads, config.kv_heads, config.attention_head_dim
        std = config.init_std
        self.query = parameter(rngs, config, stack, (D, A, C), ("embed", "heads", "head_dim"), std)
        self.key = parameter(rngs, config, stack, (D, K, C), ("embed", "kv_heads", "head_dim"), std)
        self.value = parameter(rngs, config, stack, (D, K, C), ("embed", "kv_heads", "head_dim"), std)
        self.out = parameter(rngs, config, stack, (A, C, D), ("heads", "head_dim", "embed"), output_std(config))
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = RMSNorm(config, rngs, stack, C)
            self.key_norm = RMSNorm(config, rngs, stack, C)
        self.dtype = config.dtype

    def __call__(self, x_BxLxD: jax.Array, context: RowContext) -> jax.Array:
        q_BxLxAxC = jnp.einsum("bld,dac->blac", x_BxLxD, self.query[...].astype(self.dtype))
        k_BxLxKxC = jnp.einsum("bld,dkc->blkc", x_BxLxD, self.key[...].astype(self.dtype))
        v_BxLxKxC = jnp.einsum("bld,dkc->blkc", x_BxLxD, self.value[...].astype(self.dtype))
        if self.qk_norm:
            q_BxLxAxC, k_BxLxKxC = self.query_norm(q_BxLxAxC), self.key_norm(k_BxLxKxC)
        q_BxLxAxC = constrain(rotate(q_BxLxAxC, context), "batch", "length", "heads", None)
        k_BxLxKxC = constrain(rotate(k_BxLxKxC, context), "batch", "length", "kv_heads", None)
        v_BxLxKxC = constrain(v_BxLxKxC, "batch", "length", "kv_heads", None)
        o_BxLxAxC = attention(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, context.segments_BxL, context.positions_BxL,
                              kernel=context.kernel)
        return jnp.einsum("blac,acd->bld", o_BxLxAxC, self.out[...].astype(self.dtype))


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x), no biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: Stack = ()):
        D, F = config.d_model, config.mlp_dim
        self.gate = parameter(rngs, config, stack, (D, F), ("embed", "mlp"), config.init_std)
        self.up = parameter(rngs, config, stack, (D, F), ("embed", "mlp"), config.init_std)
        self.down = parameter(rngs, config, stack, (F, D), ("mlp", "embed"), output_std(config))
        self.dtype = config.dtype

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        gate_BxLxF = jnp.einsum("bld,df->blf", x_BxLxD, self.gate[...].astype(self.dtype))
        up_BxLxF = jnp.einsum("bld,df->blf", x_BxLxD, self.up[...].astype(self.dtype))
        inner_BxLxF = constrain(nnx.silu(gate_BxLxF) * up_BxLxF, "batch", "length", "mlp")
        return jnp.einsum("blf,fd->bld", inner_BxLxF, self.down[...].astype(self.dtype))


class Block(nnx.Module):
    """One pre-norm transformer layer; with `stack`, the parameters of several."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: Stack = ()):
        self.attention_norm = RMSNorm(config, rngs, stack)
        self.attention = Attention(config, rngs, stack)
        self.mlp_norm = RMSNorm(config, rngs, stack)
        self.mlp = MLP(config, rngs, stack)

    def __call__(self, x_BxLxD: jax.Array, context: RowContext) -> jax.Array:
        x_BxLxD = x_BxLxD + self.attention(self.attention_norm(x_BxLxD), context)
        x_BxLxD = x_BxLxD + self.mlp(self.mlp_norm(x_BxLxD))
        return constrain(x_BxLxD, "batch", "length", None)
