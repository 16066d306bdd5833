"""The transformer block: RMSNorm, rotary attention with grouped KV heads, SwiGLU.

Every module takes `stack`, the leading axes of its parameters: `(("layers", 7),)` makes the parameters of seven blocks
in one, which `stacks.py` runs one after the other or side by side. The forward methods are written for one block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.attention import attention
from mtp_jax.model.cached import BlockContext, KeysValues, cached_attention
from mtp_jax.model.primitives import project, rms_norm, rotary, rotary_angles, swiglu
from mtp_jax.parallel import constrain

Stack = tuple[tuple[str, int], ...]
OnGate = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowContext:
    """What every layer needs to know of the rows, computed once a forward.

    Attributes:
      segments_BxL: document number in the row, from 1; 0 is padding.
      positions_BxL: position in the document.
      cos_BxLxC: from `rotary_tables`, fp32 (fp64 in fp64).
      sin_BxLxC: likewise.
      kernel: name of the attention kernel.
    """

    segments_BxL: jax.Array
    positions_BxL: jax.Array
    cos_BxLxC: jax.Array
    sin_BxLxC: jax.Array
    kernel: str = dataclasses.field(metadata={"static": True})


def row_context(config: ModelConfig, segments_BxL: jax.Array, positions_BxL: jax.Array, kernel: str) -> RowContext:
    """Computes the rotary angles of the rows and bundles them with the segments."""
    cos_BxLxC, sin_BxLxC = rotary_angles(config, positions_BxL)
    return RowContext(segments_BxL, positions_BxL, cos_BxLxC, sin_BxLxC, kernel)


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
        return rms_norm(x, self.scale[...], self.eps)


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

    def __call__(self, x_BxLxD: jax.Array, context: RowContext) -> jax.Array:
        q_BxLxAxC = self.queries(x_BxLxD, context.cos_BxLxC, context.sin_BxLxC)
        k_BxLxKxC, v_BxLxKxC = self.keys_values(x_BxLxD, context.cos_BxLxC, context.sin_BxLxC)
        o_BxLxAxC = attention(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, context.segments_BxL, context.positions_BxL,
                              kernel=context.kernel)
        return project(o_BxLxAxC, self.out[...], inputs=2)

    def queries(self, x_BxLxD: jax.Array, cos_BxLxC: jax.Array, sin_BxLxC: jax.Array) -> jax.Array:
        """Returns the rotated queries, [B, L, A, C]."""
        q_BxLxAxC = project(x_BxLxD, self.query[...])
        if self.qk_norm:
            q_BxLxAxC = self.query_norm(q_BxLxAxC)
        return constrain(rotary(q_BxLxAxC, cos_BxLxC, sin_BxLxC), "batch", "length", "heads", None)

    def keys_values(self, x_BxLxD: jax.Array, cos_BxLxC: jax.Array, sin_BxLxC: jax.Array
                    ) -> tuple[jax.Array, jax.Array]:
        """Returns the rotated keys and the values, each [B, L, K, C]."""
        k_BxLxKxC = project(x_BxLxD, self.key[...])
        v_BxLxKxC = project(x_BxLxD, self.value[...])
        if self.qk_norm:
            k_BxLxKxC = self.key_norm(k_BxLxKxC)
        k_BxLxKxC = constrain(rotary(k_BxLxKxC, cos_BxLxC, sin_BxLxC), "batch", "length", "kv_heads", None)
        return k_BxLxKxC, constrain(v_BxLxKxC, "batch", "length", "kv_heads", None)

    def extend(self, x_BxRxD: jax.Array, context: BlockContext, memory: KeysValues | None, new: KeysValues
               ) -> jax.Array:
        """Attends from R positions of a block to what is cached and to the block itself; see `Block.extend`."""
        q_BxRxAxC = self.queries(x_BxRxD, context.cos_BxQxC, context.sin_BxQxC)
        if context.segments_BxQ is not None:  # a prompt as a whole: rows as in training
            k_BxQxKxC, v_BxQxKxC = (jnp.swapaxes(x, 1, 2).astype(q_BxRxAxC.dtype)
                                    for x in (new.keys_BxKxSxC, new.values_BxKxSxC))
            positions_BxQ = jnp.broadcast_to(jnp.arange(x_BxRxD.shape[1]), x_BxRxD.shape[:2])
            o_BxRxAxC = attention(q_BxRxAxC, k_BxQxKxC, v_BxQxKxC, context.segments_BxQ, positions_BxQ,
                                  kernel=context.kernel)
        else:
            o_BxRxAxC = cached_attention(q_BxRxAxC, memory, new, context)
        return project(o_BxRxAxC, self.out[...], inputs=2)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x), no biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: Stack = ()):
        D, F = config.d_model, config.mlp_dim
        self.gate = parameter(rngs, config, stack, (D, F), ("embed", "mlp"), config.init_std)
        self.up = parameter(rngs, config, stack, (D, F), ("embed", "mlp"), config.init_std)
        self.down = parameter(rngs, config, stack, (F, D), ("mlp", "embed"), output_std(config))

    def __call__(self, x_BxLxD: jax.Array, on_gate: OnGate | None = None) -> jax.Array:
        """Runs it; `on_gate`: what to make of silu(gate x), [B, L, F], before the product with up x."""
        gate_BxLxF = project(x_BxLxD, self.gate[...])
        up_BxLxF = project(x_BxLxD, self.up[...])
        if on_gate is None:
            inner_BxLxF = swiglu(gate_BxLxF, up_BxLxF)
        else:
            inner_BxLxF = on_gate(gate_BxLxF * jax.nn.sigmoid(gate_BxLxF)) * up_BxLxF
        return project(constrain(inner_BxLxF, "batch", "length", "mlp"), self.down[...])


class Block(nnx.Module):
    """One pre-norm transformer layer; with `stack`, the parameters of several.

    With `sandwich_norm` what attention and MLP add to the residual stream is normed, too.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, stack: Stack = ()):
        self.attention_norm = RMSNorm(config, rngs, stack)
        self.attention = Attention(config, rngs, stack)
        self.mlp_norm = RMSNorm(config, rngs, stack)
        self.mlp = MLP(config, rngs, stack)
        self.sandwich_norm = config.sandwich_norm
        if config.sandwich_norm:
            self.attention_out_norm = RMSNorm(config, rngs, stack)
            self.mlp_out_norm = RMSNorm(config, rngs, stack)

    def __call__(self, x_BxLxD: jax.Array, context: RowContext) -> jax.Array:
        return self._finish(x_BxLxD, self.attention(self.attention_norm(x_BxLxD), context))

    def keys_values(self, x_BxQxD: jax.Array, context: BlockContext, dtype: jax.typing.DTypeLike) -> KeysValues:
        """Returns what later positions will read of a block of new ones.

        Args:
          x_BxQxD: input of the layer.
          context: of the block.
          dtype: of the cache. Also the block reads its own keys and values so, for it may not matter for a token
            whether its predecessor was read from the cache or stood in the same block.
        """
        k_BxQxKxC, v_BxQxKxC = self.attention.keys_values(self.attention_norm(x_BxQxD), context.cos_BxQxC,
                                                          context.sin_BxQxC)
        return KeysValues(jnp.swapaxes(k_BxQxKxC, 1, 2).astype(dtype), jnp.swapaxes(v_BxQxKxC, 1, 2).astype(dtype))

    def extend(self, x_BxRxD: jax.Array, context: BlockContext, memory: KeysValues | None, new: KeysValues,
               on_gate: OnGate | None = None) -> jax.Array:
        """Runs the layer on positions of a block behind cached ones.

        Args:
          x_BxRxD: input of the layer at R positions: all Q of the block, or one of each row.
          context: of these R positions (`BlockContext.at`).
          memory: what the layer has cached; None: nothing.
          new: keys and values of all Q positions of the block, from `keys_values`.
          on_gate: see `MLP`.

        Returns:
          The layer's output at the R positions, [B, R, D].
        """
        attended_BxRxD = self.attention.extend(self.attention_norm(x_BxRxD), context, memory, new)
        return self._finish(x_BxRxD, attended_BxRxD, on_gate)

    def _finish(self, x_BxLxD: jax.Array, attended_BxLxD: jax.Array, on_gate: OnGate | None = None) -> jax.Array:
        """Adds what attention returned, then the MLP."""
        x_BxLxD = x_BxLxD + (self.attention_out_norm(attended_BxLxD) if self.sandwich_norm else attended_BxLxD)
        inner_BxLxD = self.mlp(self.mlp_norm(x_BxLxD), on_gate)
        x_BxLxD = x_BxLxD + (self.mlp_out_norm(inner_BxLxD) if self.sandwich_norm else inner_BxLxD)
        return constrain(x_BxLxD, "batch", "residual", None)
