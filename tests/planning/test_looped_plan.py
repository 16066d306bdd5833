"""Loops of a trunk count in estimates as layers do."""

import pytest

from mtp_jax.config import Config, DataConfig, ModelConfig
from mtp_jax.parallel.mesh import AXES
from mtp_jax.parallel.topology import parse_topology
from mtp_jax.planning import decode
from mtp_jax.planning.estimate import Choice, Estimator

LOOPS = 4


def config(**changes):
    model = ModelConfig(**{**dict(num_heads=2, num_layers=6, d_model=512, num_attention_heads=8, vocab_size=4096,
                                  trunk_kind="looped"), **changes})
    return Config(model=model, data=DataConfig(batch_size=16, seq_len=1024))


def test_a_block_runs_the_trunk_in_all_loops():
    once, looped = (decode.block_flops(config(loops=loops), 1024) for loops in (1, LOOPS))
    trunk = once - decode.block_flops(config(num_layers=2), 1024)
    assert looped - once == pytest.approx((LOOPS - 1) * trunk)


@pytest.mark.parametrize("remat", ["full", "none"])
def test_a_step_runs_trunk_and_heads_in_all_loops(remat):
    once, looped = (Estimator.create(config(loops=loops), parse_topology("v5e:2x2")) for loops in (1, LOOPS))
    choice = Choice(tuple(4 if axis == "fsdp" else 1 for axis in AXES), remat, 1)
    assert looped.executed_flops(choice) == LOOPS * once.executed_flops(choice)
    few, many = once.memory(choice), looped.memory(choice)
    assert many.activations == LOOPS * few.activations and many.loss > few.loss and many.working == few.working
    assert many.state == pytest.approx(few.state, rel=1e-3)  # but for the gate
    assert looped.bounds(choice).compute > 3.9 * once.bounds(choice).compute
