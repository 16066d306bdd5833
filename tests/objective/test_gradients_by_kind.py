"""The gradient of every parameter equals that of the naive loss on a plain transformer, for every kind and n."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import plain_model
from tests.small_model import QUICK, assert_trees_close, gradient_function, make_batch, make_config, make_params

KINDS = ("parallel", "linear", "causal", "anticausal", "sequential", "medusa")


def compare(kind, num_heads, unembedding, tolerance):
    """Compares values and gradients, with uneven weights on rows of documents and padding."""
    config = make_config(num_heads=num_heads, num_layers=num_heads + 1, head_kind=kind, unembedding=unembedding)
    params, batch = make_params(config), make_batch()
    scale_N = jnp.asarray(np.linspace(0.02, 0.2, num_heads), params["final_norm"]["scale"].dtype)
    (loss, _), gradient = gradient_function(config, chunks=2)(params, batch, scale_N)
    naive = jax.jit(jax.value_and_grad(lambda p: plain_model.loss(config, p, batch, scale_N)[0]),
                    compiler_options=QUICK)
    want_loss, want_gradient = naive(params)
    assert_trees_close(loss, want_loss, tolerance)
    assert_trees_close(gradient, want_gradient, tolerance)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradient))


def fast(kind, num_heads):
    """Every kind with 4 heads but anticausal, which stacks as causal does; with 1 one kind of each build; with 2, that
    have their own unembeddings, one."""
    return (num_heads == 4 and kind != "anticausal") or (num_heads, kind) in (
        (1, "parallel"), (1, "sequential"), (2, "parallel"), (2, "anticausal"))


@pytest.mark.parametrize("kind, num_heads", [
    pytest.param(kind, n, marks=() if fast(kind, n) else pytest.mark.slow) for kind in KINDS for n in (1, 2, 4, 8)])
def test_gradient_is_that_of_the_naive_loss_in_fp64(kind, num_heads, x64):
    compare(kind, num_heads, "replicated" if num_heads == 2 else "shared", 1e-12)


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_gradient_is_that_of_the_naive_loss_in_fp32(kind):
    compare(kind, 4, "shared", 2e-5)
