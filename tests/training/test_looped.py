"""Steps of a looped trunk: with one loop the plain one, bit for bit; the gate's stage; what is logged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax import config as configs
from mtp_jax.training.program import build_program
from mtp_jax.training.records import train_record, validation_record
from mtp_jax.training.state import flatten_params
from tests.small_model import assert_trees_close
from tests.training.test_step import STRICT, batch_of, config_of
from tests.training.test_step import run as run_on

LOOPED = {"model__trunk_kind": "looped", "model__loops": 3, "model__num_heads": 2, "model__num_layers": 3}


def program_of(config):
    return build_program(config, jax.devices()[:1])


def run(config, steps=2):
    return run_on(config, steps, jax.devices()[:1])


def test_one_loop_is_the_plain_trunk_bit_for_bit():
    plain, looped = (config_of(model__num_heads=2, model__num_layers=3, **changes)
                     for changes in ({}, {"model__trunk_kind": "looped", "model__loops": 1}))
    (params, metrics, program), (want_params, want_metrics, want_program) = run(looped), run(plain)
    for got, want in ((params, want_params), (metrics, want_metrics)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_array_equal(a, b)
    got, want = (one.train_step.lower(one.state, one.batch).as_text() for one in (program, want_program))
    assert got == want


def test_only_the_gate_is_added():
    plain, looped = (program_of(config_of(model__num_heads=2, model__num_layers=3, **changes))
                     for changes in ({}, {"model__trunk_kind": "looped", "model__loops": 2}))
    before, after = (one.init(jax.random.key(0)).params for one in (plain, looped))
    gate = after.pop("gate")
    assert {name: leaf.shape for name, leaf in gate.items()} == {"kernel": (16,), "bias": ()}
    assert_trees_close(jax.device_get(after), jax.device_get(before), 0)


@pytest.mark.slow  # tests/parallel/test_equal.py holds it, too
def test_microbatches_add_up_to_the_whole_batch(x64):
    whole, parts = (run(config_of(**LOOPED, **STRICT, compute__microbatches=parts), steps=1) for parts in (1, 2))
    assert_trees_close(parts[1], whole[1], 1e-12)
    assert_trees_close(parts[0], whole[0], 1e-9)


def test_records_tell_losses_of_every_loop_and_what_the_objective_is_made_of():
    config = config_of(**LOOPED, objective__exit_entropy=0.3, objective__head_weights=(1.0, 0.5))
    program = program_of(config)
    state = program.init(jax.random.key(0))
    batch = program.put(batch_of(config))
    validation = jax.device_get(program.validation_step(state.params, np.int32(0), batch))
    _, metrics = program.train_step(state, batch)
    for record in (train_record(1, jax.device_get(metrics), program), validation_record(1, program, {"": validation})):
        assert record.loss == pytest.approx(record.task_loss + record.entropy_term, rel=1e-5)
        assert record.task_loss == pytest.approx(record.expected_head_loss[0] + 0.5 * record.expected_head_loss[1])
        # The gate starts at zero: even chances after each loop.
        np.testing.assert_allclose(record.exit_share, [0.5, 0.25, 0.25], rtol=1e-5)
        assert record.entropy == pytest.approx(1.5 * np.log(2), rel=1e-5)
        assert record.entropy_term == pytest.approx(-0.3 * record.entropy)
        assert list(record.loops) == ["1", "2", "3"] and record.loops["3"]["head_loss"] == record.head_loss
        shares = [loop["head_loss"][0] * share for loop, share in zip(record.loops.values(), record.exit_share)]
        assert record.expected_head_loss[0] == pytest.approx(sum(shares), rel=1e-5)


def test_the_gates_stage_moves_the_gate_alone():
    config = config_of(**LOOPED, objective__loop_objective="gate", train__trainable=("gate/*",))
    program = program_of(config)
    before = flatten_params(jax.device_get(program.init(jax.random.key(0)).params))
    params, metrics, _ = run(config, steps=3)
    moved = {name for name, leaf in flatten_params(params).items() if not np.array_equal(leaf, before[name])}
    assert moved == {"gate/kernel", "gate/bias"}
    assert np.isfinite(metrics.loss) and metrics.loss > 0


def test_the_gates_stage_reads_head_1_whatever_its_weight():
    gate = {**LOOPED, "objective__loop_objective": "gate", "train__trainable": ("gate/*",)}
    resting, weighted = (run(config_of(**gate, objective__head_weights=weights), steps=1)[1]
                         for weights in ((0.0, 1.0), (1.0, 1.0)))
    np.testing.assert_allclose(resting.loss, weighted.loss, rtol=1e-6)
    np.testing.assert_allclose(resting.grad_norm, weighted.grad_norm, rtol=1e-5)


def test_flops_count_every_loop():
    once, thrice = (program_of(config_of(**{**LOOPED, "model__loops": loops})).flops_per_token for loops in (1, 3))
    assert thrice == 3 * once


def test_a_resting_head_is_left_out_of_a_looped_objective():
    config = config_of(**LOOPED, objective__head_weights=(1.0, 0.0))
    program = program_of(config)
    assert program.execution.skip_idle_heads
    params, metrics, _ = run(config, steps=1)
    record = train_record(1, metrics, program)
    assert record.head_loss[1] is None and record.loops["1"]["head_loss"][1] is None
    assert record.task_loss == pytest.approx(record.expected_head_loss[0])
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("changes, message", [
    ({"model__loops": 2}, "model.loops=2 means nothing for model.trunk_kind='plain'"),
    ({"model__trunk_kind": "loop"}, 'Did you mean "looped"'),
    ({"objective__loop_objective": "gate"}, "model.loops above 1"),
    ({**LOOPED, "objective__exit_entropy": -1.0}, "objective.exit_entropy=-1.0 must be at least 0"),
])
def test_bad_settings_are_told(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_a_trunk_without_layers_cannot_be_run_again():
    config = configs.from_dict({"model": dict(num_heads=1, num_layers=1, vocab_size=20, trunk_kind="looped", loops=2)})
    with pytest.raises(ValueError, match="runs the trunk's layers, and this model has none"):
        program_of(config)
