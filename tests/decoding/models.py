"""The models that the tests of decoding share: random ones of every kind, and small ones trained for seconds."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.model import ModelSpec
from tests.decoding.naive import Naive
from tests.small_model import ROLLED, loss_of, make_config, make_params
from tests.training.small_runs import WORDS

WINDOW = 60  # with a block of 4 behind it the 64 positions that a program is compiled for
RANDOM = {
    "parallel": dict(num_heads=2, num_layers=3, num_attention_heads=4, num_kv_heads=2, qk_norm=True,
                     extra_trunk_layers=1),
    "linear": dict(head_kind="linear", num_heads=2, num_layers=2, tie_embedding=True),
    "causal": dict(head_kind="causal", unembedding="replicated", num_attention_heads=4, num_kv_heads=1),
    "anticausal": dict(head_kind="anticausal", unembedding="replicated", qk_norm=True),
    "sequential": dict(head_kind="sequential", num_heads=4, num_layers=2, num_attention_heads=4, num_kv_heads=2,
                       unembedding="replicated"),
    "medusa": dict(head_kind="medusa", medusa_layers=2, num_layers=1, unembedding="replicated"),
}
# Code for 120 steps pays for some optimizing, but not for all of it.
TRAINING = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": True}
ROW = 64  # tokens of a row in training
BYTES = dict(num_heads=4, num_layers=5, d_model=32, d_ff=48, vocab_size=ByteTokenizer.vocab_size)


def text(seed, words):
    """Returns made-up code in which most words can be foreseen from the one before."""
    draw = random.Random(seed)
    chosen = [draw.choice(WORDS)]
    for _ in range(words):
        follow = 5 * WORDS.index(chosen[-1]) + draw.choice((1, 1, 1, 1, 8))
        chosen.append(WORDS[follow % len(WORDS)])
    return " ".join(chosen)


@functools.cache
def random_model(name, **changes):
    """Returns (spec, params, Naive) of an untrained model; its logits are spread, its drafts right by chance."""
    return _entry(make_config(**{**RANDOM[name], **changes}), None)


def _entry(config, params):
    spec = ModelSpec.create(config)
    params = make_params(config) if params is None else params
    return spec, params, Naive(spec, params, WINDOW)


@functools.cache
def _trained(kind):
    """Returns the parameters, numpy in fp32, of a byte model after 120 steps."""
    with jax.enable_x64(False):
        config = make_config(**BYTES, head_kind=kind)
        ids = np.concatenate([[ByteTokenizer.bos_id], ByteTokenizer().encode(text(1, 5000))]).astype(np.int32)
        params = jax.tree.map(lambda leaf: leaf if jnp.mean(leaf) > 0.5 else 0.3 * leaf, make_params(config))
        optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 120))
        scale_N = jnp.full(config.num_heads, 1.0 / (8 * ROW))
        segments_BxL = np.ones((8, ROW), np.int32)
        positions_BxL = np.broadcast_to(np.arange(ROW, dtype=np.int32), (8, ROW))

        def step(params, state, tokens_BxL):
            batch = {"tokens": tokens_BxL, "segments": segments_BxL, "positions": positions_BxL}
            gradient = jax.grad(lambda p: loss_of(config, ROLLED, p, batch, scale_N)[0])(params)
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step, compiler_options=TRAINING)
        state, draw = optimizer.init(params), np.random.default_rng(0)
        for _ in range(120):
            starts = draw.integers(0, len(ids) - ROW, 8)
            tokens_BxL = np.stack([ids[start:start + ROW] for start in starts])
            tokens_BxL[0, 0] = ByteTokenizer.bos_id
            params, state = step(params, state, tokens_BxL)
        return jax.device_get(params)


@functools.cache
def trained_model(kind="parallel", dtype="float64"):
    """Returns (spec, params, Naive) of a trained byte model of four heads; fp64 needs the fixture `x64`."""
    config = make_config(**{**BYTES, "head_kind": kind, "dtype": dtype, "param_dtype": dtype})
    return _entry(config, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), _trained(kind)))
