"""The cache has the size that its formula says, is there once, and holds what a forward over the text would read."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.decoding import Tree, generate, loop
from mtp_jax.decoding.cache import cache_bytes
from mtp_jax.decoding.forward import read_prompt, verify
from mtp_jax.decoding.generate import compiled
from mtp_jax.decoding.sampling import highest, make_sampling
from mtp_jax.decoding.weights import unembed, unstack
from mtp_jax.model import ModelSpec
from tests.decoding.checks import BUSHY, decoding_model, ragged, tokens_of
from tests.decoding.models import RANDOM, random_model, trained_model
from tests.small_model import QUICK, make_config, make_params


def state_shapes(config, tree, batch, capacity, dtype):
    """Returns the shapes of the loop's state, without computing it."""
    spec = ModelSpec.create(config)
    weights = jax.eval_shape(lambda params: unstack(spec, params, heads=tree.heads), spec.shapes)
    request = loop.Request(make_sampling(), np.zeros(batch, np.int32), np.zeros(16, np.int32),
                           jax.random.split(jax.random.key(0), batch))
    start = functools.partial(loop.start, config, tree, capacity, dtype, "xla")
    return jax.eval_shape(start, weights, np.zeros((batch, 8), np.int32), np.ones(batch, np.int32), request)


def size(shapes):
    """Returns the bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_formula_is_the_size_of_the_arrays(name, dtype):
    config = make_config(**RANDOM[name])
    for heads, batch, capacity in ((1, 1, 16), (2, 3, 40), (3, 5, 64)):
        cache = state_shapes(config, Tree.chain(heads), batch, capacity, dtype).cache
        assert size(cache) == cache_bytes(config, batch=batch, capacity=capacity, heads=heads, dtype=dtype)
        assert cache.capacity == capacity
        assert {leaf.dtype for leaf in jax.tree.leaves((cache.trunk, cache.heads))} == {jnp.dtype(dtype)}
    tree = state_shapes(config, BUSHY[3], 5, 64, dtype).cache
    assert size(tree) == size(cache)  # what a tree does not keep is never cached
    assert cache_bytes(config, batch=5, capacity=64, heads=3) == cache_bytes(config, batch=5, capacity=64, heads=3,
                                                                             dtype=config.dtype)


def test_what_a_head_costs():
    layer = 2 * 3 * 2 * 64 * 8 * 4  # keys and values of 3 rows, 2 KV heads, 64 positions, width 8, 4 bytes
    for kind, layers in (("parallel", (2, 4)), ("causal", (2, 4)), ("anticausal", (4, 4)), ("linear", (4, 4))):
        config = make_config(head_kind=kind)
        assert tuple(cache_bytes(config, batch=3, capacity=64, heads=k) for k in (1, 3)) == tuple(
            count * layer + 12 for count in layers)


def test_the_loop_holds_the_cache_once(greedy_only):
    """Both as an argument that is given away and in the memory that the program needs besides."""
    config = make_config(num_kv_heads=2)
    spec = ModelSpec.create(config)
    model = decoding_model((spec, make_params(config), types.SimpleNamespace(window=8192 - 3)))
    cache = cache_bytes(config, batch=4, capacity=8192, heads=3)
    memory = compiled(model, Tree.chain(3), (4, 16), 8192).run.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 2, f"{memory.temp_size_in_bytes / cache:.2f} caches"


@pytest.mark.parametrize("dtype, least, most", [("float64", 0, 1e-12), ("bfloat16", 1e-4, 0.05)])
def test_a_block_behind_the_cache_reads_what_the_whole_text_has(dtype, least, most, x64):
    """The largest change of a probability of head 1 in a block of 3 behind prompts of 1 to 20 tokens."""
    spec, params, naive = trained_model()
    weights = unstack(spec, params, heads=1)
    texts = ragged(3, 128, (4, 9, 23))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def logits(weights, prompts_BxP, lengths_B, block_BxQ):
        cache = read_prompt(spec.config, weights, prompts_BxP, lengths_B, heads=1, capacity=32, dtype=dtype,
                            kernel="xla", choose=highest)[3]
        return unembed(spec.config, weights, verify(spec.config, weights, cache, block_BxQ, Tree.chain(3)).h_BxQxD, 1)

    prompts = np.zeros((3, 24), np.int32)
    for row, text in zip(prompts, texts):
        row[:len(text)] = text  # the block's tokens as well: the cache may not count them
    lengths = np.array([len(text) - 3 for text in texts], np.int32)
    blocks = np.array([text[-3:] for text in texts], np.int32)
    got = jax.nn.softmax(logits(weights, prompts, lengths, blocks))
    whole = naive.logits(texts)[:, 0]
    want = jax.nn.softmax(np.stack([row[n:n + 3] for row, n in zip(whole, lengths)]))
    assert least <= float(jnp.max(jnp.abs(got - want))) <= most


@pytest.mark.slow
def test_drafts_change_nothing_with_a_cache_in_16_bits(x64, greedy_only):
    """A block reads its own keys and values as rounded as the cache has them; in fp64 nothing else differs."""
    model = decoding_model(random_model("parallel"), cache_dtype="bfloat16")
    prompts = ragged(4, 11, (1, 5, 12, 30))
    plain, tree = (generate(model, prompts, max_new_tokens=29, **block) for block in ({"heads": 1}, {"tree": BUSHY[2]}))
    assert tokens_of(tree) == tokens_of(plain)
    assert max(tree.forwards) < 29 == min(plain.forwards)
