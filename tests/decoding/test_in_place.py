"""The cache is written in place: no step of the loop copies it."""

import re

import jax
import pytest

from mtp_jax.config import ModelConfig
from mtp_jax.decoding import DecodingModel, Tree
from mtp_jax.decoding.generate import compiled
from mtp_jax.model import ModelSpec

CAPACITY = 64


def loop_bodies(program):
    """Returns the HLO of all computations but the entry, where the state that comes in may be copied once."""
    text = program.as_text()
    return text[:text.index("\nENTRY ")]


@pytest.mark.parametrize("kind, batch, tree", [
    pytest.param("parallel", 1, Tree.chain(2), marks=pytest.mark.slow),
    ("parallel", 3, Tree((-1, 0, 0, 1), (0, 0, 1, 0))), ("causal", 3, Tree.chain(3)), ("anticausal", 1, Tree.chain(1)),
    pytest.param("sequential", 3, Tree.chain(3), marks=pytest.mark.slow)])
def test_no_step_copies_the_cache(kind, batch, tree):
    spec = ModelSpec.create(ModelConfig(num_heads=3, num_layers=4, d_model=32, num_attention_heads=2, vocab_size=64,
                                        head_kind=kind))
    model = DecodingModel.from_params(spec, jax.jit(spec.init)(jax.random.key(0)), window=CAPACITY)
    loop = loop_bodies(compiled(model, tree, (batch, 16), CAPACITY).run)
    shape = rf"f32\[{batch},2,{CAPACITY},16\]"
    assert re.search(shape, loop)  # the loop has a cache of this shape
    assert re.findall(rf"{shape}\S* copy\(.*", loop) == []
