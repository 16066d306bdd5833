"""Comparing `generate` with the naive reference: tokens and every count."""

import functools

import numpy as np

from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import DecodingModel, Tree, generate
from tests.decoding.models import WINDOW, random_model, trained_model

# Siblings at every depth, leaves above the deepest node, and paths of lower ranks that go deepest.
BUSHY = {2: Tree((-1, 0, 0, 0), (0, 0, 1, 2)),
         3: Tree((-1, 0, 0, 0, 1, 1, 2, 3), (0, 0, 1, 2, 0, 1, 0, 0)),
         4: Tree((-1, 0, 0, 1, 1, 2, 2, 3, 6, 6), (0, 0, 1, 0, 1, 0, 1, 0, 0, 1))}
FLAT = Tree((-1, 0, 0, 0, 0), (0, 0, 1, 2, 3))
LENGTHS = (1, 2, 3, 5, 9, 17, 40, WINDOW - 1)
ROWS = len(LENGTHS)


def decoding_model(entry, **changes):
    """Returns the `DecodingModel` of (spec, params, Naive)."""
    spec, params, naive = entry
    return DecodingModel.from_params(spec, params, window=naive.window, **changes)


@functools.cache
def greedy_model(name):
    """Returns (entry, DecodingModel) in fp64 of a random or the trained model, for tests under `greedy_only`."""
    entry = trained_model() if name == "trained" else random_model(name)
    return entry, decoding_model(entry)


@functools.cache
def byte_model():
    """Returns (entry, DecodingModel) of the trained byte model in fp64, for tests under `x64` without `greedy_only`."""
    return trained_model(), decoding_model(trained_model(), tokenizer=ByteTokenizer())


def tree_of(block):
    """Returns the tree that {"heads": k} or {"tree": tree} stands for."""
    return block.get("tree") or Tree.chain(block["heads"])


def ragged(seed, vocab_size, lengths):
    """Returns random prompts of these lengths."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocab_size, length).tolist() for length in lengths]


def tokens_of(result):
    """Returns the new ids of each row as lists."""
    return [row.tolist() for row in result.tokens]


def assert_same(result, rows, depth, name=""):
    """Compares a `Generation` with the reference's rows, counts included; returns the number of tokens compared."""
    assert len(result.tokens) == len(rows) and result.accepted.shape == (len(rows), depth)
    for i, row in enumerate(rows):
        where = f"{name}, row {i}"
        assert result.tokens[i].tolist() == row.tokens, where
        assert result.finished[i] == row.finished, where
        assert result.lengths[i] == len(row.tokens), where
        assert result.drafted_by[i].tolist() == row.drafted_by, where
        assert (result.forwards[i], result.blocks[i]) == (row.forwards, row.blocks), where
        assert result.accepted[i].tolist() == row.accepted, where
        assert result.produced[i] == len(row.tokens) + (row.finished == "stop"), where
    return sum(len(row.tokens) for row in rows)


def compare(entry, model, prompts, block, *, max_new_tokens=WINDOW, stop=(), greedy=None, name=""):
    """Decodes greedily with blocks of drafts and compares with the reference; returns the tokens compared."""
    tree = tree_of(block)
    rows = entry[2].speculative(prompts, max_new_tokens, tree, stop, greedy)
    result = generate(model, prompts, max_new_tokens=max_new_tokens, stop=list(stop), **block)
    return assert_same(result, rows, tree.depth, f"{name} {block} stop {stop}")
