"""Our logits, and those of others compared with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.checkpoints import structure
from mtp_jax.model import Execution, ModelSpec
from tests.small_model import QUICK


@functools.cache
def _program(config):
    spec = ModelSpec.create(config)

    def run(params, tokens_BxL):
        ones = jnp.ones_like(tokens_BxL)
        positions = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
        model = spec.bind(params)
        return model.logits(model(tokens_BxL, ones, positions, execution=Execution(unroll=False)))[
            ..., :config.vocab_size]

    return jax.jit(run, compiler_options=QUICK)


def logits(config, arrays, tokens_BxL):
    """Returns the logits of all heads [N, B, L, V] of random arrays, {golden path: array}."""
    return np.asarray(_program(config)(structure.nest(arrays), jnp.asarray(tokens_BxL, jnp.int32)))


def error(got, want):
    """Returns the largest difference, over the largest number."""
    assert got.shape == want.shape
    return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))
