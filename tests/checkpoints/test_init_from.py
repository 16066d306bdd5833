"""Parameters from another run, heads mapped by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtp_jax.checkpoints import Checkpointer, CheckpointError, CheckpointMismatch, initialise_from, load_params
from mtp_jax.checkpoints import checkpointer as checkpointing


@pytest.fixture
def workdir(tmp_path, state_of, config):
    """A run that saved the checkpoints 1 and 2 of a model with 2 heads."""
    with Checkpointer(tmp_path / "run" / "checkpoints", config()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state_of(step), {"config": {"model": {"num_heads": 2}}})
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/2"])
def test_loads_the_parameters_alone(workdir, state_of, assert_same, place):
    loaded = load_params(workdir / place)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))
    assert_same(loaded.params, state_of(2).params)
    assert loaded.step == 2 and loaded.extra["config"] == {"model": {"num_heads": 2}}


def test_loads_an_earlier_step(workdir, state_of, assert_same):
    loaded = load_params(workdir / "checkpoints" / "1")
    assert loaded.step == 1
    assert_same(loaded.params, state_of(1).params)


def test_damage(workdir, caplog):
    (workdir / "checkpoints/2/state/_METADATA").write_text("{}")
    assert load_params(workdir).step == 1
    assert "Checkpoint 2" in caplog.text and "state/_METADATA" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoints/2 is damaged: state/_METADATA: size"):
        load_params(workdir / "checkpoints" / "2")


def test_nothing_there(tmp_path, config):
    with pytest.raises(CheckpointError, match="no checkpoint in .*init_from.path"):
        load_params(tmp_path)
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, {"x": jnp.float32(1)}, {})
    with pytest.raises(CheckpointError, match="holds no parameters"):
        load_params(tmp_path)


def test_takes_the_shardings_of_the_new_model(workdir, params_of, assert_same):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(4), ("pred_heads",))
    new = params_of(9, heads=4, trunk=3)
    new["heads"] = jax.device_put(new["heads"], NamedSharding(mesh, PartitionSpec("pred_heads")))
    full = NamedSharding(mesh, PartitionSpec())
    for name in ("embedding", "trunk", "final_norm", "unembedding"):
        new[name] = jax.device_put(new[name], full)
    source = load_params(workdir, like=new).params
    assert source["embedding"]["embedding"].sharding == full
    assert source["heads"]["mlp_norm"]["scale"].sharding == full  # two heads do not divide by four devices
    made = initialise_from(source, new, heads=(2, "fresh", 1, 2))
    for got, want in zip(jax.tree.leaves(made), jax.tree.leaves(new)):
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim) and got.shape == want.shape
    old = source["heads"]["mlp_norm"]["scale"]
    assert_same(np.asarray(made["heads"]["mlp_norm"]["scale"]),
                np.stack([old[1], new["heads"]["mlp_norm"]["scale"][1], old[0], old[1]]))


def bytes_read():
    """Returns what tensorstore has read from files so far."""
    import tensorstore

    found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value.get("value", 0) for metric in found for value in metric["values"])


def first_heads(params, k):
    """Returns the parameters with the first k of each that has one a head."""
    def cut(path, leaf):
        name = "/".join(key.key for key in path)
        return leaf[:k] if name.startswith("heads/") or (name == "unembedding/kernel" and leaf.ndim == 3) else leaf

    return jax.tree_util.tree_map_with_path(cut, params)


@pytest.mark.parametrize("unembedding", ["shared", "replicated"])
def test_heads_that_are_not_asked_for_are_neither_read_nor_held(tmp_path, state_of, config, assert_same, unembedding):
    state = state_of(1, heads=4, width=2048, unembedding=unembedding)
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, state, {})
    taken = {}
    for k in (1, 3, 4):
        before = bytes_read()
        params = load_params(tmp_path, heads=k).params
        taken[k] = bytes_read() - before
        assert_same(params, first_heads(state.params, k))
    one = sum(leaf[:1].nbytes for leaf in jax.tree.leaves(state.params["heads"]))
    one += state.params["unembedding"]["kernel"][:1].nbytes if unembedding == "replicated" else 0
    for k in (1, 3):  # normal draws of fp32 keep 92 % of their size under zstd
        assert 0.85 * (4 - k) * one <= taken[4] - taken[k] <= (4 - k) * one


def test_heads_of_an_older_checkpoint_are_cut(tmp_path, state_of, config, assert_same, monkeypatch):
    state = state_of(1, heads=3)
    monkeypatch.setattr(checkpointing, "_save_args", lambda leaves: None)  # as it was saved before
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, state, {})
    assert_same(load_params(tmp_path, heads=2).params, first_heads(state.params, 2))


def test_the_first_heads_take_the_shardings_asked_for(workdir, params_of):
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
                        params_of(9, heads=1))
    params = load_params(workdir, like=like, heads=1).params
    assert all(got.sharding == want.sharding and got.shape == want.shape
               for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(like)))


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_are_not_there(workdir, heads):
    with pytest.raises(ValueError, match=f"heads={heads}, but the checkpoint has 2: ask for 1 to 2"):
        load_params(workdir, heads=heads)


@pytest.mark.parametrize("heads", [(1, "fresh", 2), (2, 2, 1), ("fresh", "fresh", "fresh"), ("2", "fresh", "1")])
@pytest.mark.parametrize("unembedding", ["shared", "replicated"])
@pytest.mark.parametrize("backend", ["jax", "numpy"])
def test_maps_heads(params_of, assert_same, heads, unembedding, backend):
    old, new = (params_of(seed, heads=n, unembedding=unembedding) for seed, n in ((1, 2), (2, 3)))
    if backend == "numpy":
        old, new = jax.tree.map(np.asarray, old), jax.tree.map(np.asarray, new)

    def expected(a, b):
        return jnp.stack([b[i] if head == "fresh" else a[int(head) - 1] for i, head in enumerate(heads)])

    want = {**old, "heads": jax.tree.map(expected, old["heads"], new["heads"])}
    if unembedding == "replicated":
        want["unembedding"] = {"kernel": expected(old["unembedding"]["kernel"], new["unembedding"]["kernel"])}
    assert_same(initialise_from(old, new, heads=heads), jax.tree.map(jnp.asarray, want))


def test_empty_heads_take_the_same_order(params_of, assert_same):
    old, new = params_of(1, heads=3), params_of(2, heads=2)
    made = initialise_from(old, jax.eval_shape(lambda: new))
    assert_same(made["heads"], jax.tree.map(lambda x: x[:2], old["heads"]))
    assert_same(made["trunk"], old["trunk"])


def test_a_trunk_gets_fresh_heads(params_of, assert_same):
    old, new = params_of(1), params_of(2, heads=2)
    del old["heads"]
    made = initialise_from(old, new, heads=("fresh", "fresh"))
    assert_same(made, {**old, "heads": new["heads"]})
    with pytest.raises(ValueError, match="numbered from 1 to 0"):
        initialise_from(old, new, heads=(1, "fresh"))
    with pytest.raises(ValueError, match="pass initialised parameters as target"):
        initialise_from(old, jax.eval_shape(lambda: new), heads=("fresh", "fresh"))


@pytest.mark.parametrize("heads, message", [
    ((), r"has 2 and model.num_heads=3: name the new ones, as in init_from.heads=\(1, 2, 'fresh'\)"),
    ((1, 2), "has 2 entries for model.num_heads=3: give one for each"),
    ((0, 1, 2), r"holds 0, but the source's heads are numbered from 1 to 2"),
    ((1, 2, 3), "holds 3, but the source's heads are numbered from 1 to 2"),
    ((1, 2, -1), "holds -1"),
    ((1, 2, True), "holds True"),
    ((1, 2, 1.0), "holds 1.0"),
    ((1, 2, "frsh"), 'holds \'frsh\', which is neither a number nor \'fresh\'. Did you mean "fresh"'),
])
def test_mistakes_in_heads(params_of, heads, message):
    with pytest.raises(ValueError, match=message):
        initialise_from(params_of(1, heads=2), params_of(2, heads=3), heads=heads)


@pytest.mark.parametrize("old, new, message", [
    ({"trunk": 5}, {"trunk": 2}, "has 5 layers and the new model's 2.*raise model.extra_trunk_layers .* by 3"),
    ({"trunk": 2}, {"trunk": 3}, "has 2 layers and the new model's 3.*lower model.num_layers .* by 1"),
    ({"width": 6}, {}, r"embedding/embedding: float32\[8, 6\] in the checkpoint, wanted float32\[8, 4\]"),
    ({"dtype": jnp.bfloat16}, {}, r"heads/mlp_norm/scale: bfloat16\[4\] in the checkpoint, wanted float32\[4\]"),
    ({"unembedding": "replicated"}, {}, r"unembedding/kernel: float32\[2, 8, 4\].*wanted float32\[8, 4\]"),
    ({}, {"unembedding": "replicated"}, r"unembedding/kernel: float32\[8, 4\].*wanted float32\[2, 8, 4\]"),
])
def test_all_but_the_heads_must_match(params_of, old, new, message):
    with pytest.raises(CheckpointMismatch, match=message):
        initialise_from(params_of(1, **old), params_of(2, **new), heads=(1, 2))


def test_a_tied_source_does_not_fill_an_untied_model(params_of):
    old = params_of(1)
    del old["unembedding"]
    with pytest.raises(CheckpointMismatch, match="unembedding/kernel: missing in the checkpoint(.|\n)*tie_embedding"):
        initialise_from(old, params_of(2))


# Of a kind whose head 1 has no parameters, N heads have N - 1 rows.


def test_rows_of_kinds_whose_first_head_has_no_parameters(params_of, assert_same):
    old, new = params_of(1, heads=2, unembedding="replicated"), params_of(2, heads=3, unembedding="replicated")
    for params, seed in ((old, 3), (new, 4)):  # of 3 and of 4 heads, all of which have an unembedding
        params["unembedding"] = params_of(seed, heads=3 if seed == 3 else 4, unembedding="replicated")["unembedding"]
    made = initialise_from(old, new, heads=(1, "fresh", 2, 3), head_kind="medusa")
    assert_same(made["heads"], jax.tree.map(lambda a, b: jnp.stack([b[0], a[0], a[1]]), old["heads"], new["heads"]))
    a, b = old["unembedding"]["kernel"], new["unembedding"]["kernel"]
    assert_same(made["unembedding"]["kernel"], jnp.stack([a[0], b[1], a[1], a[2]]))
    assert_same(made["trunk"], old["trunk"])


def test_a_plain_model_gets_heads_from_the_second_on(params_of, assert_same):
    old, new = params_of(1), params_of(2, heads=2)
    del old["heads"]
    made = initialise_from(old, new, heads=(1, "fresh", "fresh"), head_kind="medusa")
    assert_same(made, {**old, "heads": new["heads"]})
    back = {name: part for name, part in new.items() if name != "heads"}
    assert_same(initialise_from(made, back, heads=(1,), head_kind="medusa"), old)
    with pytest.raises(ValueError, match=r"has 1 and model.num_heads=3.*heads=\(1, 'fresh', 'fresh'\)"):
        initialise_from(old, new, head_kind="medusa")


@pytest.mark.parametrize("heads", [(2, 3, 1), (1, 1, 2)])
def test_heads_without_parameters_stay_where_they_are(params_of, heads):
    with pytest.raises(ValueError, match="only heads from 2 on have parameters: give 1 at place 1"):
        initialise_from(params_of(1, heads=2), params_of(2, heads=2), heads=heads, head_kind="medusa")


@pytest.mark.parametrize("unembedding", ["shared", "replicated"])
def test_the_first_heads_of_such_a_kind_are_read(tmp_path, state_of, config, assert_same, unembedding):
    state = state_of(1, heads=3)
    if unembedding == "replicated":
        state.params["unembedding"] = {"kernel": state_of(1, heads=4, unembedding=unembedding).params["unembedding"][
            "kernel"]}
    with Checkpointer(tmp_path / "checkpoints", config()) as checkpointer:
        checkpointer.save(1, state, {"config": {"model": {"head_kind": "medusa"}}})
    for k in range(1, 5):
        params = load_params(tmp_path, heads=k).params
        want = first_heads(state.params, k)
        want["heads"] = jax.tree.map(lambda leaf, k=k: leaf[:k - 1], want["heads"])
        if k == 1:
            del want["heads"]
        assert_same(params, want)
    with pytest.raises(ValueError, match="heads=5, but the checkpoint has 4"):
        load_params(tmp_path, heads=5)


# The exit gate, which only a trunk with several loops has.


def with_gate(params, value):
    return {**params, "gate": {"kernel": jnp.full((4,), value), "bias": jnp.full((), value)}}


def test_a_plain_source_leaves_the_gate_fresh(params_of, assert_same, caplog):
    old, new = params_of(1), with_gate(params_of(2), 0.0)
    assert_same(initialise_from(old, new), {**old, "gate": new["gate"]})
    assert "no exit gate" in caplog.text and "starts fresh" in caplog.text
    with pytest.raises(ValueError, match="gate/.*pass initialised parameters as target"):
        initialise_from(old, jax.eval_shape(lambda: new))


@pytest.mark.parametrize("gates", [(True, True), (True, False)])
def test_the_gate_goes_with_the_loops_and_stays_behind_without(params_of, assert_same, caplog, gates):
    old, new = (with_gate(params_of(seed), float(seed)) if gate else params_of(seed)
                for seed, gate in zip((1, 2), gates))
    want = dict(old)
    if not gates[1]:
        del want["gate"]
    assert_same(initialise_from(old, new), want)
    assert ("left behind" in caplog.text) == (not gates[1])


def test_a_gate_of_another_width_does_not_fit(params_of):
    old = with_gate(params_of(1), 1.0)
    old["gate"]["kernel"] = jnp.ones((5,))
    with pytest.raises(CheckpointMismatch, match=r"gate/kernel: float32\[5\] in the checkpoint, wanted float32\[4\]"):
        initialise_from(old, with_gate(params_of(2), 0.0))
