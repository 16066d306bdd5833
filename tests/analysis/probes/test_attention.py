"""Recorded attention is the model's own, for every place that has attention; the measures; the identity of layer 0."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.analysis.probes.attention import Recorded, Site, average, call_number, record
from mtp_jax.analysis.probes.attention_measures import compare, curves, identity
from mtp_jax.analysis.probes.conditions import insert
from mtp_jax.decoding.model import DecodingModel
from mtp_jax.model import ModelSpec, attention
from mtp_jax.model.stacks import Execution
from tests.small_model import QUICK, make_config, make_params

KINDS = {"causal": dict(head_kind="causal", qk_norm=True),
         "anticausal": dict(head_kind="anticausal"), "sequential": dict(head_kind="sequential", num_layers=2),
         "parallel, looped": dict(num_layers=5, trunk_kind="looped", loops=2)}
KINDS = {kind: {"num_attention_heads": 4, "num_kv_heads": 2, **changes} for kind, changes in KINDS.items()}
L = 64
ROWS = np.random.default_rng(0).integers(0, 11, (2, L), dtype=np.int32)


@functools.cache
def make_model(config):
    return DecodingModel.from_params(ModelSpec.create(config), make_params(config), window=L)


def every_layer(config, monkeypatch):
    """Returns (q, k, v, o) of every layer with attention, in the order in which the training forward runs them."""
    def forward(params, rows):
        calls = []

        def kernel(q, k, v, segments, layout):
            calls.append((q, k, v, attention.KERNELS["xla"](q, k, v, segments, layout)))
            return calls[-1][-1]

        monkeypatch.setitem(attention.KERNELS, "noted", kernel)
        positions = jnp.broadcast_to(jnp.arange(L), rows.shape)
        ModelSpec.create(config).bind(params)(rows, jnp.ones(rows.shape, jnp.int32), positions,
                                              execution=Execution(kernel="noted"))
        return calls

    return jax.tree.map(np.asarray, jax.jit(forward, compiler_options=QUICK)(make_params(config), ROWS))


def places(config):
    """Returns (layer, prediction head, loop) in the order of the training forward."""
    order = {"anticausal": (3, 2, 1), "sequential": (2, 3)}.get(config.head_kind, (1, 2, 3))
    trunk = config.num_layers - (0 if config.head_kind == "sequential" else 3)
    found = [(layer, None, loop) for loop in range(1, config.loops + 1) for layer in range(trunk)]
    return found + [(0, number, None) for number in order]


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "causal"),
                                  pytest.param("causal", marks=pytest.mark.slow)])
def test_weights_are_those_of_the_models_own_queries_and_keys(kind, monkeypatch, x64):
    config = make_config(**KINDS[kind])
    model, calls = make_model(config), every_layer(config, monkeypatch)
    assert len(calls) == len(places(config))
    for (layer, number, loop), (q, k, _, o) in zip(places(config), calls):
        head = (layer + (number or 0)) % config.num_attention_heads
        seen = record(model, ROWS, Site(layer, head, number, loop))
        own = head // (q.shape[2] // k.shape[2])
        np.testing.assert_allclose(seen.queries_BxLxC, q[:, :, head], atol=1e-11)
        np.testing.assert_allclose(seen.keys_BxLxC, k[:, :, own], atol=1e-11)
        scores = np.einsum("bic,bjc->bij", q[:, :, head], k[:, :, own]) / np.sqrt(q.shape[-1])
        scores = np.exp(np.where(np.tri(L, dtype=bool), scores, -np.inf))
        np.testing.assert_allclose(seen.weights_BxLxL, scores / scores.sum(-1, keepdims=True), atol=1e-11)
        np.testing.assert_allclose(seen.weights_BxLxL @ seen.values_BxLxC, o[:, :, head], atol=1e-11)
    if kind == "parallel, looped":  # heads after the first loop read another state
        assert call_number(model, Site(1, 0, None, 1)) == 1 and call_number(model, Site(1, 0)) == 3
        first, last = (record(model, ROWS, Site(0, 0, 1, loop)).queries_BxLxC for loop in (1, 2))
        np.testing.assert_array_equal(last, record(model, ROWS, Site(0, 0, 1)).queries_BxLxC)
        assert np.abs(first - last).max() > 0.1
        once = dataclasses.replace(model, config=dataclasses.replace(config, trunk_kind="plain", loops=1))
        np.testing.assert_array_equal(first, record(once, ROWS, Site(0, 0, 1)).queries_BxLxC)
    assert attention.KERNELS.keys() == {"xla", "blocked", "cudnn", "splash", "noted"}


def test_nothing_behind_the_site_is_run(x64):
    model = make_model(make_config(**KINDS["parallel, looped"]))
    first, second = model.weights.trunk
    spoilt = dataclasses.replace(model, weights=dataclasses.replace(
        model.weights, trunk=(first, jax.tree.map(lambda x: x * np.nan, second)), heads=()))
    np.testing.assert_array_equal(*[record(one, ROWS, Site(0, 3, loop=1)).weights_BxLxL for one in (model, spoilt)])
    with pytest.raises(ValueError, match="layer 1 of the trunk, loop 1, attention head 3 are NaN: training has"):
        record(spoilt, ROWS, Site(1, 3, loop=1))


def test_rows_shorter_than_what_is_compiled_are_cut(x64):
    model = make_model(make_config(**KINDS["parallel, looped"]))
    whole, part = (record(model, ROWS[:, :length], Site(1, 1, loop=1)) for length in (L, 9))
    assert part.weights_BxLxL.shape == (2, 9, 9) and part.values_BxLxC.shape == (2, 9, 4)
    np.testing.assert_allclose(part.weights_BxLxL, whole.weights_BxLxL[:, :9, :9], atol=1e-12)


def random_weights(size, seed=0):
    raw = np.tril(np.random.default_rng(seed).random((size, size)))
    return (raw / raw.sum(1, keepdims=True)).astype(np.float32)


def test_average_is_the_mean_of_each_column_below_the_diagonal():
    weights = random_weights(7)
    got = average(weights)
    assert got.dtype == np.float64 and got.shape == (6,)
    np.testing.assert_allclose(got, [np.mean([float(weights[i, j]) for i in range(j + 1, 7)]) for j in range(6)])


def test_the_measures_of_an_insertion():
    prompt = insert(np.arange(3), np.full(4, 9), bos=1, instruction=np.arange(2))  # 3 before, 4 inserted, 3 behind
    weights, values = random_weights(10), np.random.default_rng(1).normal(size=(10, 2))
    got = curves(weights, values, prompt)
    kept = [0, 1, 2, 7, 8, 9]
    np.testing.assert_allclose(got.kept, average(weights)[kept[:-1]])
    np.testing.assert_allclose(got.original, average(weights[kept][:, kept]))
    added = np.array([sum(weights[i, j] * values[j] for j in range(3, 7)) for i in (7, 8, 9)])
    rest = np.array([sum(weights[i, j] * values[j] for j in kept) for i in (7, 8, 9)])
    np.testing.assert_allclose(got.retained, [1 - weights[i, 3:7].sum() for i in (7, 8, 9)], rtol=1e-6)
    np.testing.assert_allclose(got.added_norm, np.hypot(*added.T), rtol=1e-6)
    np.testing.assert_allclose(got.rest_norm, np.hypot(*rest.T), rtol=1e-6)
    angles = np.exp(1j * np.arctan2(*added.T))
    assert got.spread == pytest.approx(1 - abs(angles.mean()), rel=1e-5) and got.spread > 1e-3
    same = curves(weights, np.where(np.arange(10)[:, None] // 4 == 0, values, values[4]), prompt)
    assert same.spread > 0 and curves(weights, values * 0 + 1, prompt).spread < 1e-7


def test_the_comparison_of_curves():
    plain, kept = np.arange(1.0, 21)[None], np.arange(1.0, 21)[None] * 0.5
    kept[0, 0] = 3  # one more
    got = compare(plain, kept)  # the highest tenth: 19 and 20
    assert got["lower"] == 0.95 and got["change_at_peaks"] == -0.5 and got["drop_at_peaks"] == 9.75
    assert got["change"] == pytest.approx((209 / 2 + 3 - 210) / 210)
    assert got["change_elsewhere"] == pytest.approx((170 / 2 + 3 - 171) / 171)
    assert got["drop_elsewhere"] == pytest.approx((171 - 170 / 2 - 3) / 18)
    assert compare(plain[:, :0], kept[:, :0]) is None


# The identity of layer 0.

def prompts(filler, **place):
    """Returns the same insertion into two prompts."""
    return [insert(row[:20], filler, bos=0, instruction=row[40:48], **place) for row in ROWS]


def measured(model, inserted, site):
    """Returns the measure of the second prompt; of two, as in the tests above, to share what is compiled."""
    plain, seen = (record(model, np.stack([prompt.ids for prompt in rows]), site) for rows in (prompts([]), inserted))
    return identity(plain, seen, inserted[1], row=1)


def test_behind_the_run_layer_0_is_scaled_by_one_factor_a_query(x64):  # in fp32: test_attention_command.py
    model = make_model(make_config(**KINDS["parallel, looped"]))
    for place in (dict(filler=np.full(12, 7)), dict(filler=ROWS[0, 30:41]),
                  dict(filler=np.full(12, 7), position="before")):
        inserted = prompts(**place)
        got = measured(model, inserted, Site(0, 1, loop=1))
        assert got.behind < 1e-11 and got.left_out == 0
        assert got.factors.shape == (29 - inserted[1].filler_start,) and np.all(got.factors > 0)
        assert got.before > 0.1  # their distance has changed; of BOS alone where the run is before the instruction
    for site in (Site(1, 1, loop=1), Site(0, 1, loop=2), Site(0, 1, 2)):  # deeper: the run has changed the states
        assert measured(model, inserted, site).behind > 0.01


def test_the_identity_with_the_run_elsewhere(x64):
    model = make_model(make_config(**KINDS["parallel, looped"]))
    among = prompts(np.full(12, 7), position="random", seed=3)
    assert among[1].filler_start > among[1].question_start  # then it holds for what is behind the run
    assert measured(model, among, Site(0, 1, loop=1)).behind < 1e-11
    assert measured(model, prompts(np.full(12, 7), position="end"), Site(0, 1, loop=1)) is None


def test_the_identity_notices_one_key_that_is_off():
    prompt = insert(np.arange(6), np.arange(3), bos=0)
    after = np.zeros((10, 10))
    after[np.ix_(prompt.kept, prompt.kept)] = 0.25 * np.tri(7)
    plain = Recorded(np.tri(7)[None], *[np.zeros((1, 7, 2))] * 3)
    inserted = Recorded(after[None], *[np.zeros((1, 10, 2))] * 3)
    got = identity(plain, inserted, prompt)
    assert (got.behind, got.before) == (0, 0) and np.allclose(got.factors, 0.25)
    after[prompt.kept[5], prompt.kept[3]] *= 1.1
    assert identity(plain, inserted, prompt).behind == pytest.approx(np.log(1.1) * 4 / 5)
    after[prompt.kept[5], prompt.kept[3]] = 0
    assert identity(plain, inserted, prompt).left_out == 1


# Bad input.

@pytest.mark.parametrize("changes, site, message", [
    ({}, Site(head=2), r"--head=2 must lie in 0\.\.1: there are 2 attention heads"),
    ({}, Site(layer=1), r"--layer=1 must lie in 0\.\.0: there are 1 trunk layers \(those of the prediction heads are"),
    ({}, Site(layer=-1), r"--layer=-1 must lie in 0\.\.0"),
    ({"num_layers": 1, "num_heads": 1}, Site(), r"--layer=0 names nothing: there are 0 trunk layers"),
    ({}, Site(prediction_head=4), r"--prediction_head=4 must lie in 1\.\.3, for the model has 3 prediction heads"),
    ({}, Site(layer=1, prediction_head=2), r"--layer=1 must lie in 0\.\.0: there are 1 layers in prediction head 2"),
    ({}, Site(loop=2), r"--loop=2 must lie in 1\.\.1: the trunk of this model is run once"),
    (KINDS["parallel, looped"], Site(loop=0), r"--loop=0 must lie in 1\.\.2: the trunk of this model is run 2 times"),
    ({"head_kind": "linear", "num_layers": 2}, Site(prediction_head=1), "'linear' have no attention of their own "
     r"\(kinds that have: anticausal, causal, parallel, sequential\)"),
    ({"head_kind": "medusa", "num_layers": 2}, Site(prediction_head=2), "'medusa' have no attention of their own"),
    (KINDS["sequential"], Site(prediction_head=1), r"is the trunk read out, with no attention.*that have: 2\.\.3"),
])
def test_places_that_there_are_not(changes, site, message):
    config = make_config(**changes)
    model = DecodingModel(config, None, config.num_heads, 8)
    with pytest.raises(ValueError, match=message):
        call_number(model, site)


@pytest.mark.parametrize("rows, message", [
    ([[1, 2], [1]], r"one length of at least 1, got \[1, 2\]"), ([[]], "at least 1"), ([[0.5]], "ids from 0 to 10"),
    ([[11]], "ids from 0 to 10"), ([list(range(9))], "9 tokens do not fit the model's window of 8"),
])
def test_rows_that_cannot_be_read(rows, message):
    with pytest.raises(ValueError, match=message):
        record(DecodingModel(make_config(), None, 3, 8), rows, Site())
