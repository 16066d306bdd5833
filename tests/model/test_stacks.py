"""Ways to run a stack: loop or straight line, side by side, with and without recomputation."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import ComputeConfig
from mtp_jax.model import Execution, resolve_execution
from mtp_jax.model.stacks import checkpoint, fold_heads, map_heads, scan
from tests.small_model import assert_trees_close, primitives


def body(carry, leaves):
    """One step of a small recurrence whose outcome depends on the order of the steps."""
    carry = jnp.tanh(carry @ leaves["kernel"])
    return carry, {"sum": jnp.sum(carry), "state": carry}


def stack(length, seed=0):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.normal(size=3)), {"kernel": jnp.asarray(random.normal(size=(length, 3, 3)))}


@pytest.mark.parametrize("length", [1, 4])
def test_unrolled_equals_the_loop(length, x64):
    x, stacked = stack(length)

    def total(x, stacked, unroll):
        carry, outputs = scan(body, x, stacked, unroll)
        return jnp.sum(carry) + jnp.sum(outputs["sum"] ** 2), outputs

    got, want = (jax.value_and_grad(total, (0, 1), has_aux=True)(x, stacked, unroll) for unroll in (True, False))
    assert_trees_close(got, want, 1e-14)
    states, carry = [], x
    for i in range(length):
        carry = np.tanh(carry @ stacked["kernel"][i])
        states.append(carry)
    assert_trees_close(want[0][1]["state"], np.stack(states), 1e-14)
    assert "scan" in primitives(lambda x: total(x, stacked, False), x)
    assert "scan" not in primitives(lambda x: total(x, stacked, True), x)


EXECUTIONS = [Execution(unroll=unroll, heads_abreast=abreast) for unroll in (False, True) for abreast in (1, 2, 4)]


@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda e: f"unroll={e.unroll}, abreast={e.heads_abreast}")
def test_heads_abreast_keep_their_order_and_their_sum(execution):
    heads = jnp.arange(8.0).reshape(4, 2)
    carry, outputs = fold_heads(lambda carry, x: ({"sum": carry["sum"] + x}, {"twice": 2 * x, "first": x[0]}),
                                {"sum": jnp.zeros(2)}, heads, execution)
    assert carry["sum"].tolist() == [12, 16]
    assert outputs["twice"].tolist() == (2 * heads).tolist() and outputs["first"].tolist() == [0, 2, 4, 6]
    assert map_heads(lambda x: x + 1, heads, execution).tolist() == (heads + 1).tolist()


def test_remat_policies_recompute_what_they_say():
    """Counts a matmul and a tanh in value and gradient: nothing, the tanh, both are computed again."""
    def counts(remat):
        block = checkpoint(lambda w, x: jnp.sin(jnp.tanh(x @ w)), remat)
        names = primitives(jax.grad(lambda w, x: jnp.sum(block(w, x)), (0, 1)), jnp.ones((3, 3)), jnp.ones((2, 3)))
        counter = collections.Counter(names)
        return counter["dot_general"], counter["tanh"]

    assert counts("none") == (3, 1)
    assert counts("dots") == (3, 2)
    assert counts("full") == (4, 2)


def test_unknown_remat_policy():
    with pytest.raises(ValueError, match='compute.remat=\'ful\'.*Did you mean "full"'):
        checkpoint(body, "ful")


def resolve(num_heads=4, axis=1, platform="cpu", **compute):
    return resolve_execution(ComputeConfig(**compute), num_heads=num_heads, pred_heads_axis=axis, platform=platform,
                             kernel="some", skip_idle_heads=True)


@pytest.mark.parametrize("arguments, want", [
    ({}, Execution("none", True, 1, None, True, "some")),
    ({"platform": "tpu", "remat": "full"}, Execution("full", False, 1, None, True, "some")),
    ({"platform": "gpu", "scan_layers": False}, Execution("none", True, 1, None, True, "some")),
    ({"scan_layers": True}, Execution("none", False, 1, None, True, "some")),
    ({"run_heads": "vmap"}, Execution("none", True, 4, None, True, "some")),
    ({"axis": 2}, Execution("none", True, 2, "pred_heads", True, "some")),
    ({"axis": 4, "run_heads": "vmap"}, Execution("none", True, 4, "pred_heads", True, "some")),
])
def test_resolution_from_config_and_devices(arguments, want):
    assert resolve(**arguments) == want


def test_mesh_axis_that_does_not_divide_the_heads():
    with pytest.raises(ValueError, match="pred_heads:3.*model.num_heads=4.*divisor"):
        resolve(axis=3)


def test_scanning_over_heads_that_are_spread_over_devices():
    with pytest.raises(ValueError, match="compute.run_heads='scan' with pred_heads:2.*'vmap' or 'auto'"):
        resolve(axis=2, run_heads="scan")
