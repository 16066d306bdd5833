"""On a mesh decoding gives the tokens of one device, with the cache laid out by the rules of training.

That the logits are those of one device, by head kind, n and mesh: tests/parallel/test_equal.py.
"""

import functools

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtp_jax.config import ParallelConfig
from mtp_jax.decoding import DecodingModel, Tree, generate
from mtp_jax.decoding.generate import compiled
from mtp_jax.parallel import Layout, make_mesh
from tests.decoding.checks import BUSHY, assert_same, ragged
from tests.decoding.models import random_model

LENGTHS = (1, 3, 9, 14, 20)  # fewer than the devices: the batch is filled up


def entry():
    """Returns (spec, params, Naive) of three parallel heads, of two KV heads."""
    return random_model("parallel", num_heads=3, num_layers=4, extra_trunk_layers=0)


@functools.cache
def on_mesh(mesh):
    """Returns that model on a mesh."""
    spec, params, naive = entry()
    layout = Layout.create(make_mesh(mesh), ParallelConfig().rules)
    return DecodingModel.from_params(spec, params, window=naive.window, layout=layout)


@pytest.mark.parametrize("mesh, block", [
    ("data:2,fsdp:2,tensor:2", {"heads": 3}),
    pytest.param("fsdp:2,tensor:2,pred_heads:2", {"tree": BUSHY[3]}, marks=pytest.mark.slow),
    pytest.param("data:8", {"heads": 3}, marks=pytest.mark.slow)])
def test_the_tokens_are_those_of_one_device(mesh, block, x64, greedy_only):
    naive = entry()[2]
    prompts = ragged(2, 11, LENGTHS)
    tree = block.get("tree") or Tree.chain(block["heads"])
    rows = naive.speculative(prompts, 16, tree)
    model = on_mesh(mesh)
    result = generate(model, prompts, max_new_tokens=16, **block)
    assert assert_same(result, rows, tree.depth, mesh) == sum(len(row.tokens) for row in rows) > 60


def test_the_cache_is_laid_out_by_the_rules(x64, greedy_only):
    """Rows over data and fsdp, KV heads over tensor; of 5 rows, filled up to 8, each device holds 2."""
    model = on_mesh("data:2,fsdp:2,tensor:2")
    generate(model, ragged(2, 11, LENGTHS), max_new_tokens=16, heads=3)  # the program of the test above
    assert model.rows_multiple == 4
    programs = compiled(model, Tree.chain(3), (8, 64), 64)
    states = [program.output_shardings for program in (programs.start, programs.run)]
    for state in states:
        layers = jax.tree.leaves((state.cache.trunk, state.cache.heads))
        assert len(layers) == 2 * (1 + 3)
        for sharding in layers:
            assert sharding.shard_shape((8, 2, 64, 4)) == (2, 1, 64, 4)
            assert sharding.is_equivalent_to(NamedSharding(sharding.mesh, P(("data", "fsdp"), "tensor")), 4)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
    with pytest.raises(ValueError, match="trunk/attention/key.*'kv_heads' has length 2, which .* into 8; change"):
        on_mesh("tensor:8")


def test_a_mesh_that_splits_positions_is_refused():
    with pytest.raises(ValueError, match="sequence of size 2 splits the positions.*Give them to data, fsdp or tensor"):
        on_mesh("data:4,sequence:2")
