"""Head kinds: who depends on whom, who sees what, what is cut, and what is left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.model import Execution, HeadKind, ModelSpec, get_head_kind, register_head_kind
from mtp_jax.model.heads import HEAD_KINDS
from mtp_jax.model.heads.interface import scale_gradient
from mtp_jax.objective import multi_token_targets
from tests.small_model import (
    QUICK,
    ROLLED,
    assert_trees_close,
    gradient_function,
    loss_of,
    make_batch,
    make_config,
    make_params,
    primitives,
)

KINDS = ("parallel", "linear", "causal", "anticausal", "sequential", "medusa")
N = 3
SCALE = (0.07, 0.13, 0.04)
SKIPPING = Execution(unroll=False, skip_idle_heads=True)


def config_of(kind, **changes):
    """Returns three heads on a trunk of one layer."""
    return make_config(head_kind=kind, num_heads=N, num_layers=1 + get_head_kind(kind).layers_per_head * N, **changes)


def entry(kind, i):
    """Returns the entry of head i (from 0) in the stacks of parameters; None where that head has no parameters."""
    return None if i + 1 < get_head_kind(kind).first_own else i + 1 - get_head_kind(kind).first_own


def states(kind, params, batch):
    """Returns [N, B, L, D]."""
    return gradient_function(config_of(kind))(params, batch, jnp.asarray(SCALE))[0][1][1]


PATTERNS = {"parallel": np.eye(N, dtype=bool), "linear": np.eye(N, dtype=bool),
            "causal": np.tril(np.ones((N, N), bool)), "anticausal": np.triu(np.ones((N, N), bool)),
            "sequential": np.tril(np.ones((N, N), bool))[:, 1:],  # head 1 has no parameters of its own
            "medusa": np.eye(N, dtype=bool)[:, 1:]}


@pytest.mark.parametrize("kind", KINDS)
def test_which_heads_parameters_a_heads_logits_depend_on(kind, x64):
    """Entry (i, j) of a leaf: whether d(logits of head i) / d(its entry j) is anywhere not zero."""
    config, batch = config_of(kind, unembedding="replicated"), make_batch()
    spec, params = ModelSpec.create(config), make_params(config)
    direction_BxLxV = jnp.asarray(np.random.default_rng(3).normal(size=(2, 12, config.vocab_size)))

    def along(part):
        model = spec.bind({**params, **part})
        h_NxBxLxD = model(batch["tokens"], batch["segments"], batch["positions"], execution=ROLLED)
        return jnp.sum(model.logits(h_NxBxLxD)[..., :config.vocab_size] * direction_BxLxV[None], axis=(1, 2, 3))

    parts = {"heads": params["heads"], "unembedding": params["unembedding"]}
    jacobian = jax.jit(jax.jacrev(along), compiler_options=QUICK)(parts)

    def pattern(leaf_NxNxX):
        return np.asarray(jnp.any(leaf_NxNxX != 0, axis=tuple(range(2, leaf_NxNxX.ndim))))

    for path, leaf in jax.tree_util.tree_leaves_with_path(jacobian["heads"]):
        np.testing.assert_array_equal(pattern(leaf), PATTERNS[kind], err_msg=jax.tree_util.keystr(path))
    np.testing.assert_array_equal(pattern(jacobian["unembedding"]["kernel"]), np.eye(N, dtype=bool))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [3, 7, 11])
def test_no_head_sees_a_later_token_or_another_document(kind, changed, x64):
    """Row 0 holds documents at 0-5 and 6-9; row 1 is one document. A change moves what may see it, and only that.

    A sequential head k reads the k - 1 tokens after its position too. Near the end of a document some of these are the
    next one's, and so only the positions count that have a target.
    """
    params, batch = make_params(config_of(kind)), make_batch()
    before = states(kind, params, batch)
    tokens = batch["tokens"].copy()
    tokens[:, changed] = (tokens[:, changed] + 1) % 11
    after = states(kind, params, {**batch, "tokens": tokens})
    moved_NxBxL = np.any(np.asarray(before != after), axis=-1)
    position, segments = np.arange(12), batch["segments"]
    _, targets_NxBxL = multi_token_targets(batch["tokens"], segments, batch["positions"], N)
    for k in range(N):
        reads = k if kind == "sequential" else 0
        may_move_BxL = (position[None] + reads >= changed) & (segments == segments[:, changed][:, None])
        counts_BxL = np.asarray(targets_NxBxL[k]) if reads else segments > 0
        assert not reads or counts_BxL.sum() == 22 - 3 * (k + 1)
        np.testing.assert_array_equal(moved_NxBxL[k][counts_BxL], may_move_BxL[counts_BxL])


@pytest.mark.parametrize("kind", ["parallel", "linear", "causal", "sequential", "medusa"])
def test_detached_heads_leave_the_trunk_to_head_1(kind, x64):
    config, batch = config_of(kind), make_batch()
    params, scale_N = make_params(config), jnp.asarray(SCALE)
    together = gradient_function(config)
    (loss, _), plain = together(params, batch, scale_N)
    _, alone = together(params, batch, scale_N * jnp.asarray([1, 0, 0]))
    (detached_loss, _), detached = gradient_function(config, detach_trunk=True)(params, batch, scale_N)
    assert abs(loss - detached_loss) < 1e-12
    for part in ("embedding", "trunk", *(("final_norm",) if get_head_kind(kind).first_own == 2 else ())):
        assert_trees_close(detached[part], alone[part], 1e-12)
        assert max(jnp.max(jnp.abs(a - b)) for a, b in zip(jax.tree.leaves(plain[part]),
                                                          jax.tree.leaves(alone[part]))) > 1e-3
    own = entry(kind, 1)  # where head 2's begin
    head_1 = functools.partial(jax.tree.map, lambda leaf: leaf[:own])
    further = functools.partial(jax.tree.map, lambda leaf: leaf[own:])
    assert_trees_close(head_1(detached["heads"]), head_1(alone["heads"]), 1e-12)
    assert_trees_close(further(detached["heads"]), further(plain["heads"]), 1e-12)


def test_anticausal_heads_cannot_be_detached():
    config = config_of("anticausal")
    with pytest.raises(ValueError, match="objective.detach_trunk=True.*anticausal.*train.trainable"):
        jax.eval_shape(lambda p: loss_of(config, ROLLED, p, make_batch(), jnp.ones(N), detach_trunk=True),
                       ModelSpec.create(config).shapes)
    assert get_head_kind("anticausal").detached_gates(1).tolist() == [1]


WEIGHTS = [(1, 0, 0), (0.5, 0, 2), (0, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_idle_heads_changes_no_result(kind, x64):
    config, batch = config_of(kind), make_batch()
    params = make_params(config)
    onwards = lambda i, w: any(w[i:])  # noqa: E731
    needed = {"causal": onwards, "sequential": onwards, "anticausal": lambda i, w: any(w[:i + 1])}.get(
        kind, lambda i, w: w[i] > 0)
    for weights in WEIGHTS:
        scale_N = jnp.asarray(SCALE) * jnp.asarray(weights)
        (loss, (sums, _, _)), gradient = gradient_function(config, SKIPPING, chunks=2)(params, batch, scale_N)
        (want_loss, (want_sums, _, _)), want = gradient_function(config)(params, batch, scale_N)
        assert_trees_close((loss, gradient), (want_loss, want), 1e-12)
        weighted = jnp.asarray(weights) > 0
        assert_trees_close(sums, jax.tree.map(lambda x, w=weighted: jnp.where(w, x, 0), want_sums), 1e-12)
        for i in range(N):
            if entry(kind, i) is not None:
                moves = any(jnp.any(leaf[entry(kind, i)] != 0) for leaf in jax.tree.leaves(gradient["heads"]))
                assert moves == needed(i, weights), f"head {i + 1}, weights {weights}"
        assert list(get_head_kind(kind).active(jnp.asarray(weights))) == [needed(i, weights) for i in range(N)]


@pytest.mark.parametrize("kind", KINDS)
def test_idle_heads_are_not_computed(kind, x64):
    """A head full of NaN that nobody needs leaves loss and gradient finite; run, it would spoil them."""
    config, batch = config_of(kind), make_batch()
    idle, weights = (0, (0, 0, 1)) if kind in ("parallel", "linear") else (2, (1, 1, 0))
    if kind == "anticausal":
        idle, weights = 0, (0, 1, 1)
    params, scale_N = make_params(config), jnp.asarray(SCALE) * jnp.asarray(weights)
    params["heads"] = jax.tree.map(lambda leaf: leaf.at[entry(kind, idle)].set(jnp.nan), params["heads"])
    (loss, _), gradient = gradient_function(config, SKIPPING, chunks=2)(params, batch, scale_N)
    assert jnp.isfinite(loss) and all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    (loss, _), _ = gradient_function(config)(params, batch, scale_N)
    assert jnp.isnan(loss)


@pytest.mark.parametrize("kind", KINDS)
def test_the_branch_is_in_the_program_only_where_heads_may_rest(kind):
    config = config_of(kind)

    def branches(execution):
        return primitives(lambda p: loss_of(config, execution, p, make_batch(), jnp.ones(N))[0],
                          ModelSpec.create(config).shapes).count("cond")

    assert branches(ROLLED) == 0
    assert branches(SKIPPING) == 2  # heads, loss


def test_scale_gradient_keeps_the_value_and_scales_the_gradient():
    x = jnp.asarray([1.5, -2.0])
    for gate in (0.0, 1.0):
        value, gradient = jax.value_and_grad(lambda x, gate=gate: jnp.sum(scale_gradient(x, jnp.asarray(gate))**2))(x)
        assert value == jnp.sum(x**2) and jnp.array_equal(gradient, 2 * gate * x)
    gates = jnp.asarray([0.0, 1.0])
    each = jax.vmap(jax.grad(lambda x, gate: jnp.sum(scale_gradient(x, gate)**2)), (None, 0))(x, gates)
    assert jnp.array_equal(each, jnp.stack([0 * x, 2 * x]))
    assert scale_gradient(x, None) is x


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="head kind 'parallel' is already registered by"):
        register_head_kind("parallel")(type(get_head_kind("causal")))
    register_head_kind("parallel")(type(get_head_kind("parallel")))  # the same class again may
    assert set(HEAD_KINDS) == set(KINDS)


def test_a_kind_of_ones_own_is_selected_by_its_name(monkeypatch):
    monkeypatch.setattr("mtp_jax.model.heads.interface.HEAD_KINDS", dict(HEAD_KINDS))

    @register_head_kind("silent")
    class Silent(HeadKind):
        """Every head repeats the trunk."""

        layers_per_head = 0

        def parameters(self, config, rngs):
            return get_head_kind("linear").parameters(config, rngs)

        def __call__(self, heads, norm, z_BxLxD, context, *, active_N, gates_N, execution, ahead):
            return jnp.broadcast_to(norm(z_BxLxD)[None], (active_N.shape[0], *z_BxLxD.shape))

    config = make_config(head_kind="silent", num_layers=1)
    model, batch = ModelSpec.create(config).bind(make_params(config)), make_batch()
    assert jax.eval_shape(model, *batch.values()).shape == (N, 2, 12, 16)
