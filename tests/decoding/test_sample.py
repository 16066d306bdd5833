"""Sampling from head 1: what a forward over the whole text would say, token by token."""

import jax
import jax.numpy as jnp
import pytest

from mtp_jax.decoding import sample
from mtp_jax.model import ModelSpec
from tests.small_model import make_config, make_params


def greedy(spec, params, ids):
    """Returns head 1's choice after `ids`, from the model's own logits."""
    tokens_BxL = jnp.asarray([ids], jnp.int32)
    model = spec.bind(params)
    h_NxBxLxD = model(tokens_BxL, jnp.ones_like(tokens_BxL), jnp.arange(len(ids), dtype=jnp.int32)[None])
    return int(jnp.argmax(model.logits(h_NxBxLxD)[0, 0, -1]))


@pytest.mark.parametrize("kind", ["parallel", "causal", "anticausal"])
def test_greedy_is_the_argmax_of_head_1(kind):
    spec = ModelSpec.create(make_config(head_kind=kind))
    params = make_params(spec.config)
    ids = [1, 2, 3]
    for _ in range(4):
        ids.append(greedy(spec, params, ids))
    assert sample(spec, params, ids[:3], max_new_tokens=4, window=12) == ids[3:]


def test_a_full_window_slides():
    spec = ModelSpec.create(make_config())
    params = make_params(spec.config)
    ids = [1, 2, 3, 4, 5, 6]
    assert sample(spec, params, ids, max_new_tokens=1, window=4) == [greedy(spec, params, ids[-4:])]


def test_a_stop_id_ends_the_text_and_is_left_out():
    spec = ModelSpec.create(make_config())
    params = make_params(spec.config)
    free = sample(spec, params, [1], max_new_tokens=6, window=12)
    assert sample(spec, params, [1], max_new_tokens=6, window=12, stop=free[0]) == []


def test_draws_follow_seed_and_temperature():
    spec = ModelSpec.create(make_config())
    params = jax.tree.map(lambda x: 0.1 * x, make_params(spec.config))
    drawn = {tuple(sample(spec, params, [1], max_new_tokens=5, window=8, temperature=1.0, seed=s)) for s in (0, 0, 1)}
    assert len(drawn) == 2
    assert all(token < spec.config.vocab_size for tokens in drawn for token in tokens)


def test_an_empty_prompt_is_refused():
    spec = ModelSpec.create(make_config())
    with pytest.raises(ValueError, match="prompt is empty"):
        sample(spec, make_params(spec.config), [], max_new_tokens=1, window=4)
