"""The compiler's own count of the temporaries of a step: flat in n with the fused loss, not so with the naive one."""

import jax
import jax.numpy as jnp
import optax
import pytest

from mtp_jax.objective import multi_token_targets
from mtp_jax.training.program import build_program
from tests.training.test_step import config_of

V, B, L = 8_192, 8, 128


def program_of(n, remat):
    # As many layers as a real model has against n: a head's state replaces a trunk layer's.
    config = config_of(model__num_heads=n, model__num_layers=12, model__d_model=64, model__vocab_size=V,
                       data__batch_size=B, data__seq_len=L, compute__remat=remat, compute__logits_bytes=2**20)
    return build_program(config, jax.devices()[:1])


def temporaries(n, remat):
    program = program_of(n, remat)
    return program.train_step.lower(program.state, program.batch).compile().memory_analysis().temp_size_in_bytes


def naive_temporaries(n):
    program = program_of(n, "full")

    def loss(params, batch):
        model = program.spec.bind(params)
        targets_NxBxL, mask_NxBxL = multi_token_targets(batch["tokens"], batch["segments"], batch["positions"], n)
        h_NxBxLxD = model(batch["tokens"], batch["segments"], batch["positions"], execution=program.execution)
        losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(h_NxBxLxD), targets_NxBxL)
        return jnp.sum(jnp.where(mask_NxBxL, losses, 0))

    gradient = jax.jit(jax.value_and_grad(loss)).lower(program.state.params, program.batch)
    return gradient.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_eight_heads_take_the_memory_of_one(remat):
    assert temporaries(8, remat) <= 1.10 * temporaries(1, remat)


def test_the_naive_loss_pays_for_every_head():
    one, eight = naive_temporaries(1), naive_temporaries(8)
    assert eight - one > 7 * B * L * V * 4  # at least the logits of seven more heads
    assert eight > 4 * temporaries(8, "full")
