"""The trunk's part of a forward: its layers once, or in loops that each position may leave early.

After every loop the final norm's output goes into the next, and the exit gate reads it (mtp_jax/model/exit_gate.py).
A position leaves after the first loop in which the probability to have left reaches the threshold. Its state stays, and
what others see of it in later loops are its keys and values of that loop. So a token's states depend on the text before
it alone, and not on what else stands in its block or batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtp_jax.config import ModelConfig
from mtp_jax.decoding.weights import Weights, builders
from mtp_jax.model.cached import BlockContext, KeysValues
from mtp_jax.model.exit_gate import gate_logits
from mtp_jax.model.redistribution import gate_function

LoopKeysValues = tuple[KeysValues, ...]  # one a layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Left:
    """When positions left the loops.

    Attributes:
      after_BxQ: the loop after which each position left, from 1; int32.
      run: how many loops were run, for all of them together; int32.
    """

    after_BxQ: jax.Array
    run: jax.Array


def run_trunk(config: ModelConfig, weights: Weights, x_BxQxD: jax.Array, context: BlockContext,
              memories: Sequence[KeysValues | None], dtype: jax.typing.DTypeLike, counts_BxQ: jax.Array | None = None
              ) -> tuple[jax.Array, LoopKeysValues, Left | None]:
    """Runs the trunk on a block.

    Args:
      config: the model's shape.
      weights: its parameters; with an `exit_threshold` positions leave early.
      x_BxQxD: token vectors.
      context: of the block.
      memories: what is cached, one a loop and layer, loop by loop.
      dtype: of keys and values.
      counts_BxQ: positions whose states anybody needs: when these have left, no further loop is run. None: all.

    Returns:
      z_BxQxD, the block's keys and values in the order of `memories`, and when positions left; None where all loops are
      run whatever the gate would say.
    """
    build = builders(config)
    layers, norm = [build.layer(leaves) for leaves in weights.trunk], build.norm(weights.final_norm)

    def once(x_BxQxD: jax.Array, loop: int, here_BxQ: jax.Array | None = None, before: LoopKeysValues = ()
             ) -> tuple[jax.Array, LoopKeysValues]:
        """Runs the layers once; where `here_BxQ` is False the keys and values stay those of the loop before."""
        news: list[KeysValues] = []
        on_gate = gate_function(weights.redistribution, context.positions_BxQ, counts_BxQ, loop)
        for number, layer in enumerate(layers):
            new = layer.keys_values(x_BxQxD, context, dtype)
            if here_BxQ is not None:
                here_Bx1xQx1 = here_BxQ[:, None, :, None]
                new = jax.tree.map(lambda new, old: jnp.where(here_Bx1xQx1, new, old), new, before[number])  # noqa: B023
            x_BxQxD = layer.extend(x_BxQxD, context, memories[loop * len(layers) + number], new,
                                   on_gate if number == 0 else None)
            news.append(new)
        return x_BxQxD, tuple(news)

    z_BxQxD, news = once(x_BxQxD, 0)
    found = news
    if weights.exit_threshold is None:
        for loop in range(1, config.loops):
            z_BxQxD, news = once(norm(z_BxQxD), loop)
            found += news
        return z_BxQxD, found, None

    after_BxQ = jnp.zeros(x_BxQxD.shape[:2], jnp.int32)  # 0: still here
    run = jnp.ones((), jnp.int32)
    log_stay_BxQ: jax.Array | float = 0.0
    for loop in range(1, config.loops):
        x_BxQxD = norm(z_BxQxD)
        log_stay_BxQ = log_stay_BxQ + _log_stay(weights, x_BxQxD)
        # In logarithms, so that a threshold of 1 is never reached: 1 - (1 - p) would round to it.
        leaves_BxQ = log_stay_BxQ <= jnp.log1p(-weights.exit_threshold)
        after_BxQ = jnp.where((after_BxQ == 0) & leaves_BxQ, loop, after_BxQ)
        here_BxQ = after_BxQ == 0

        def on(z_BxQxD, news, run, x_BxQxD=x_BxQxD, here_BxQ=here_BxQ, loop=loop):
            new_BxQxD, news = once(x_BxQxD, loop, here_BxQ, news)
            return jnp.where(here_BxQ[..., None], new_BxQxD, z_BxQxD), news, run + 1

        wanted_BxQ = here_BxQ if counts_BxQ is None else here_BxQ & counts_BxQ
        z_BxQxD, news, run = jax.lax.cond(jnp.any(wanted_BxQ), on, lambda *gone: gone, z_BxQxD, news, run)
        found += news
    return z_BxQxD, found, Left(jnp.where(after_BxQ == 0, config.loops, after_BxQ), run)


def _log_stay(weights: Weights, x_BxQxD: jax.Array) -> jax.Array:
    """Returns log(1 - lambda), the gate's word on states after the final norm, [B, Q] in fp32 or wider."""
    gate = weights.gate
    assert gate is not None  # `DecodingModel` takes no threshold for a model without one
    return jax.nn.log_sigmoid(-gate_logits(x_BxQxD, gate["kernel"], gate["bias"]))
