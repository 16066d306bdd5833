"""The exit gate of a looped trunk: after which loop a token has been worked on enough (Zhu et al. 2025, section 3).

After loop t the gate says lambda_t = sigmoid(w . x_t + b) of the normed state x_t. A token leaves after loop t with

    p(t) = lambda_t S_(t-1) for t < T,   p(T) = S_(T-1),   S_t = prod_(j <= t) (1 - lambda_j)

which sums to 1; the gate of the last loop decides nothing. Decoding leaves after the first loop t with 1 - S_t >= q.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig


class ExitGate(nnx.Module):
    """One number a token: w . x + b, fp32 or wider, before the sigmoid."""

    def __init__(self, config: ModelConfig):
        # Zeros: at first a token leaves after each loop with even chances, and no random number is drawn, so that the
        # other parameters are those of a plain trunk.
        dtype = jnp.dtype(config.param_dtype)
        self.kernel = nnx.Param(jnp.zeros((config.d_model,), dtype), logical_axes=("norm",))
        self.bias = nnx.Param(jnp.zeros((), dtype), logical_axes=())

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        return gate_logits(x_BxLxD, self.kernel[...], self.bias[...])


def gate_logits(x_BxLxD: jax.Array, kernel_D: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns what the gate says of normed states before the sigmoid, [B, L] in fp32 or wider."""
    wide = jnp.promote_types(jnp.float32, x_BxLxD.dtype)
    return jnp.einsum("bld,d->bl", x_BxLxD.astype(wide), kernel_D.astype(wide)) + bias.astype(wide)


def log_exit_distribution(gate_TxBxL: jax.Array) -> jax.Array:
    """Returns log p(t) of the exit distribution, [T, B, L]; p sums to 1 over T.

    Args:
      gate_TxBxL: the gate's logits after each loop; that of the last is not read.
    """
    stays_TxBxL = jnp.cumsum(jax.nn.log_sigmoid(-gate_TxBxL[:-1]), axis=0)  # log S_1 .. log S_(T-1)
    before_TxBxL = jnp.concatenate([jnp.zeros_like(gate_TxBxL[:1]), stays_TxBxL])  # log S_0 .. log S_(T-1)
    leaves_TxBxL = jnp.concatenate([jax.nn.log_sigmoid(gate_TxBxL[:-1]), jnp.zeros_like(gate_TxBxL[:1])])
    return before_TxBxL + leaves_TxBxL
