"""How the next token is chosen from logits: greedily, or drawn after temperature, top-k, top-p and min-p."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

GREEDY, LOSSLESS, TYPICAL = range(3)  # Sampling.rule
LOWEST_TEMPERATURE = 1e-6  # in fp32, logits divided by less may leave its range


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """What decides which token follows, as scalars that may change without compiling again.

    Attributes:
      rule: how drafts are accepted: GREEDY, LOSSLESS or TYPICAL.
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: only the most likely `top_k` tokens stay; 0 is off.
      top_p: of what stays, only the most likely tokens whose probabilities add up to `top_p` stay; 1 is off.
      min_p: of what stays, only tokens of at least `min_p` times the highest probability stay; 0 is off.
      typical_epsilon: a probability above it is always typical.
      typical_delta: so is one above `typical_delta` times exp(-entropy).
    """

    rule: jax.Array | np.ndarray
    temperature: jax.Array | np.ndarray
    top_k: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray
    min_p: jax.Array | np.ndarray
    typical_epsilon: jax.Array | np.ndarray
    typical_delta: jax.Array | np.ndarray


def make_sampling(temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
                  typical: bool = False, typical_epsilon: float = 0.09, typical_delta: float = 0.3) -> Sampling:
    """Returns the rule of choosing tokens; without arguments, greedy.

    Drafts are accepted such that the text is exactly what head 1 alone would have said (greedy), or is distributed
    exactly so (with a temperature). `typical` accepts more drafts and keeps neither promise.

    Args:
      temperature: 0 takes the most likely token; the filters do not change which one that is. With `typical`, 0 judges
        drafts by the probabilities at temperature 1 and takes head 1's most likely token after the last one accepted.
      top_k: tokens to keep; 0 keeps all.
      top_p: probability to keep, in (0, 1]; 1 keeps all.
      min_p: share of the highest probability that a token needs, in [0, 1); 0 keeps all.
      typical: accept a draft whose probability is above min(typical_epsilon, typical_delta * exp(-entropy)). Not
        lossless: the text is distributed otherwise than head 1 alone would have it.
      typical_epsilon: see `typical`, in (0, 1].
      typical_delta: see `typical`, above 0.

    Raises:
      ValueError: a value is out of its range.
    """
    if temperature != 0 and not LOWEST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be 0, which takes the most likely token, or at least "
                         f"{LOWEST_TEMPERATURE}, and finite.")
    if not 0 <= top_k < 2**31 or top_k != int(top_k):
        raise ValueError(f"top_k={top_k} must be a whole number of tokens to keep; 0 keeps all.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]; 1 keeps all tokens.")
    if not 0 <= min_p < 1:
        raise ValueError(f"min_p={min_p} must lie in [0, 1); 0 keeps all tokens.")
    if not 0 < typical_epsilon <= 1:
        raise ValueError(f"typical_epsilon={typical_epsilon} must lie in (0, 1]; 0.09 is usual.")
    if not 0 < typical_delta < math.inf:
        raise ValueError(f"typical_delta={typical_delta} must be above 0 and finite; 0.3 is usual.")
    rule = TYPICAL if typical else LOSSLESS if temperature > 0 else GREEDY
    scalars = (temperature, top_p, min_p, typical_epsilon, typical_delta)
    temperature_, top_p_, min_p_, epsilon_, delta_ = (np.asarray(scalar, np.float32) for scalar in scalars)
    return Sampling(rule=np.asarray(rule, np.int32), temperature=temperature_, top_k=np.asarray(top_k, np.int32),
                    top_p=top_p_, min_p=min_p_, typical_epsilon=epsilon_, typical_delta=delta_)


def probabilities(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns the distribution that tokens are drawn from.

    Temperature, top-k, top-p and min-p are applied in this order, each to what the one before it left. Tokens with
    equal logits stay or go together, so top-k and top-p may keep more tokens than they must. Temperature 0 counts as 1
    here: a greedy choice needs no distribution.

    Args:
      logits: [..., V]; -inf for ids that do not exist, which keep probability 0.
      sampling: temperature and filters.

    Returns:
      [..., V], in fp32 or the wider type of the logits; the sum over V is 1.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    temperature = jnp.where(sampling.temperature > 0, sampling.temperature, 1).astype(dtype)
    x = logits.astype(dtype)
    x = (x - x.max(-1, keepdims=True)) / temperature
    filtered = (sampling.top_k > 0) | (sampling.top_p < 1)
    lowest = jax.lax.cond(filtered, _lowest_kept, lambda x, _: jnp.full_like(x[..., :1], -jnp.inf), x, sampling)
    # The highest of x is 0 and always stays, so min-p needs no probabilities.
    lowest = jnp.maximum(lowest, jnp.log(sampling.min_p).astype(dtype))
    weight = jnp.where(x >= lowest, jnp.exp(x), 0)
    return weight / weight.sum(-1, keepdims=True)


def _lowest_kept(x: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns the lowest of x [..., V] that top-k and top-p keep, [..., 1]."""
    falling = -jnp.sort(-x, axis=-1)
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, x.shape[-1]), x.shape[-1])
    kept = falling >= jax.lax.dynamic_slice_in_dim(falling, k - 1, 1, axis=-1)
    weight = jnp.where(kept, jnp.exp(falling), 0)
    share = weight / weight.sum(-1, keepdims=True)
    before = jnp.cumsum(share, axis=-1) - share
    # Rounding may bring the sum to 1 before the last token, which top_p=1 must keep all the same. The most likely token
    # has nothing before it: it always stays.
    kept &= (before < sampling.top_p.astype(x.dtype)) | (sampling.top_p >= 1)
    return jnp.where(kept, falling, jnp.inf).min(-1, keepdims=True)


def highest(x: jax.Array) -> jax.Array:
    """Returns the id of the highest of x [..., V], of equal ones the first, [...] int32; V, which is none, among NaN.

    It is `jnp.argmax`, for which XLA's CPU takes five to ten times as long as for these two passes.
    """
    x = jax.lax.optimization_barrier(x)  # computed once, so that the maximum is found again
    id_V = jnp.arange(x.shape[-1], dtype=jnp.int32).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.where(x == x.max(-1, keepdims=True), id_V, x.shape[-1]).min(-1)


def draw(probs_BxV: jax.Array, key_B: jax.Array) -> jax.Array:
    """Returns one token a row [B] int32, drawn with weights that need not add up to 1; weight 0 is never drawn."""
    noise_BxV = jax.vmap(lambda key: jax.random.gumbel(key, probs_BxV.shape[1:], probs_BxV.dtype))(key_B)
    return highest(jnp.log(probs_BxV) + noise_BxV)
