"""The learning rate by step, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import OptimizerConfig
from mtp_jax.training.optimizer import learning_rate, make_optimizer, rest_idle_heads


def test_cosine_reaches_the_peak_after_the_warmup_and_the_ratio_at_the_last_step():
    rate = learning_rate(OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay_ratio=0.03), horizon=100)
    assert rate(10) == pytest.approx(2.0)
    assert rate(5) == pytest.approx(1.0)
    assert rate(100) == pytest.approx(0.06)
    assert rate(55) == pytest.approx((2.0 + 0.06) / 2)
    assert rate(500) == pytest.approx(0.06)


def test_wsd_is_stable_and_then_linear():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay_ratio=0.1, decay_fraction=0.2,
                                         schedule="wsd"), horizon=100)
    assert [float(rate(step)) for step in (10, 40, 80)] == [1.0, 1.0, 1.0]
    assert rate(90) == pytest.approx(0.55)
    assert rate(100) == pytest.approx(0.1)


def test_constant_without_warmup():
    rate = learning_rate(OptimizerConfig(learning_rate=0.5, warmup_steps=0, schedule="constant"), horizon=10)
    assert [float(rate(step)) for step in (1, 10, 99)] == [0.5, 0.5, 0.5]


def test_norms_do_not_decay_and_matrices_do():
    params = {"matrix": jnp.ones((2, 2)), "final_norm": {"scale": jnp.ones(2)}}
    axes = {"matrix": ("embed", "mlp"), "final_norm": {"scale": ("norm",)}}
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), axes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["matrix"], 0.1)
    np.testing.assert_allclose(updates["final_norm"]["scale"], 0.0)


def test_the_gradient_is_clipped_to_the_norm():
    grads = {"w": jnp.asarray([3.0, 4.0])}
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0, weight_decay=0.0), {"w": ("embed",)})
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(state[1].mu["w"], 0.1 * np.array([0.6, 0.8]), rtol=1e-6)


def test_idle_heads_keep_their_parameters():
    updates = {name: {"w": jnp.ones((3, 2))} for name in ("heads", "trunk", "unembedding")}
    axes = {"heads": {"w": ("pred_heads", "embed")}, "trunk": {"w": ("layers", "embed")},
            "unembedding": {"w": ("pred_heads", "embed")}}
    rested = rest_idle_heads(updates, axes, needed_N=jnp.asarray([True, False, True]),
                             weighted_N=jnp.asarray([False, False, True]))
    np.testing.assert_array_equal(rested["heads"]["w"], [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(rested["unembedding"]["w"], [[0, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(rested["trunk"]["w"], updates["trunk"]["w"])
    updates["heads"]["w"] = jnp.ones((2, 2))  # of a kind whose head 1 has no parameters
    rested = rest_idle_heads(updates, axes, needed_N=jnp.asarray([True, False, True]),
                             weighted_N=jnp.asarray([True, False, True]))
    np.testing.assert_array_equal(rested["heads"]["w"], [[0, 0], [1, 1]])
