"""AdamW with clipping, and the learning rate by step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtp_jax.checkpoints.structure import nest
from mtp_jax.config import OptimizerConfig
from mtp_jax.training.state import Params, flatten_params


def learning_rate(config: OptimizerConfig, horizon: int) -> optax.Schedule:
    """Returns the learning rate of a step.

    The warm-up rises linearly and reaches the peak at step `warmup_steps`; the last step of the horizon has
    decay_ratio x peak; later steps keep it.

    Args:
      config: the optimizer's section.
      horizon: steps that the schedule spans.

    Returns:
      A function of the number of the step, from 1.
    """
    peak, last = config.learning_rate, config.learning_rate * config.decay_ratio
    warmup = config.warmup_steps
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, horizon - warmup, alpha=config.decay_ratio)
    elif config.schedule == "wsd":
        steps = max(1, min(round(config.decay_fraction * horizon), horizon - warmup))
        decay = optax.linear_schedule(peak, last, steps, transition_begin=horizon - warmup - steps)
    else:
        decay = optax.constant_schedule(peak)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(config: OptimizerConfig, axes: Params) -> optax.GradientTransformation:
    """Builds what turns gradients into steps of learning rate 1: clip, Adam, decoupled weight decay.

    The train step multiplies by the learning rate, so that what it logs is what it used.

    Args:
      config: the optimizer's section.
      axes: logical axes of the parameters that train; norms have the axis "norm" and do not decay,
        nor do single numbers, which have none.
    """
    stages = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    stages.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
    if config.weight_decay:
        decays = nest({path: bool(names) and "norm" not in names for path, names in flatten_params(axes).items()})
        stages.append(optax.add_decayed_weights(config.weight_decay, mask=decays))
    inner = optax.chain(*stages)

    def init(params: Any) -> Any:
        # Gradients come in fp32 or wider, whatever the parameters are kept in, and so do the moments from the start.
        return inner.init(jax.tree.map(lambda p: p.astype(jnp.promote_types(jnp.float32, p.dtype)), params))

    return optax.GradientTransformation(init, inner.update)


def rest_idle_heads(updates: Params, axes: Params, *, needed_N: jax.Array, weighted_N: jax.Array) -> Params:
    """Sets the update of heads that no loss needs to zero: they neither decay nor drift on old momentum.

    Args:
      updates: what the optimizer would add to the parameters.
      axes: their logical axes; those that start with "pred_heads" have one entry a head.
      needed_N: bool, the heads whose layers a loss needs, their own or that of a head that stacks on them.
      weighted_N: bool, the heads with a loss of their own, which alone needs their own unembedding.
    """
    flat_axes = flatten_params(axes)

    def rest(path: str, update: jax.Array) -> jax.Array:
        if flat_axes[path][:1] != ("pred_heads",):
            return update
        active_N = weighted_N if path.startswith("unembedding/") else needed_N
        active_N = active_N[active_N.shape[0] - update.shape[0]:]  # head 1 may have no entry (`HeadKind.first_own`)
        return jnp.where(active_N.reshape((-1,) + (1,) * (update.ndim - 1)), update, 0)

    return nest({path: rest(path, update) for path, update in flatten_params(updates).items()})


def state_shardings(optimizer: optax.GradientTransformation, params: Params, shardings: Params,
                    replicated: Any) -> tuple[Any, Any]:
    """Returns the optimizer state's shapes and shardings: moments lie as their parameters, counters everywhere.

    Args:
      optimizer: from `make_optimizer`.
      params: nested dict of jax.ShapeDtypeStruct.
      shardings: the same nesting, of shardings.
      replicated: the sharding of what every device holds.
    """
    shapes = jax.eval_shape(optimizer.init, params)
    laid_out = optax.tree_utils.tree_map_params(optimizer, lambda _, sharding: sharding, shapes, shardings,
                                                transform_non_params=lambda _: replicated)
    return shapes, laid_out
