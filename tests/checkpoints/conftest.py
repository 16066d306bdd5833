"""A small train state, and functions that make and compare states."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtp_jax.config import CheckpointConfig

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    step: Any
    params: Any
    opt_state: Any


def make_params(seed=0, *, heads=2, trunk=3, width=4, unembedding="shared", dtype=jnp.float32):
    """Parameters in the layout of the model, tiny."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    def layers(count):
        return {"attention": {"query": normal(count, width, 2, 2)}, "mlp_norm": {"scale": normal(count, width)}}

    return {"embedding": {"embedding": normal(8, width)}, "trunk": layers(trunk), "heads": layers(heads),
            "final_norm": {"scale": normal(width)},
            "unembedding": {"kernel": normal(*((8, width) if unembedding == "shared" else (heads, 8, width)))}}


def make_state(seed=0, **options):
    """A state whose every array differs with `seed`."""
    params = make_params(seed, **options)
    opt_state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype) * seed, OPTIMIZER.init(params))
    return TrainState(jnp.int32(seed), params, opt_state)


@pytest.fixture
def state_of():
    return make_state


@pytest.fixture
def params_of():
    return make_params


@pytest.fixture
def config():
    return CheckpointConfig


@pytest.fixture
def assert_same():
    """Compares two trees bit for bit, with structure and dtypes."""
    def compare(got, want):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want)):
            assert a.dtype == b.dtype and a.shape == b.shape, path
            assert np.array_equal(np.asarray(a), np.asarray(b)), path
    return compare


@pytest.fixture
def abstract():
    return lambda state: jax.eval_shape(lambda: state)
