"""Head weights over the steps of a run.

A schedule of your own is a function under `@register_schedule("name")`, here or in the experiment that uses it;
`config.objective.schedule = "name"` then selects it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.config import ObjectiveConfig, check_choice
from mtp_jax.registry import claim

Schedule = Callable[[ObjectiveConfig, int, int, Any], jax.Array]

SCHEDULES: dict[str, Schedule] = {}
MayRest = bool | Callable[[ObjectiveConfig], bool]
_HEADS_MAY_REST: dict[str, MayRest] = {}


def register_schedule(name: str, *, heads_may_rest: MayRest) -> Callable[[Schedule], Schedule]:
    """Registers a schedule under `name`; a decorator.

    The function takes (config, num_heads, horizon in steps, step as a traced int32 scalar) and returns weights_N >= 0.
    It is traced once: what depends on the step has to be jnp.

    Args:
      name: the value of config.objective.schedule.
      heads_may_rest: whether a weight can be 0 at some step, or a function that tells it of the config. Such heads are
        then skipped at run time.

    Raises:
      ValueError: the name is taken by another function.
    """
    def register(schedule: Schedule) -> Schedule:
        claim("schedule", name, SCHEDULES, schedule)
        SCHEDULES[name], _HEADS_MAY_REST[name] = schedule, heads_may_rest
        return schedule

    return register


def _may_rest(config: ObjectiveConfig) -> bool:
    """Tells whether the schedule itself gives a head the weight 0 at some step."""
    may_rest = _HEADS_MAY_REST[config.schedule]
    return may_rest(config) if callable(may_rest) else may_rest


@dataclasses.dataclass(frozen=True)
class HeadWeights:
    """The weights of a run.

    Attributes:
      config: the objective's section.
      num_heads: N.
      horizon: steps that the schedule spans.
    """

    config: ObjectiveConfig
    num_heads: int
    horizon: int

    @property
    def heads_may_rest(self) -> bool:
        """Whether a head's weight is 0 at some step."""
        return _may_rest(self.config) or 0.0 in self.config.head_weights

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns weights_N, fp32, for the step that starts with `step` steps done."""
        weights_N = SCHEDULES[self.config.schedule](self.config, self.num_heads, self.horizon, step)
        if self.config.head_weights:
            weights_N = weights_N * jnp.asarray(self.config.head_weights, jnp.float32)
        return weights_N.astype(jnp.float32)

    def reduce(self, weights_N: jax.Array) -> jax.Array:
        """Returns the factor on each head's mean loss: the weight, over the sum of weights for reduction "mean"."""
        if self.config.reduction == "mean":
            return weights_N / jnp.sum(weights_N)
        return weights_N


def head_weights(config: ObjectiveConfig, num_heads: int, horizon: int) -> HeadWeights:
    """Builds the weights of a run.

    Raises:
      ValueError: the schedule is unknown (the nearest name is suggested), or leaves no head a weight at some step.
    """
    check_choice("objective.schedule", config.schedule, SCHEDULES)
    alone = config.schedule in ("deepseek", "forward", "reverse") and _may_rest(config)
    if alone and config.head_weights and config.head_weights[0] == 0:
        raise ValueError(f"objective.head_weights={config.head_weights} gives head 1 no weight, so every head has "
                         f"weight 0 while objective.schedule={config.schedule!r} trains head 1 alone: give it a "
                         "weight, or choose another schedule.")
    return HeadWeights(config, num_heads, horizon)


@register_schedule("constant", heads_may_rest=False)
def constant(config: ObjectiveConfig, num_heads: int, horizon: int, step: jax.Array) -> jax.Array:
    """All 1: the paper's plain sum (section 2)."""
    del config, horizon, step
    return jnp.ones(num_heads)


@register_schedule("deepseek", heads_may_rest=lambda config: 0 in (config.further_weight_initial,
                                                                   config.further_weight_final))
def deepseek(config: ObjectiveConfig, num_heads: int, horizon: int, step: jax.Array) -> jax.Array:
    """Head 1 has 1; heads 2..N share `further_weight_initial`, and from `switch_fraction` of the horizon on
    `further_weight_final` (DeepSeek-V3, arXiv 2412.19437, section 4.2: 0.3, then 0.1)."""
    late = step >= config.switch_fraction * horizon
    share = jnp.where(late, config.further_weight_final, config.further_weight_initial) / max(num_heads - 1, 1)
    return jnp.where(jnp.arange(num_heads) == 0, 1.0, share)


def _stage(num_heads: int, horizon: int, step: jax.Array) -> jax.Array:
    """Returns which of N equal parts of the horizon `step` lies in, from 0.

    floor(step N / horizon) by the first steps of the parts, whole numbers of Python: int32 would overflow in a product.
    """
    starts = [-(-part * horizon // num_heads) for part in range(1, num_heads)]
    return sum((jnp.asarray(step >= start, jnp.int32) for start in starts), jnp.zeros((), jnp.int32))


@register_schedule("forward", heads_may_rest=True)
def forward(config: ObjectiveConfig, num_heads: int, horizon: int, step: jax.Array) -> jax.Array:
    """Head 1 at first, one head more in each N-th of the horizon (arXiv 2505.22757)."""
    del config
    return (jnp.arange(num_heads) <= _stage(num_heads, horizon, step)).astype(jnp.float32)


@register_schedule("reverse", heads_may_rest=True)
def reverse(config: ObjectiveConfig, num_heads: int, horizon: int, step: jax.Array) -> jax.Array:
    """All heads at first, one head fewer in each N-th of the horizon, head 1 to the end (arXiv 2505.22757)."""
    del config
    return (jnp.arange(num_heads) < num_heads - _stage(num_heads, horizon, step)).astype(jnp.float32)
