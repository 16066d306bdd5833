"""Recorded attention is the model's own, for every place that has attention; the identity of layer 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.analysis.probes.attention import Recorded, Site, average, record
from mtp_jax.analysis.probes.attention_measures import compare, curves, identity
from mtp_jax.analysis.probes.conditions import insert
from mtp_jax.decoding.model import DecodingModel
from mtp_jax.model import ModelSpec, attention
from mtp_jax.model.stacks import Execution
from tests.small_model import make_config, make_params

KINDS = {"parallel": dict(num_attention_heads=4, num_kv_heads=2, qk_norm=True), "causal": {}, "anticausal": {},
         "sequential": dict(num_layers=2), "linear": dict(num_layers=2), "medusa": dict(num_layers=2)}
LOOPED = dict(num_layers=5, trunk_kind="looped", loops=3)
ROWS = np.random.default_rng(0).integers(0, 11, (2, 64), dtype=np.int32)


def make_model(config, window=64):
    spec = ModelSpec.create(config)
    params = make_params(config)
    return DecodingModel.from_params(spec, params, window=window), spec, params


def everything(config, spec, params, rows, monkeypatch):
    """Returns (q, k, v, o) of every layer with attention, in the order in which the training forward runs them."""
    calls = []

    def kernel(q, k, v, segments, layout):
        o = attention.KERNELS["xla"](q, k, v, segments, layout)
        calls.append(tuple(map(np.asarray, (q, k, v, o))))
        return o

    monkeypatch.setitem(attention.KERNELS, "noted", kernel)
    positions = np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape)
    spec.bind(params)(jnp.asarray(rows), jnp.ones(rows.shape, jnp.int32), positions, execution=Execution(kernel="noted"))
    return calls


def places(config):
    """Returns (layer, prediction head, loop) in the order of the training forward."""
    order = {"anticausal": (3, 2, 1), "sequential": (2, 3)}.get(config.head_kind, (1, 2, 3))
    trunk = config.num_layers - (0 if config.head_kind == "sequential" else 3)
    found = [(layer, None, loop) for loop in range(1, config.loops + 1) for layer in range(trunk)]
    return found + [(0, number, None) for number in order]


@pytest.mark.parametrize("changes", [*({"head_kind": kind, **KINDS[kind]} for kind in (
    "parallel", "causal", "anticausal", "sequential")), LOOPED], ids=lambda changes: str(changes.get("head_kind", "looped")))
def test_weights_are_those_of_the_models_own_queries_and_keys(changes, monkeypatch, x64):
    config = make_config(**changes)
    model, spec, params = make_model(config)
    calls = everything(config, spec, params, ROWS, monkeypatch)
    assert len(calls) == len(places(config))
    for (layer, number, loop), (q, k, v, o) in zip(places(config), calls):
        head = (layer + (number or 0)) % config.num_attention_heads
        seen = record(model, ROWS, Site(layer, head, number, loop))
        shared = q.shape[2] // k.shape[2]
        np.testing.assert_allclose(seen.queries_BxLxC, q[:, :, head], atol=1e-11)
        np.testing.assert_allclose(seen.keys_BxLxC, k[:, :, head // shared], atol=1e-11)
        scores = np.einsum("bic,bjc->bij", q[:, :, head], k[:, :, head // shared]) / np.sqrt(q.shape[-1])
        scores = np.exp(np.where(np.tri(64, dtype=bool), scores, -np.inf))
        np.testing.assert_allclose(seen.weights_BxLxL, scores / scores.sum(-1, keepdims=True), atol=1e-11)
        np.testing.assert_allclose(seen.weights_BxLxL @ seen.values_BxLxC, o[:, :, head], atol=1e-11)
    assert attention.KERNELS.keys() == {"xla", "blocked", "cudnn", "splash", "noted"}
