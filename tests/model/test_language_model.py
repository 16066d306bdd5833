"""The model against a plain transformer, its options against their base forms, and the layout of its parameters."""

import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.model import Execution, ModelSpec, num_trunk_layers
from mtp_jax.parallel import LOGICAL_AXES
from tests import plain_model
from tests.small_model import (
    QUICK,
    ROLLED,
    assert_trees_close,
    gradient_function,
    largest_array,
    loss_of,
    make_batch,
    make_config,
    make_params,
    primitives,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "parameters.json"
STRICT = 1e-12
SCALE = (0.07, 0.13, 0.04)  # loss weight over number of targets, one a head

FORMS = {
    "plain transformer": {"num_heads": 1, "num_layers": 2},
    "parallel": {},
    "linear": {"head_kind": "linear", "num_layers": 1},
    "medusa": {"head_kind": "medusa", "num_layers": 1, "medusa_layers": 2},
    "sequential": {"head_kind": "sequential", "num_layers": 1},
    "causal": {"head_kind": "causal"},
    "anticausal": {"head_kind": "anticausal"},
    "grouped KV heads": {"num_heads": 1, "num_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2},
    "QK-norm": {"num_heads": 1, "num_layers": 2, "qk_norm": True},
    "tied": {"tie_embedding": True},
    "replicated": {"unembedding": "replicated"},
    "extra trunk layers": {"extra_trunk_layers": 1},
    "other numbers": {"num_heads": 1, "num_layers": 1, "num_kv_heads": 1, "head_dim": 6, "rope_theta": 50.0,
                      "norm_eps": 0.1},
}


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_plain_model(form, x64):
    """Logits, loss and every gradient; with one head this is the claim that n = 1 is a plain transformer."""
    config = make_config(**FORMS[form])
    params, batch = make_params(config), make_batch()
    scale_N = jnp.asarray(SCALE[:config.num_heads])
    real = batch["segments"] > 0
    (loss, (_, _, logits)), gradient = gradient_function(config)(params, batch, scale_N)
    plain = jax.value_and_grad(lambda p: plain_model.loss(config, p, batch, scale_N), has_aux=True)
    (want_loss, want_logits), want = jax.jit(plain, compiler_options=QUICK)(params)
    for k in range(config.num_heads):
        assert_trees_close(logits[k][real], want_logits[k][real], STRICT)
    assert_trees_close((loss, gradient), (want_loss, want), STRICT)


@pytest.mark.parametrize("kind", ["causal", "anticausal"])
def test_one_head_is_the_same_model_for_every_wiring(kind, x64):
    plain = make_config(num_heads=1, num_layers=2)
    config = make_config(num_heads=1, num_layers=2, head_kind=kind)
    params, batch = make_params(plain), make_batch()
    assert jax.tree.map(jnp.shape, ModelSpec.create(config).shapes) == jax.tree.map(jnp.shape, params)
    scale_N = jnp.asarray(SCALE[:1])
    assert_trees_close(gradient_function(config)(params, batch, scale_N),
                       gradient_function(plain)(params, batch, scale_N), STRICT)


def test_one_head_may_be_the_only_layer():
    config = make_config(num_heads=1, num_layers=1)
    assert "trunk" not in ModelSpec.create(config).shapes and num_trunk_layers(config) == 0


def test_grouped_kv_heads_are_shared_full_heads(x64):
    """Repeating each KV head over its group changes no logit, and their gradients add up to the group's."""
    grouped, full = (make_config(num_heads=1, num_layers=2, num_attention_heads=4, num_kv_heads=k) for k in (2, 4))
    params, batch, scale_N = make_params(grouped), make_batch(), jnp.asarray(SCALE[:1])

    def repeat(path, leaf):
        return jnp.repeat(leaf, 2, axis=2) if path[-1].key in ("key", "value") else leaf

    (loss, _), gradient = gradient_function(grouped)(params, batch, scale_N)
    (full_loss, _), full_gradient = gradient_function(full)(jax.tree_util.tree_map_with_path(repeat, params), batch,
                                                            scale_N)

    def add_up(path, leaf):
        return leaf.reshape(*leaf.shape[:2], 2, 2, -1).sum(3) if path[-1].key in ("key", "value") else leaf

    assert_trees_close((loss, gradient), (full_loss, jax.tree_util.tree_map_with_path(add_up, full_gradient)), STRICT)


def test_tied_embedding_gets_its_gradient_from_both_sides(x64):
    tied, untied = make_config(tie_embedding=True), make_config()
    params, batch, scale_N = make_params(tied), make_batch(), jnp.asarray(SCALE)
    assert "unembedding" not in params
    separate = {**params, "unembedding": {"kernel": params["embedding"]["embedding"]}}
    (loss, _), gradient = gradient_function(tied)(params, batch, scale_N)
    (want_loss, _), want = gradient_function(untied)(separate, batch, scale_N)
    from_input, from_output = want["embedding"]["embedding"], want.pop("unembedding")["kernel"]
    assert jnp.any(from_input != 0) and jnp.any(from_output != 0)
    want["embedding"] = {"embedding": from_input + from_output}
    assert_trees_close((loss, gradient), (want_loss, want), STRICT)


def test_replicated_unembeddings_that_are_equal_are_the_shared_one(x64):
    shared, replicated = make_config(), make_config(unembedding="replicated")
    params, batch, scale_N = make_params(shared), make_batch(), jnp.asarray(SCALE)
    copies = {**params, "unembedding": {"kernel": jnp.stack([params["unembedding"]["kernel"]] * 3)}}
    (loss, _), gradient = gradient_function(replicated)(copies, batch, scale_N)
    (want_loss, _), want = gradient_function(shared)(params, batch, scale_N)
    each = gradient["unembedding"]["kernel"]
    assert each.shape == (3, 16, 16) and not jnp.allclose(each[0], each[1])
    gradient["unembedding"] = {"kernel": each.sum(0)}
    assert_trees_close((loss, gradient), (want_loss, want), STRICT)


EXECUTIONS = {
    "unrolled": Execution(),
    "remat dots": Execution(remat="dots", unroll=False),
    "remat full": Execution(remat="full", unroll=False),
    "heads abreast": Execution(unroll=False, heads_abreast=3),
    "heads abreast, unrolled, remat full": Execution(remat="full", heads_abreast=3),
    "idle heads skipped": Execution(remat="dots", skip_idle_heads=True),
}


SLOW = ("remat full", "heads abreast")  # each of these is a part of another


@pytest.mark.parametrize("name, kind", [*(pytest.param(name, "parallel", marks=[pytest.mark.slow] * (name in SLOW))
                                          for name in EXECUTIONS),
                                        pytest.param("idle heads skipped", "sequential", marks=pytest.mark.slow)])
def test_execution_changes_no_result(name, kind, x64):
    config = make_config(**FORMS[kind])
    params, batch, scale_N = make_params(config), make_batch(), jnp.asarray(SCALE)
    got = gradient_function(config, EXECUTIONS[name], chunks=2)(params, batch, scale_N)
    assert_trees_close(got, gradient_function(config)(params, batch, scale_N), STRICT)


def test_bf16_compute_keeps_parameters_gradients_and_loss_in_fp32():
    narrow, wide = (make_config(dtype=dtype, param_dtype="float32") for dtype in ("bfloat16", "float32"))
    params, batch, scale_N = make_params(narrow), make_batch(), jnp.asarray(SCALE, jnp.float32)
    (loss, (sums, states, _)), gradient = gradient_function(narrow, chunks=2)(params, batch, scale_N)
    assert states.dtype == jnp.bfloat16
    assert loss.dtype == jnp.float32 and {x.dtype for x in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    (want, (_, states, _)), want_gradient = gradient_function(wide, chunks=2)(params, batch, scale_N)
    assert states.dtype == jnp.float32
    assert loss != want and abs(loss - want) < 0.02 * want
    for got, exact in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient)):
        assert jnp.linalg.norm(got - exact) < 0.1 * jnp.linalg.norm(exact)


def test_bf16_norms_and_logits_are_computed_in_fp32():
    """With states near 200 a mean square in bf16 would be off by per cents, and logits in bf16 by their 8 bits."""
    config = make_config(dtype="bfloat16", param_dtype="float32")
    model = ModelSpec.create(config).bind(make_params(config))
    x = jnp.asarray(200 + 10 * np.random.default_rng(0).normal(size=(1, 1, 16)), jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    exact = wide / np.sqrt(np.mean(wide**2) + config.norm_eps) * np.asarray(model.final_norm.scale[...])[None, None, :]
    np.testing.assert_array_equal(model.final_norm(x), jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))
    h = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1, 3, 16)), jnp.bfloat16)
    matrix = np.asarray(model.unembedding_matrix().astype(jnp.bfloat16), np.float64)
    logits = model.logits(h)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[..., :11], np.asarray(h, np.float64) @ matrix[:11].T, rtol=1e-5, atol=1e-5)


def test_ids_of_the_vocabulary_padding_have_no_probability():
    config = make_config()
    logits = ModelSpec.create(config).bind(make_params(config)).logits(jnp.ones((3, 1, 3, 16)))
    assert logits.shape == (3, 1, 3, 16)
    assert np.all(np.isneginf(logits[..., 11:])) and np.all(np.isfinite(logits[..., :11]))


def test_initial_parameters():
    config = make_config(num_layers=8, d_model=64, d_ff=128, vocab_size=500, init_std=0.05)
    spec = ModelSpec.create(config)
    init = jax.jit(spec.init, compiler_options=QUICK)
    params = init(jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), spec.shapes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name == "scale":
            assert np.all(np.asarray(leaf) == 1)
            continue
        std = 0.05 / math.sqrt(16) if name in ("out", "down") else 0.05
        assert abs(np.std(leaf) - std) < 0.05 * std and abs(np.mean(leaf)) < 0.05 * std, jax.tree_util.keystr(path)
    layers = np.asarray(params["trunk"]["mlp"]["gate"])
    assert not np.array_equal(layers[0], layers[1])
    again, other = init(jax.random.key(0)), init(jax.random.key(1))
    assert jnp.array_equal(again["heads"]["mlp"]["up"], params["heads"]["mlp"]["up"])
    assert not jnp.array_equal(other["heads"]["mlp"]["up"], params["heads"]["mlp"]["up"])


@pytest.mark.parametrize("kind", ["parallel", "causal", "anticausal"])
def test_parameter_count_does_not_depend_on_the_number_of_heads(kind):
    counts = {n: ModelSpec.create(make_config(num_heads=n, num_layers=6, head_kind=kind)).num_params
              for n in (1, 2, 4)}
    assert len(set(counts.values())) == 1, counts
    more = ModelSpec.create(make_config(num_heads=4, num_layers=6, extra_trunk_layers=3, head_kind=kind))
    layer = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(more.shapes["trunk"]))
    assert more.num_params == counts[4] + 3 * layer and more.shapes["trunk"]["mlp"]["up"].shape[0] == 5


def test_linear_heads_keep_the_trunk_whole():
    shapes = ModelSpec.create(make_config(num_heads=4, num_layers=6, head_kind="linear")).shapes
    assert shapes["trunk"]["mlp"]["up"].shape[0] == 6 and shapes["heads"]["kernel"].shape == (4, 16, 16)


def test_medusa_heads_keep_the_trunk_whole_and_start_as_head_1(x64):
    config = make_config(num_heads=4, num_layers=2, head_kind="medusa")
    spec = ModelSpec.create(config)
    assert spec.shapes["trunk"]["mlp"]["up"].shape[0] == 2 and spec.shapes["heads"]["kernel"].shape == (3, 1, 16, 16)
    batch = make_batch()
    h_NxBxLxD = spec.bind(spec.init(jax.random.key(0)))(**{f"{name}_BxL": batch[name] for name in batch})
    for k in range(1, 4):
        assert jnp.array_equal(h_NxBxLxD[k], h_NxBxLxD[0])


@pytest.mark.parametrize("kind", ["medusa", "sequential"])
def test_one_head_alone_is_a_plain_transformer_without_parameters_for_heads(kind, x64):
    alone, plain = make_config(num_heads=1, num_layers=2, head_kind=kind), make_config(num_heads=1, num_layers=2)
    params, batch, scale_N = make_params(alone), make_batch(), jnp.asarray(SCALE[:1])
    assert "heads" not in params
    same = {**params, "trunk": jax.tree.map(lambda x: x[:1], params["trunk"]),
            "heads": jax.tree.map(lambda x: x[1:], params["trunk"])}
    (loss, (_, _, logits)), _ = gradient_function(alone)(params, batch, scale_N)
    (want, (_, _, want_logits)), _ = gradient_function(plain)(same, batch, scale_N)
    assert_trees_close((loss, logits), (want, want_logits), STRICT)


# Gloeckle et al. 2024, Table S14: name, width, layers, attention heads, parameters outside the embeddings.
TABLE_S14 = [("1M", 128, 5, 4, 0.98e6), ("3M", 256, 4, 8, 3.15e6), ("10M", 384, 6, 8, 10.6e6),
             ("30M", 512, 10, 8, 31.5e6), ("100M", 768, 14, 12, 99.1e6), ("300M", 1024, 25, 16, 315e6),
             ("1B", 1536, 36, 24, 1.02e9), ("0.3B", 1024, 18, 16, 226e6), ("0.6B", 1280, 27, 20, 531e6),
             ("1.3B", 2048, 24, 16, 1.21e9), ("3B", 2560, 36, 20, 2.83e9), ("6.7B", 4096, 32, 32, 6.44e9),
             ("13B", 5120, 40, 40, 12.6e9)]


@pytest.mark.parametrize("name, width, layers, heads, published", TABLE_S14)
def test_the_papers_shapes_have_the_papers_sizes(name, width, layers, heads, published):
    config = make_config(num_heads=min(4, layers - 1), d_model=width, num_layers=layers, num_attention_heads=heads,
                         d_ff=None, vocab_size=32_000)
    spec = ModelSpec.create(config)
    matrices = sum(math.prod(leaf.shape) for part in ("trunk", "heads")
                   for path, leaf in jax.tree_util.tree_leaves_with_path(spec.shapes[part])
                   if path[-1].key != "scale")
    formula = 12 * width**2 * layers
    assert formula == pytest.approx(published, rel=6e-3)
    rounding = 3 * config.d_ff_multiple * width * layers  # d_ff is rounded up, by less than one multiple
    assert formula <= matrices < formula + rounding


@pytest.mark.parametrize("kind, changes", [
    ("parallel", {}), ("parallel", {"unembedding": "replicated", "qk_norm": True, "num_kv_heads": 2}),
    ("linear", {"tie_embedding": True}), ("causal", {}), ("anticausal", {"param_dtype": "bfloat16"}),
    ("medusa", {}), ("medusa", {"medusa_layers": 2, "unembedding": "replicated"}),
    ("sequential", {"qk_norm": True, "num_kv_heads": 2}),
    ("parallel", {"trunk_kind": "looped", "loops": 2, "sandwich_norm": True})])
def test_parameter_paths_shapes_and_axes_are_the_golden_ones(kind, changes):
    """Checkpoints and converters stand on these names."""
    shape = {"num_heads": 2, "num_layers": 5, "num_attention_heads": 4}
    spec = ModelSpec.create(make_config(head_kind=kind, **shape, **changes))
    flat_axes = dict(jax.tree_util.tree_leaves_with_path(spec.axes, is_leaf=lambda x: isinstance(x, tuple)))
    found = {"/".join(part.key for part in path): f"{leaf.dtype.name}{list(leaf.shape)} {' '.join(flat_axes[path])}"
             for path, leaf in jax.tree_util.tree_leaves_with_path(spec.shapes)}
    case = ", ".join([kind, *(f"{name}={value}" for name, value in changes.items())])
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("MTP_JAX_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, case: found}, indent=1) + "\n")
        return
    assert found == golden.get(case), (
        "The parameters' paths, shapes or logical axes have changed, so existing checkpoints no longer fit. If that is "
        "meant, write a migration, then renew the file: MTP_JAX_UPDATE_GOLDEN=1 python -m pytest "
        "tests/model/test_language_model.py -k golden")


def test_axes_name_every_dimension_of_every_parameter():
    spec = ModelSpec.create(make_config(qk_norm=True))
    axes = dict(jax.tree_util.tree_leaves_with_path(spec.axes, is_leaf=lambda x: isinstance(x, tuple)))
    shapes = dict(jax.tree_util.tree_leaves_with_path(spec.shapes))
    assert axes.keys() == shapes.keys()
    for path, names in axes.items():
        assert len(names) == shapes[path].ndim and set(names) <= set(LOGICAL_AXES), jax.tree_util.keystr(path)


@pytest.mark.parametrize("kind", ["parallel", "causal", "anticausal"])
@pytest.mark.parametrize("num_heads, num_layers", [(2, 2), (4, 4), (5, 3)])
def test_too_many_heads_for_the_layers(kind, num_heads, num_layers):
    with pytest.raises(ValueError, match=f"model.num_heads={num_heads} is too large for model.num_layers={num_layers}"):
        ModelSpec.create(make_config(head_kind=kind, num_heads=num_heads, num_layers=num_layers))


def test_unknown_head_kind_suggests_the_nearest():
    with pytest.raises(ValueError, match='model.head_kind=\'paralel\'.*Did you mean "parallel"'):
        ModelSpec.create(make_config(head_kind="paralel"))


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
def test_64_bits_without_64_bit_jax(name):
    """Else jax would compute in 32 bits and only warn."""
    with pytest.raises(ValueError, match=f"model.{name}='float64' would be cut to float32: set JAX_ENABLE_X64=1"):
        ModelSpec.create(make_config(**{name: "float64"}))


def test_making_the_spec_of_a_large_model_makes_no_array():
    before = len(jax.live_arrays())
    assert ModelSpec.create(make_config(num_layers=40, d_model=5120, num_attention_heads=40, d_ff=None,
                                        vocab_size=32_000)).num_params > 12e9
    assert len(jax.live_arrays()) == before


def test_rolled_is_a_loop_and_unrolled_only_for_the_loss(x64):
    config = make_config(num_layers=6)
    params, batch, scale_N = make_params(config), make_batch(), jnp.asarray(SCALE)

    def loops(execution):
        return primitives(lambda p: loss_of(config, execution, p, batch, scale_N)[0], params).count("scan")

    assert loops(Execution()) == 1  # the loss, so that one gradient of the unembedding exists at a time
    assert loops(ROLLED) == 3  # trunk, heads, loss


def test_the_gradient_of_the_whole_model_holds_no_array_of_all_logits():
    config = make_config(vocab_size=200)
    params, batch, scale_N = make_params(config), make_batch(), jnp.asarray(SCALE)

    def largest(chunks):
        return largest_array(jax.grad(lambda p: loss_of(config, ROLLED, p, batch, scale_N, chunks=chunks)[0]), params)

    assert largest(1) == 2 * 12 * 200
    assert largest(3) == params["embedding"]["embedding"].size
