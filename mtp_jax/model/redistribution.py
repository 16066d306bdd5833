"""Activation redistribution (ARM, Shi et al. 2025): moves the smallest activations of the first gate away from zero.

    settings = Redistribution.create(c=0.13, p1=99.5)
    g_BxLxF = redistribute(g_BxLxF, positions_BxL, settings)  # g = silu(gate x), before it meets up x

Nothing is trained. What is chosen and where it goes follows from order statistics and from noise that is keyed by the
position in the text. With statistics of each token alone a token's result depends on nothing else, so that reading a
prompt, decoding token by token and verifying a block of drafts agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import check_choice

MODES = ("replace", "add")
STATISTICS = ("token", "tensor")
NOISES = ("position", "none")
PERCENTILES = ("values", "magnitudes")
NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
SMALLEST_MAD = 1e-12
LAYER = 0  # the module stands in the first layer and in no other


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Redistribution:
    """What is chosen, and where it goes; from `create`. Numbers are arrays: another value compiles nothing anew.

    Attributes:
      c: epsilon is 1.4826 MAD c, with MAD the median absolute deviation of |x|.
      p1: percentile of the activations up to which positive ones are spread, 0 to 100.
      p_min: least share that is chosen.
      p_max: largest share that is chosen.
      fraction: share that is chosen, instead of the share below epsilon; None: from c, p_min and p_max.
      seed: of the noise.
      mode: "replace" puts the new value, "add" adds it to the old one.
      statistics: over what medians and percentiles are taken: "token", each token's features, or "tensor", all tokens
        of the call but padding, as the authors' code does; then a result depends on what else is in the call.
      noise: "position", uniform in [0, 1), by (seed, layer, loop, position, feature); "none", 0.5 throughout.
      percentile_of: "values" or "magnitudes", which the authors take for Gemma, together with `fraction`.
    """

    c: jax.Array | np.ndarray
    p1: jax.Array | np.ndarray
    p_min: jax.Array | np.ndarray
    p_max: jax.Array | np.ndarray
    fraction: jax.Array | np.ndarray | None
    seed: jax.Array | np.ndarray
    mode: str = dataclasses.field(metadata={"static": True})
    statistics: str = dataclasses.field(metadata={"static": True})
    noise: str = dataclasses.field(metadata={"static": True})
    percentile_of: str = dataclasses.field(metadata={"static": True})

    @classmethod
    def create(cls, *, c: float = 0.13, p1: float = 99.5, p_min: float = 0.02, p_max: float = 0.25,
               fraction: float | None = None, seed: int = 0, mode: str = "replace", statistics: str = "token",
               noise: str = "position", percentile_of: str = "values") -> Redistribution:
        """Returns checked settings; `Redistribution` says what they mean, defaults are those of the authors.

        Raises:
          ValueError: one is out of its range, or a word is unknown.
        """
        if not 0 <= c < math.inf:
            raise ValueError(f"c={c} must be 0 or above, and finite: epsilon is 1.4826 MAD c; 0.05 to 0.5 is usual.")
        if not 0 <= p1 <= 100:
            raise ValueError(f"p1={p1} must lie in 0..100: it is a percentile; above 80 is usual.")
        for name, value in (("p_min", p_min), ("p_max", p_max), ("fraction", fraction)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in 0..1: it is a share of the activations.")
        if p_min > p_max:
            raise ValueError(f"p_min={p_min} is above p_max={p_max}: the share that is chosen lies between the two.")
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed!r} must be a whole number in [0, 2**32).")
        for name, word, known in (("mode", mode, MODES), ("statistics", statistics, STATISTICS),
                                  ("noise", noise, NOISES), ("percentile_of", percentile_of, PERCENTILES)):
            check_choice(name, word, known)

        def number(value: float) -> np.ndarray:
            return np.asarray(value, np.float32)

        return cls(number(c), number(p1), number(p_min), number(p_max), None if fraction is None else number(fraction),
                   np.asarray(seed, np.uint32), mode, statistics, noise, percentile_of)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured:
    """What the module reads off activations [..., F]; each [..., 1], or scalars in three axes for "tensor".

    Attributes:
      epsilon: what counts as near zero.
      share: of activations below it.
      chosen: how many are moved.
      threshold: the largest magnitude among them; -1 where there are none.
      top: up to where positive ones are spread.
      bottom: likewise for negative ones, as a magnitude.
    """

    epsilon: jax.Array
    share: jax.Array
    chosen: jax.Array
    threshold: jax.Array
    top: jax.Array
    bottom: jax.Array


def redistribute(x_BxLxF: jax.Array, positions_BxL: jax.Array, settings: Redistribution, *,
                 valid_BxL: jax.Array | None = None, loop: int | jax.Array = 0) -> jax.Array:
    """Moves the activations of smallest magnitude away from zero and keeps all others bit by bit.

    The round(fraction size) smallest are chosen, and others of exactly the same magnitude as the largest of these.
    With u in [0, 1) a positive one (zero counts as such) goes to u Q, a negative one to -u |min x|. Q is the
    percentile, or 0 where that is negative, for no sign changes.

    Args:
      x_BxLxF: activations.
      positions_BxL: position of each token in its text, from 0.
      settings: which, and where to.
      valid_BxL: True where there is a token; padding counts in no statistics and stays as it is. None: everywhere.
      loop: number of the pass over the layers, from 0; 0 for a trunk that runs once.

    Returns:
      [B, L, F] in the dtype of `x`. Statistics are in fp32 or wider.
    """
    wide = jnp.promote_types(jnp.float32, x_BxLxF.dtype)
    wide_BxLxF = x_BxLxF.astype(wide)
    found = measure(wide_BxLxF, settings, valid_BxL=valid_BxL)
    u_BxLxF = noise_at(settings, positions_BxL, x_BxLxF.shape[-1], loop).astype(wide)
    target_BxLxF = jnp.where(wide_BxLxF < 0, -u_BxLxF * found.bottom, u_BxLxF * found.top)
    if settings.mode == "add":
        target_BxLxF = wide_BxLxF + target_BxLxF
    moved_BxLxF = jnp.abs(wide_BxLxF) <= found.threshold
    if valid_BxL is not None:
        moved_BxLxF &= valid_BxL[:, :, None]
    return jnp.where(moved_BxLxF, target_BxLxF.astype(x_BxLxF.dtype), x_BxLxF)


def measure(x_BxLxF: jax.Array, settings: Redistribution, *, valid_BxL: jax.Array | None = None) -> Measured:
    """Returns the statistics of activations in fp32 or wider, as `redistribute` uses them."""
    B, L, F = x_BxLxF.shape
    there_BxLxF = jnp.ones((B, L, F), bool) if valid_BxL is None else jnp.broadcast_to(valid_BxL[:, :, None], (B, L, F))
    if settings.statistics == "tensor":
        x_BxLxF, there_BxLxF = x_BxLxF.reshape(1, 1, -1), there_BxLxF.reshape(1, 1, -1)
    else:  # a token has all its features; what padding gives is not used
        there_BxLxF = jnp.ones_like(there_BxLxF)
    count = jnp.maximum(jnp.sum(there_BxLxF, axis=-1, keepdims=True), 1)
    size_BxLxF = jnp.abs(x_BxLxF)

    def rising(values: jax.Array) -> jax.Array:
        return jnp.sort(jnp.where(there_BxLxF, values, jnp.inf), axis=-1)

    sizes, values = rising(size_BxLxF), rising(x_BxLxF)
    median = _quantile(sizes, count, 0.5)
    mad = jnp.maximum(_quantile(rising(jnp.abs(size_BxLxF - median)), count, 0.5), SMALLEST_MAD)
    epsilon = (NORMAL * mad * settings.c).astype(x_BxLxF.dtype)
    share = (jnp.sum(there_BxLxF & (size_BxLxF < epsilon), axis=-1, keepdims=True) / count).astype(x_BxLxF.dtype)
    if settings.fraction is None:
        fraction = jnp.clip(share, settings.p_min, settings.p_max)
    else:
        fraction = jnp.broadcast_to(jnp.asarray(settings.fraction, x_BxLxF.dtype), share.shape)
    chosen = jnp.rint(fraction * count).astype(jnp.int32)
    threshold = jnp.take_along_axis(sizes, jnp.maximum(chosen - 1, 0), axis=-1)
    threshold = jnp.where(chosen > 0, threshold, -1)
    top = _quantile(values if settings.percentile_of == "values" else sizes, count, settings.p1 / 100)
    return Measured(epsilon, share, chosen, threshold, jnp.maximum(top, 0), jnp.abs(values[..., :1]))


def noise_at(settings: Redistribution, positions_BxL: jax.Array, features: int, loop: int | jax.Array = 0) -> jax.Array:
    """Returns u_BxLxF in [0, 1), fp32: it depends on nothing but the seed, the loop, the position and the feature."""
    if settings.noise == "none":
        return jnp.full((*positions_BxL.shape, features), 0.5, jnp.float32)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), LAYER), loop)
    u = jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position), (features,), jnp.float32))(
        positions_BxL.reshape(-1))
    return u.reshape(*positions_BxL.shape, features)


def gate_function(settings: Redistribution | None, positions_BxL: jax.Array | None, valid_BxL: jax.Array | None = None,
                  loop: int | jax.Array = 0) -> Callable[[jax.Array], jax.Array] | None:
    """Returns what the first layer's MLP is to do with its activated gate; None where nothing is to be done.

    Args:
      settings: of the module; None: it is off.
      positions_BxL: as for `redistribute`.
      valid_BxL: likewise.
      loop: likewise.
    """
    if settings is None:
        return None
    assert positions_BxL is not None  # only contexts of single positions, which no trunk runs on, have none
    return lambda g_BxLxF: redistribute(g_BxLxF, positions_BxL, settings, valid_BxL=valid_BxL, loop=loop)


def _quantile(rising: jax.Array, count: jax.Array, share: float | jax.Array | np.ndarray) -> jax.Array:
    """Returns the quantile of the first `count` of rising values [..., S], between neighbours by a line, [..., 1]."""
    place = (jnp.asarray(share, rising.dtype) * (count - 1)).astype(rising.dtype)
    below = jnp.minimum(jnp.floor(place).astype(jnp.int32), count - 1)
    low, high = (jnp.take_along_axis(rising, at, axis=-1) for at in (below, jnp.minimum(below + 1, count - 1)))
    return low + (high - low) * (place - below)
