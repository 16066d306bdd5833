"""A tiny model and batch, and its loss and gradient as training computes them, compiled once a form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ModelConfig
from mtp_jax.model import Execution, ModelSpec
from mtp_jax.objective import mtp_cross_entropy, multi_token_targets

# For jit: the CPU compiler then takes a fraction of its time. The programs are slower, which tiny ones do not feel.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ROLLED = Execution(unroll=False)
B, L = 2, 12


def make_config(**changes):
    """Returns a model of four layers, three of them heads; in fp64 where the test has the fixture `x64`."""
    dtype = jax.dtypes.canonicalize_dtype("float64").name
    values = {"num_heads": 3, "num_layers": 4, "d_model": 16, "num_attention_heads": 2, "d_ff": 24, "vocab_size": 11,
              "vocab_multiple": 8, "dtype": dtype, "param_dtype": dtype}
    return ModelConfig(**{**values, **changes})


def make_params(config, seed=0):
    """Returns random parameters, large enough that each matters; the scales of the norms are near 1."""
    random = np.random.default_rng(seed)
    flat, tree = jax.tree_util.tree_flatten_with_path(ModelSpec.create(config).shapes)
    leaves = []
    for path, leaf in flat:
        norm = path[-1].key == "scale"
        value = random.normal(size=leaf.shape) * (0.2 if norm else 0.4) + (1 if norm else 0)
        leaves.append(jnp.asarray(value, leaf.dtype))
    return jax.tree.unflatten(tree, leaves)


def make_batch(seed=0, vocab_size=11):
    """Returns two rows: one of two documents and padding, one of a single document."""
    random = np.random.default_rng(seed)
    lengths = [(6, 4), (12,)]
    segments, positions = np.zeros((2, B, L), np.int32)
    for row, parts in enumerate(lengths):
        start = 0
        for number, length in enumerate(parts, 1):
            segments[row, start:start + length] = number
            positions[row, start:start + length] = np.arange(length)
            start += length
    return {"tokens": random.integers(0, vocab_size, (B, L), dtype=np.int32), "segments": segments,
            "positions": positions}


def loss_of(config, execution, params, batch, scale_N, *, chunks=1, detach_trunk=False):
    """Returns (loss, (HeadSums, states)) as the train step computes them."""
    model = ModelSpec.create(config).bind(params)
    h_NxBxLxD = model(batch["tokens"], batch["segments"], batch["positions"], weights_N=scale_N,
                      detach_trunk=detach_trunk, execution=execution)
    targets_NxBxL, mask_NxBxL = multi_token_targets(batch["tokens"], batch["segments"], batch["positions"],
                                                    config.num_heads)
    loss, sums = mtp_cross_entropy(h_NxBxLxD, model.unembedding_matrix(), targets_NxBxL, mask_NxBxL, scale_N,
                                   vocab_size=config.vocab_size, chunks=chunks, execution=execution)
    return loss, (sums, h_NxBxLxD)


@functools.cache
def gradient_function(config, execution=ROLLED, chunks=1, detach_trunk=False):
    """Returns the jitted (params, batch, scale_N) -> ((loss, (sums, states, logits)), gradient)."""
    def function(params, batch, scale_N):
        (loss, (sums, h_NxBxLxD)), gradient = jax.value_and_grad(
            lambda p: loss_of(config, execution, p, batch, scale_N, chunks=chunks, detach_trunk=detach_trunk),
            has_aux=True)(params)
        logits_NxBxLxV = ModelSpec.create(config).bind(params).logits(h_NxBxLxD)[..., :config.vocab_size]
        return (loss, (sums, h_NxBxLxD, logits_NxBxLxV)), gradient

    return jax.jit(function, compiler_options=QUICK)


def assert_trees_close(got, want, tolerance):
    """Compares leaf by leaf: the largest difference, over the largest number of the leaf or 1."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"{jax.tree_util.keystr(path)}: {a.shape} and {b.shape}"
        assert np.all(np.isfinite(a)) and np.all(np.isfinite(b)), f"{jax.tree_util.keystr(path)} is not finite"
        error = np.max(np.abs(a - b), initial=0) / max(1.0, np.max(np.abs(b), initial=0))
        assert error <= tolerance, f"{jax.tree_util.keystr(path)} differs by {error}"


def equations(jaxpr):
    """Yields every equation of a jaxpr, also of those inside loops, branches, calls and rules."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def primitives(function, *args):
    """Returns the names of the primitives of a function, one entry an equation."""
    return [equation.primitive.name for equation in equations(jax.make_jaxpr(function)(*args).jaxpr)]


def largest_array(function, *args):
    """Returns the number of elements of the largest array that a function computes."""
    return max(variable.aval.size for equation in equations(jax.make_jaxpr(function)(*args).jaxpr)
               for variable in equation.outvars)
