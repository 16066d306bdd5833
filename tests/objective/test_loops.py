"""The objectives of a looped trunk against their definitions on a plain model, and the exit distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.model import ModelSpec
from mtp_jax.model.exit_gate import log_exit_distribution
from mtp_jax.objective import expected_loss, gate_loss, last_loop, multi_token_targets
from tests import plain_model
from tests.small_model import QUICK, ROLLED, assert_trees_close, make_batch, make_config, make_params

SHARPNESS, MARGIN = 3.0, 0.1


def looped(**changes):
    return make_config(**{"num_heads": 2, "num_layers": 3, "trunk_kind": "looped", "loops": 3, **changes})


def naive_exit(gates):
    """Returns p(t) for the gate's probabilities, one loop after the other."""
    stays, found = 1.0, []
    for t, gate in enumerate(gates, 1):
        found.append(stays if t == len(gates) else gate * stays)
        stays = stays * (1 - gate)
    return found


def naive_expected(config, params, batch, scale_N, entropy_scale):
    """Stage I by its definition: sum over loops of p(t) times the loss there, less the entropy."""
    target_NxBxL, mask_NxBxL = plain_model.targets(batch, config.num_heads)
    found, gates = plain_model.every_loop(config, params, batch)
    p_T, total = naive_exit(gates), 0
    for p_BxL, logits_N in zip(p_T, found):
        for k, logits_BxLxV in enumerate(logits_N):
            nll_BxL = plain_model.negative_log_likelihood(logits_BxLxV, target_NxBxL[k])
            total = total + scale_N[k] * jnp.sum(p_BxL * nll_BxL * mask_NxBxL[k])
        total = total + entropy_scale * jnp.sum(p_BxL * jnp.log(p_BxL) * mask_NxBxL.any(axis=0))
    return total


def naive_gate(config, params, batch, scale):
    """Stage II by its definition, with labels that carry no gradient."""
    target_NxBxL, mask_NxBxL = plain_model.targets(batch, config.num_heads)
    found, gates = plain_model.every_loop(config, params, batch)
    nll_T = [jax.lax.stop_gradient(plain_model.negative_log_likelihood(logits_N[0], target_NxBxL[0]))
             for logits_N in found]
    total = 0
    for t in range(1, config.loops):
        better_BxL = jnp.maximum(0, nll_T[t - 1] - nll_T[t])
        go_on_BxL = 1 / (1 + jnp.exp(-SHARPNESS * (better_BxL - MARGIN)))
        total = total - jnp.sum((go_on_BxL * jnp.log(1 - gates[t]) + (1 - go_on_BxL) * jnp.log(gates[t]))
                                * mask_NxBxL[0])
    return scale * total / config.loops


def ours(config, params, batch, compute):
    """Returns (loss, sums) of an objective as the train step computes it."""
    model = ModelSpec.create(config).bind(params)
    h_NxBxTxLxD, gate_TxBxL = model.every_loop(batch["tokens"], batch["segments"], batch["positions"], execution=ROLLED)
    targets, mask = multi_token_targets(batch["tokens"], batch["segments"], batch["positions"], config.num_heads)
    return compute(h_NxBxTxLxD, gate_TxBxL, model.unembedding_matrix(), targets, mask, vocab_size=config.vocab_size,
                   chunks=2, execution=ROLLED)


def gradients(config, params, function):
    return jax.jit(jax.value_and_grad(function, has_aux=True), compiler_options=QUICK)(params)


@pytest.mark.parametrize("kind, changes", [
    ("parallel", {"sandwich_norm": True}),
    pytest.param("sequential", {}, marks=pytest.mark.slow),
    pytest.param("linear", {"unembedding": "replicated"}, marks=pytest.mark.slow)])
def test_stage_one_is_the_naive_form_in_value_and_gradient(kind, changes, x64):
    config = looped(head_kind=kind, **changes)
    params, batch = make_params(config), make_batch()
    scale_N, entropy_scale = jnp.asarray([0.05, 0.11]), jnp.asarray(0.07)

    (loss, sums), gradient = gradients(config, params, lambda p: ours(
        config, p, batch, lambda *states, **how: expected_loss(*states, scale_N, entropy_scale, **how)))
    (want, _), want_gradient = gradients(config, params, lambda p: (
        naive_expected(config, p, batch, scale_N, entropy_scale), 0))
    assert_trees_close(loss, want, 1e-12)
    assert_trees_close(gradient, want_gradient, 1e-12)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradient))
    check_sums(config, params, batch, sums)


def check_sums(config, params, batch, sums):
    """Compares the sums with those of the plain model."""
    target_NxBxL, mask_NxBxL = plain_model.targets(batch, config.num_heads)
    found, gates = plain_model.every_loop(config, params, batch)
    p_TxBxL = np.stack(naive_exit(gates))
    nll_NxTxBxL = np.stack([[plain_model.negative_log_likelihood(logits_N[k], target_NxBxL[k]) * mask_NxBxL[k]
                             for logits_N in found] for k in range(config.num_heads)])
    some_BxL = mask_NxBxL.any(axis=0)
    np.testing.assert_allclose(sums.loss_NxT, nll_NxTxBxL.sum(axis=(2, 3)))
    np.testing.assert_allclose(sums.expected_N, np.einsum("ntbl,tbl->n", nll_NxTxBxL, p_TxBxL))
    np.testing.assert_allclose(sums.exit_T, (p_TxBxL * some_BxL[None]).sum(axis=(1, 2)))
    np.testing.assert_allclose(sums.entropy, -(p_TxBxL * np.log(p_TxBxL) * some_BxL[None]).sum())
    np.testing.assert_allclose(sums.count_N, mask_NxBxL.sum(axis=(1, 2)))
    assert sums.count == some_BxL.sum()
    right_N = [np.sum((np.argmax(logits, axis=-1) == target_NxBxL[k]) & mask_NxBxL[k])
               for k, logits in enumerate(found[-1])]
    np.testing.assert_array_equal(last_loop(sums).correct_N, right_N)


def test_stage_two_is_the_naive_form_in_value_and_gradient(x64):
    config = looped()
    params, batch = make_params(config), make_batch()
    scale = jnp.asarray(0.04)

    (loss, sums), gradient = gradients(config, params["gate"], lambda gate: ours(
        config, {**params, "gate": gate}, batch, lambda *states, **how: gate_loss(
            *states, scale, jnp.ones(2, bool), sharpness=SHARPNESS, margin=MARGIN, **how)))
    (want, _), want_gradient = gradients(config, params["gate"], lambda gate: (
        naive_gate(config, {**params, "gate": gate}, batch, scale), 0))
    assert_trees_close(loss, want, 1e-12)
    assert_trees_close(gradient, want_gradient, 1e-12)
    assert np.all(np.asarray(gradient["kernel"]))
    check_sums(config, params, batch, sums)


GATES = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(GATES)
def test_exit_distribution_sums_to_one_and_is_the_product_form(gates):
    gate_TxBxL = np.array(gates, np.float32)[:, None]
    p_TxBxL = np.exp(log_exit_distribution(gate_TxBxL))
    np.testing.assert_allclose(p_TxBxL.sum(axis=0), 1, rtol=1e-5)
    exact = 1 / (1 + np.exp(-gate_TxBxL.astype(np.float64)))
    np.testing.assert_allclose(p_TxBxL, np.stack([np.broadcast_to(p, (1, 3)) for p in naive_exit(list(exact))]),
                               rtol=1e-4, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(GATES)
def test_entropy_has_a_finite_gradient_where_the_gate_is_sure(gates):
    def entropy(gate_TxBxL):
        log_p = log_exit_distribution(gate_TxBxL)
        return -jnp.sum(jnp.exp(log_p) * log_p)

    gate_TxBxL = 5 * np.array(gates, np.float32)[:, None]
    assert np.all(np.isfinite(jax.grad(entropy)(gate_TxBxL)))
