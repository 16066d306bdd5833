"""Head weights by step, against the formulas of the papers they are from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import ObjectiveConfig
from mtp_jax.model import Execution
from mtp_jax.objective import SCHEDULES, head_weights, mtp_cross_entropy, register_schedule
from mtp_jax.objective import schedules as schedules_lib


def weights(num_heads=4, horizon=100, **config):
    return head_weights(ObjectiveConfig(**config), num_heads, horizon)


def at(schedule, step):
    return schedule(jnp.asarray(step, jnp.int32)).tolist()


def test_constant_is_the_plain_sum():
    schedule = weights()
    assert at(schedule, 0) == at(schedule, 99) == [1, 1, 1, 1]
    assert not schedule.heads_may_rest and schedule(jnp.asarray(0)).dtype == jnp.float32


def test_list():
    assert at(weights(head_weights=(1.0, 0.5, 0.25, 2.0)), 7) == [1, 0.5, 0.25, 2]
    assert not weights(head_weights=(1.0, 0.5, 0.25, 2.0)).heads_may_rest
    assert weights(head_weights=(1.0, 0.0, 0.25, 2.0)).heads_may_rest


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_deepseek_shares_lambda_over_the_further_heads(num_heads):
    """DeepSeek-V3: 0.3 for the first 10T tokens of 14.8T, then 0.1, divided by the number of further heads."""
    schedule = weights(num_heads, 1480, schedule="deepseek")
    for step, share in ((0, 0.3), (998, 0.3), (999, 0.1), (1479, 0.1), (5000, 0.1)):
        further = [share / (num_heads - 1)] * (num_heads - 1) if num_heads > 1 else []
        np.testing.assert_allclose(at(schedule, step), [1, *further], rtol=1e-6)
    assert not schedule.heads_may_rest


@pytest.mark.parametrize("final, rests", [(0.1, False), (0.0, True)])
def test_deepseek_heads_rest_where_their_share_is_0(final, rests):
    schedule = weights(schedule="deepseek", further_weight_final=final)
    assert schedule.heads_may_rest == rests
    assert (at(schedule, 99)[1:] == [0, 0, 0]) == rests


@pytest.mark.parametrize("num_heads, horizon", [(1, 5), (2, 8), (4, 8), (4, 10), (3, 100), (4, 3)])
def test_curricula_follow_their_formulas(num_heads, horizon):
    """forward: min(kmax, floor(e / (E / kmax)) + 1) heads; reverse: max(1, kmax - floor(e / (E / kmax)))."""
    forward, reverse = (weights(num_heads, horizon, schedule=name) for name in ("forward", "reverse"))
    assert forward.heads_may_rest and reverse.heads_may_rest
    for e in range(horizon + 3):
        stage = e * num_heads // horizon
        rising, falling = min(num_heads, stage + 1), max(1, num_heads - stage)
        assert at(forward, e) == [1.0] * rising + [0.0] * (num_heads - rising)
        assert at(reverse, e) == [1.0] * falling + [0.0] * (num_heads - falling)


@pytest.mark.parametrize("horizon, num_heads, step", [(2**30, 4, 2**29), (10**9, 8, 10**9 - 1)])
def test_curricula_of_very_long_runs_do_not_overflow(horizon, num_heads, step):
    want = min(num_heads, step * num_heads // horizon + 1)
    assert sum(at(weights(num_heads, horizon, schedule="forward"), step)) == want


def test_a_list_multiplies_a_schedule():
    assert at(weights(schedule="forward", head_weights=(2.0, 1.0, 0.5, 3.0)), 50) == [2, 1, 0.5, 0]


def test_reduction():
    w = jnp.asarray([1.0, 0.5, 0.0, 0.5])
    assert weights().reduce(w).tolist() == [1, 0.5, 0, 0.5]
    assert weights(reduction="mean").reduce(w).tolist() == [0.5, 0.25, 0, 0.25]
    assert weights(reduction="mean", schedule="reverse").reduce(jnp.asarray([1.0, 0, 0, 0])).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("schedule", ["forward", "reverse"])
def test_weights_that_leave_no_head_at_some_step_are_refused(schedule):
    """Both curricula have a time of head 1 alone: with weight 0 it would train nothing, and mean divide by 0."""
    with pytest.raises(ValueError, match=r"objective.head_weights=\(0.0, 1.0\).*every head.*'" + schedule):
        weights(2, schedule=schedule, head_weights=(0.0, 1.0))
    weights(2, schedule="constant", head_weights=(0.0, 1.0))
    weights(2, schedule="deepseek", head_weights=(0.0, 1.0))


def test_unknown_schedule_suggests_the_nearest():
    with pytest.raises(ValueError, match='objective.schedule=\'foward\'.*Did you mean "forward"'):
        weights(schedule="foward")


def test_a_schedule_of_ones_own(monkeypatch):
    monkeypatch.setattr(schedules_lib, "SCHEDULES", dict(SCHEDULES))
    monkeypatch.setattr(schedules_lib, "_HEADS_MAY_REST", dict(schedules_lib._HEADS_MAY_REST))
    with pytest.raises(ValueError, match="schedule 'constant' is already registered by constant in"):
        register_schedule("constant", heads_may_rest=False)(lambda *_: None)

    @register_schedule("fading", heads_may_rest=True)
    def fading(config, num_heads, horizon, step):
        return jnp.where(jnp.arange(num_heads) == 0, 1.0, jnp.maximum(0, 1 - step / horizon))

    schedule = weights(2, 10, schedule="fading")
    assert at(schedule, 0) == [1, 1] and at(schedule, 10) == [1, 0] and schedule.heads_may_rest


def test_changing_weights_does_not_recompile():
    """One program for every stage of a curriculum, skipped heads and all."""
    schedule, traces = weights(4, 8, schedule="forward"), []
    random = np.random.default_rng(0)
    h, unembedding = jnp.asarray(random.normal(size=(4, 1, 4, 3))), jnp.asarray(random.normal(size=(5, 3)))
    targets, mask = jnp.zeros((4, 1, 4), jnp.int32), jnp.ones((4, 1, 4), bool)

    @jax.jit
    def counts(step):
        traces.append(step)
        _, sums = mtp_cross_entropy(h, unembedding, targets, mask, schedule.reduce(schedule(step)), vocab_size=5,
                                    execution=Execution(skip_idle_heads=True, unroll=False))
        return sums.count_N

    assert [counts(jnp.asarray(step)).tolist() for step in (0, 2, 4, 6)] == [
        [4, 0, 0, 0], [4, 4, 0, 0], [4, 4, 4, 0], [4, 4, 4, 4]]
    assert len(traces) == 1 and counts._cache_size() == 1
