"""Rules from logical axes to the mesh: each mistake raises, and what is asked for is what the compiler does."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mtp_jax.config import ParallelConfig
from mtp_jax.model import ModelSpec
from mtp_jax.parallel import LOGICAL_AXES, Layout, constrain, current_layout, make_mesh, use_layout
from tests.small_model import make_config

RULES = ParallelConfig().rules


def layout(mesh="data:2,fsdp:2,tensor:2", **changes):
    """Returns a layout with the default rules, some of them changed."""
    return Layout.create(make_mesh(mesh), [(name, changes.get(name, target)) for name, target in RULES])


def test_the_default_rules_cover_every_axis():
    assert [name for name, _ in RULES] == list(LOGICAL_AXES)
    rules = layout()
    assert rules.size("batch") == 4 and rules.size("mlp") == 2 and rules.size("length") == 1
    assert rules.spec(("batch", "length", None)) == P(("data", "fsdp"), "sequence", None)
    assert rules.spec(("embed", "mlp")) == P("fsdp", "tensor")
    assert rules.replicated.spec == P()


@pytest.mark.parametrize("rules, message", [
    ([*RULES, ("embd", "fsdp")], 'no module has the logical axis \'embd\'.*dropped.*Did you mean "embed"'),
    ([*RULES, ("embed", "tensor")], "'embed' has two rules; the second, 'tensor', would be dropped"),
    ([("embed", "fspd"), *RULES], 'rule for \'embed\' names the unknown mesh axis \'fspd\'.*Did you mean "fsdp"'),
    ([("batch", ("data", "model")), *RULES], "rule for 'batch' names the unknown mesh axis 'model'; the axes are"),
    ([rule for rule in RULES if rule[0] != "mlp"], r"no rule for \['mlp'\]: add \(\"mlp\", None\)"),
    ([], "no rule for .*'batch'"),
])
def test_rules_that_could_not_be_obeyed(rules, message):
    with pytest.raises(ValueError, match=message) as error:
        Layout.create(make_mesh("data:-1"), rules)
    assert "parallel.rules" in str(error.value)


def test_one_mesh_axis_cannot_split_two_axes_of_an_array():
    with pytest.raises(ValueError, match=re.escape("trunk/mlp/up with axes ('embed', 'mlp')") + ".*both 'embed' and "
                       "'mlp' by the mesh axis 'tensor'"):
        layout(embed="tensor").spec(("embed", "mlp"), "trunk/mlp/up")


def test_one_mesh_axis_cannot_stand_twice_in_a_rule():
    with pytest.raises(ValueError, match="both 'batch' and 'batch' by the mesh axis 'data'"):
        layout(batch=("data", "data")).spec(("batch",))


def test_unknown_axis_of_an_array():
    with pytest.raises(ValueError, match='h: unknown logical axis \'head\'.*Did you mean "heads"'):
        layout().spec(("head",), "h")


def test_indivisible_axis():
    with pytest.raises(ValueError, match=r"unembedding/kernel of shape \(259, 16\).*'vocab' has length 259.*into 2; "
                       "change the size, the mesh or the rule for 'vocab'"):
        layout().sharding(("vocab", "embed"), (259, 16), "unembedding/kernel")
    assert layout().sharding(("vocab", "embed"), (260, 16)).spec == P("tensor", "fsdp")


def test_axes_and_shape_of_another_rank():
    with pytest.raises(ValueError, match=r"x of shape \(4, 4, 4\) has 3 axes, but \('vocab', 'embed'\) names 2"):
        layout().sharding(("vocab", "embed"), (4, 4, 4), "x")


def test_constrain_outside_use_layout_returns_its_argument():
    x = jnp.ones((4, 4, 4))
    assert current_layout() is None and constrain(x, "batch", "nonsense", None) is x


def test_constrain_inside_use_layout():
    rules = layout()
    with use_layout(rules):
        assert current_layout() is rules
        result = jax.jit(lambda x: constrain(x * 2, "batch", "length", "mlp"))(jnp.ones((8, 4, 6)))
        with use_layout(None):
            assert current_layout() is None
        with pytest.raises(ValueError, match="unknown logical axis 'nonsense'"):
            constrain(jnp.ones(4), "nonsense")
    assert current_layout() is None
    assert result.sharding.spec == P(("data", "fsdp"), None, "tensor")
    assert result.addressable_shards[0].data.shape == (2, 4, 3)


def test_use_layout_ends_with_an_error():
    with pytest.raises(RuntimeError), use_layout(layout()):
        raise RuntimeError
    assert current_layout() is None


@pytest.mark.parametrize("kind", ["parallel", "linear", "causal", "anticausal"])
@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2", "fsdp:2,tensor:2,pred_heads:2", "fsdp:8"])
def test_every_parameter_can_be_laid_out(kind, mesh):
    """And the matrices are split by every mesh axis larger than 1 that parameters are split by."""
    spec = ModelSpec.create(make_config(head_kind=kind, num_heads=2, qk_norm=True))
    rules = layout(mesh)
    axes = jax.tree_util.tree_leaves_with_path(spec.axes, is_leaf=lambda x: isinstance(x, tuple))
    parts = {jax.tree_util.keystr(path): rules.sharding(names, leaf.shape, str(path))
             for (path, names), leaf in zip(axes, jax.tree.leaves(spec.shapes))}
    matrix = "['heads']['kernel']" if kind == "linear" else "['heads']['mlp']['up']"
    sizes = rules.mesh.shape
    leaf = spec.shapes["heads"]["kernel"] if kind == "linear" else spec.shapes["heads"]["mlp"]["up"]
    shard = parts[matrix].shard_shape(leaf.shape)
    whole = leaf.shape[0] * leaf.shape[1] * leaf.shape[2]
    assert shard[0] * shard[1] * shard[2] * sizes["fsdp"] * sizes["tensor"] * sizes["pred_heads"] == whole
