"""One step: golden numbers, accumulation, freezing, heads that rest. On meshes: tests/parallel/test_equal.py."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax import config as configs
from mtp_jax.training.program import build_program
from mtp_jax.training.state import flatten_params

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "first_step.json"


def config_of(**changes):
    values = {
        "model": dict(num_heads=4, num_layers=6, d_model=16, num_attention_heads=4, d_ff_multiple=8, vocab_size=250),
        "data": dict(batch_size=8, seq_len=16),
        "optimizer": dict(learning_rate=1e-2, warmup_steps=2),
        "train": dict(num_steps=20),
        "parallel": dict(mesh="data:1"),
    }
    for name, value in changes.items():
        section, field = name.split("__")
        values.setdefault(section, {})[field] = value
    config = configs.from_dict(values)
    config.validate()
    return config


def batch_of(config, seed=0):
    """Rows of uneven documents and padding, so that heads and rows have unequal numbers of targets."""
    rng = np.random.default_rng(seed)
    B, L = config.data.batch_size, config.data.seq_len
    segments, positions = np.zeros((B, L), np.int32), np.zeros((B, L), np.int32)
    for row in range(B):
        start = 0
        for segment in range(1, 4):
            end = min(L, start + int(rng.integers(1, 9)))
            segments[row, start:end], positions[row, start:end] = segment, np.arange(end - start)
            start = end
    return {"tokens": rng.integers(0, 250, (B, L)).astype(np.int32), "segments": segments, "positions": positions}


def run(config, steps=2, devices=None):
    """Returns the parameters and metrics after some steps, on the host."""
    program = build_program(config, devices)
    state = program.init(jax.random.key(0))
    metrics = None
    for step in range(steps):
        state, metrics = program.train_step(state, program.put(batch_of(config, step)))
    return jax.device_get(state.params), jax.device_get(metrics), program


STRICT = {"model__param_dtype": "float64", "model__dtype": "float64"}


def difference(a, b):
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def base():
    """Two steps on one device."""
    return run(config_of(), devices=jax.devices()[:1])


def test_first_step_is_golden():
    _, metrics, _ = run(config_of(), steps=1, devices=jax.devices()[:1])
    found = {"loss": float(metrics.loss), "grad_norm": float(metrics.grad_norm),
             "head_loss_sum": metrics.sums.loss_N.tolist(), "count": metrics.sums.count_N.tolist()}
    wanted = json.loads(GOLDEN.read_text())
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=(
            f"{name} of the first step changed. If that is meant, write {json.dumps(found)} into {GOLDEN.name}."))


def test_the_loss_falls():
    config = config_of(train__num_steps=60)
    program = build_program(config, jax.devices()[:1])
    state, batch, losses = program.init(jax.random.key(0)), program.put(batch_of(config)), []
    for _ in range(40):
        state, metrics = program.train_step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts, x64):
    params, metrics, _ = run(config_of(**STRICT), steps=1, devices=jax.devices()[:1])
    others, other_metrics, _ = run(config_of(compute__microbatches=parts, **STRICT), steps=1,
                                   devices=jax.devices()[:1])
    assert difference(params, others) < 1e-9  # Adam divides by the gradient's own size: 1e-12 grows to this
    np.testing.assert_allclose(metrics.grad_norm, other_metrics.grad_norm, rtol=1e-12)
    np.testing.assert_allclose(metrics.loss, other_metrics.loss, rtol=1e-12)
    np.testing.assert_array_equal(metrics.sums.count_N, other_metrics.sums.count_N)


def test_the_state_is_donated():
    config = config_of()
    program = build_program(config, jax.devices()[:1])
    state = program.init(jax.random.key(0))
    program.train_step(state, program.put(batch_of(config)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_only_what_is_trainable_changes_and_has_moments(base):
    config = config_of(train__trainable=("heads/*", "final_norm/*"))
    program = build_program(config, jax.devices()[:1])
    state = program.init(jax.random.key(0))
    before = jax.device_get(state.params)
    state, _ = program.train_step(state, program.put(batch_of(config)))
    after, moments = flatten_params(jax.device_get(state.params)), jax.tree.leaves(state.opt_state)
    changed = {path for path, leaf in flatten_params(before).items() if np.any(leaf != after[path])}
    assert changed == {path for path in after if path.startswith(("heads/", "final_norm/"))}
    assert sum(leaf.ndim > 0 for leaf in moments) == 2 * len(changed)


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(ValueError, match=r"train.trainable.*'head/\*' matches no parameter"):
        build_program(config_of(train__trainable=("head/*",)), jax.devices()[:1])


def test_weights_by_step_neither_recompile_nor_move_resting_heads():
    config = config_of(objective__schedule="reverse", train__num_steps=8, optimizer__warmup_steps=0)
    program = build_program(config, jax.devices()[:1])
    state, seen = program.init(jax.random.key(0)), []
    for step in range(8):
        before = jax.device_get(state.params["heads"])
        state, metrics = program.train_step(state, program.put(batch_of(config, step)))
        after = jax.device_get(state.params["heads"])
        moved = [any(np.any(a[k] != b[k]) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
                 for k in range(4)]
        seen.append((metrics.weights_N.tolist(), moved))
    assert [int(sum(weights)) for weights, _ in seen] == [4, 4, 3, 3, 2, 2, 1, 1]
    assert all(moved == [weight > 0 for weight in weights] for weights, moved in seen)
    assert program.train_step._cache_size() == 1


def test_bfloat16_keeps_parameters_and_moments_in_float32(base):
    params, metrics, program = run(config_of(model__dtype="bfloat16"), devices=jax.devices()[:1])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert metrics.loss.dtype == np.float32
    np.testing.assert_allclose(metrics.loss, base[1].loss, rtol=2e-2)


def test_a_step_traces_no_host_transfer():
    config = config_of()
    program = build_program(config, jax.devices()[:1])
    state, batch = program.init(jax.random.key(0)), program.put(batch_of(config))
    with jax.transfer_guard("disallow"):
        state, metrics = program.train_step(state, batch)
    assert np.isfinite(jax.device_get(metrics.loss))


def test_validation_in_parts_equals_that_of_the_whole_batch():
    """A batch that only fits the memory in parts must not be validated whole."""
    sums, kept = [], []
    for parts in (1, 4):
        config = config_of(compute__microbatches=parts)
        program = build_program(config, jax.devices()[:1])
        arguments = program.init(jax.random.key(0)).params, jnp.int32(0), program.put(batch_of(config))
        compiled = program.validation_step.lower(*arguments).compile()
        sums.append(jax.device_get(compiled(*arguments)))
        kept.append(compiled.memory_analysis().temp_size_in_bytes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *sums)
    assert sums[0].heads.count_N[0] > 0 and kept[1] < 0.5 * kept[0]


def test_validation_counts_agreement_of_head_1_with_itself_as_one():
    config = config_of()
    program = build_program(config, jax.devices()[:1])
    state = program.init(jax.random.key(0))
    sums = program.validation_step(state.params, jnp.int32(0), program.put(batch_of(config)))
    assert float(sums.agreement.agree_N[0]) == float(sums.agreement.count_N[0]) == float(sums.heads.count_N[0]) > 0
    assert np.all(np.diff(np.asarray(sums.heads.count_N)) < 0)


@pytest.mark.parametrize("changes, message", [
    (dict(model__num_heads=6), "model.num_heads=6 is too large for model.num_layers=6"),
    (dict(model__num_heads=6, model__head_kind="causal"), "too large"),
    (dict(parallel__mesh="data:3"), "data.batch_size=8 is not divisible by the 3 devices"),
    (dict(parallel__mesh="sequence:3"), "data.seq_len=16 is not divisible by the 3 devices .*choose a multiple of 3"),
    (dict(parallel__dcn_mesh="data:2"), "parallel.dcn_mesh='data:2' needs 2 slices, there are 1"),
    (dict(parallel__mesh="data:16"), "needs 16 devices, there are 3"),
    (dict(parallel__mesh="data:1,tensor:3"), "not divisible by the 3 devices"),
    (dict(parallel__mesh="pred_heads:3"), "pred_heads"),
    (dict(compute__microbatches=8, parallel__mesh="data:-1"), "is not divisible by"),
    (dict(objective__detach_trunk=True, model__head_kind="anticausal"), "objective.detach_trunk=True"),
    (dict(objective__schedule="forwards"), 'Did you mean "forward"'),
    (dict(model__head_kind="paralell"), 'Did you mean "parallel"'),
    (dict(compute__run_heads="vmap", model__head_kind="causal", parallel__mesh="data:1,fsdp:1"), "run_heads='vmap'"),
    (dict(model__num_heads=3, model__head_kind="causal", parallel__mesh="pred_heads:3"), "run one after the other"),
    (dict(compute__run_heads="scan", model__num_heads=3, parallel__mesh="pred_heads:3"), "would gather"),
    (dict(compute__attention="flsh"), "flsh"),
])
def test_what_does_not_fit_is_refused_before_any_device_works(changes, message):
    devices = jax.devices()[:1] if "fsdp:1" in changes.get("parallel__mesh", "fsdp:1") else jax.devices()[:3]
    with pytest.raises(ValueError, match=message):
        build_program(dataclasses.replace(config_of(**changes)), devices)
