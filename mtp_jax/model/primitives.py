"""Small pieces of the transformer in the forms that compile well, each the plain formula in value and gradient.

Measured with XLA's CPU compiler (benchmarks/torch_step.py); where a form would make a TPU program worse, CPU alone has
it.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from mtp_jax.config import ModelConfig
from mtp_jax.parallel.sharding import current_layout


def _mergeable() -> bool:
    """Tells whether B and L should become one axis.

    Only on CPU, where it pays (a TPU program gets 15 % more copies), and not where the layout splits L: merging two
    split axes would move every token.
    """
    layout = current_layout()
    return layout is None or (layout.mesh.devices.flat[0].platform == "cpu" and layout.size("length") == 1)


def project(x: jax.Array, weight: jax.Array, *, inputs: int = 1,
            preferred_element_type: jax.typing.DTypeLike | None = None) -> jax.Array:
    """Multiplies the last axes of `x` by the first axes of `weight`; on CPU, as one product of two matrices.

    Written over [B, L, ...], the gradient of the weight sums over two axes, B and L, for which XLA's CPU compiler has
    no fast product: flattened, a whole training step takes 0.7 of the time.

    Args:
      x: [B, L, *in].
      weight: [*in, *out].
      inputs: number of axes of `in`: 1 for [D] -> [A, C], 2 for [A, C] -> [D].
      preferred_element_type: dtype of the result; None: that of `x`, to which the weight is converted.

    Returns:
      [B, L, *out].
    """
    weight = weight.astype(x.dtype)
    if not _mergeable():
        return jnp.tensordot(x, weight, inputs, preferred_element_type=preferred_element_type)
    rows, out = x.shape[:x.ndim - inputs], weight.shape[inputs:]
    matrix = weight.reshape(math.prod(weight.shape[:inputs]), math.prod(out))
    y = jnp.matmul(x.reshape(-1, matrix.shape[0]), matrix, preferred_element_type=preferred_element_type)
    return y.reshape(*rows, *out)


def outer_sum(x_BxLxD: jax.Array, y_BxLxF: jax.Array, *,
              preferred_element_type: jax.typing.DTypeLike | None = None) -> jax.Array:
    """Returns the sum over positions of the outer products of `x` and `y`, [D, F]: a weight's gradient.

    Args:
      x_BxLxD: left factors.
      y_BxLxF: right factors.
      preferred_element_type: dtype of the result; None: that of the factors.
    """
    if not _mergeable():
        return jnp.einsum("bld,blf->df", x_BxLxD, y_BxLxF, preferred_element_type=preferred_element_type)
    x, y = (z.reshape(-1, z.shape[-1]) for z in (x_BxLxD, y_BxLxF))
    return jnp.matmul(x.T, y, preferred_element_type=preferred_element_type)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Divides by the root mean square over the last axis and multiplies by `scale`; in fp32 or wider.

    Args:
      x: [..., D].
      scale: [D].
      eps: added to the mean square.

    Returns:
      [..., D] in the dtype of `x`.
    """
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    scale = scale.astype(wide.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * inverse * scale).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How the angles of a model with a stretched context are slowed; fields as in ModelConfig, rope_*."""

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_window: int = 8192

    def __call__(self, frequency_C: jax.Array) -> jax.Array:
        """Returns the slowed frequencies, radians a token."""
        if self.kind == "none":
            return frequency_C
        if self.kind == "linear":
            return frequency_C / self.factor
        # Llama 3: waves that fit into the old context less than low_freq_factor times are slowed, those that fit more
        # than high_freq_factor times are not, and between the two the frequency is interpolated.
        waves_C = self.original_window * frequency_C / (2 * math.pi)
        kept_C = jnp.clip((waves_C - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return frequency_C * (kept_C + (1 - kept_C) / self.factor)


def rotary_tables(positions_BxL: jax.Array, head_dim: int, *, theta: float, scaling: RotaryScaling = RotaryScaling(),
                  dtype: jax.typing.DTypeLike = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Returns what `rotary` needs of the positions; made once a forward, used by every layer.

    Args:
      positions_BxL: position in the document.
      head_dim: C, even.
      theta: base of the angles.
      scaling: of the angles.
      dtype: of the tables, fp32 or wider.

    Returns:
      cos_BxLxC, the halves of C alike, and sin_BxLxC, its first half negative.
    """
    frequency_C = scaling(theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim))
    angle_BxLxC = positions_BxL.astype(dtype)[:, :, None] * frequency_C[None, None, :]
    cos_BxLxC, sin_BxLxC = jnp.cos(angle_BxLxC), jnp.sin(angle_BxLxC)
    return (jnp.concatenate([cos_BxLxC, cos_BxLxC], axis=-1), jnp.concatenate([-sin_BxLxC, sin_BxLxC], axis=-1))


def rotary_scaling(config: ModelConfig) -> RotaryScaling:
    """Returns how a model slows its angles."""
    return RotaryScaling(config.rope_scaling, config.rope_factor, config.rope_low_freq_factor,
                         config.rope_high_freq_factor, config.rope_original_window)


def rotary_angles(config: ModelConfig, positions_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the `rotary_tables` of a model, in fp32 (fp64 in fp64)."""
    return rotary_tables(positions_BxL, config.attention_head_dim, theta=config.rope_theta,
                         scaling=rotary_scaling(config), dtype=jnp.promote_types(jnp.float32, config.dtype))


def rotary(x_BxLxAxC: jax.Array, cos_BxLxC: jax.Array, sin_BxLxC: jax.Array) -> jax.Array:
    """Rotary embedding on half-split pairs: feature c goes with feature c + C/2 (the Hugging Face convention).

    Swapping the halves is a roll, with the sign in the table: half the cost of the textbook's negated concatenation.

    Args:
      x_BxLxAxC: queries or keys.
      cos_BxLxC: from `rotary_tables`.
      sin_BxLxC: from `rotary_tables`.
    """
    wide = x_BxLxAxC.astype(cos_BxLxC.dtype)
    swapped = jnp.roll(wide, x_BxLxAxC.shape[-1] // 2, axis=-1)
    return (wide * cos_BxLxC[:, :, None, :] + swapped * sin_BxLxC[:, :, None, :]).astype(x_BxLxAxC.dtype)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns silu(gate) * up.

    The backward pass computes the sigmoid again: of a layer's inner width, two arrays are kept instead of four.

    Args:
      gate: [..., F].
      up: [..., F].
    """
    return gate * jax.nn.sigmoid(gate) * up


def _swiglu_forward(gate, up):
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(residuals, dy):
    gate, up = residuals
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    return dy * up * (sigmoid + silu * (1 - sigmoid)), dy * silu


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
