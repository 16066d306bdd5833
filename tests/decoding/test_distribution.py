"""Texts that a model draws through `generate` are distributed as its plain forwards, enumerated, have them."""

import itertools

import numpy as np
import pytest

from mtp_jax.decoding import generate
from mtp_jax.model import ModelSpec
from tests.decoding.checks import BUSHY, decoding_model
from tests.decoding.lossless import chi_square, filtered
from tests.decoding.naive import Naive
from tests.small_model import make_config, make_params

PROMPT, V, ROWS, CALLS = [3, 0, 4], 5, 2500, 8
FILTERS = {"plain": dict(temperature=1.0), "top_p": dict(temperature=0.7, top_p=0.85),
           "top_k and min_p": dict(temperature=1.6, top_k=3, min_p=0.1)}
CHAIN, TREE = {"heads": 3}, {"tree": BUSHY[3]}


@pytest.fixture(scope="module")
def entry():
    """A random model of 5 ids, whose heads disagree."""
    config = make_config(vocab_size=V)
    params = make_params(config, seed=2)
    params["unembedding"]["kernel"] *= 0.5
    spec = ModelSpec.create(config)
    return spec, params, Naive(spec, params, len(PROMPT) + 3)


def enumerated(naive, filters):
    """Returns the probability of each text of three ids, [5, 5, 5], by head 1."""
    pairs = list(itertools.product(range(V), repeat=2))
    logits = naive.logits([[*PROMPT, *pair] for pair in pairs])[:, 0, :, :V].reshape(V, V, -1, V)
    start = len(PROMPT) - 1
    first_5 = filtered(logits[0, 0, start], **filters)
    second_5x5 = np.stack([filtered(logits[a, 0, start + 1], **filters) for a in range(V)])
    third_5x5x5 = np.stack([[filtered(logits[a, b, start + 2], **filters) for b in range(V)] for a in range(V)])
    return first_5[:, None, None] * second_5x5[:, :, None] * third_5x5x5


@pytest.fixture(scope="module")
def model(entry):
    return decoding_model(entry)


@pytest.mark.slow
@pytest.mark.parametrize("block, name", [
    (TREE, "top_k and min_p"),
    *(pytest.param(block, name, marks=pytest.mark.slow) for block, name in (
        (CHAIN, "top_p"), (CHAIN, "plain"), (CHAIN, "top_k and min_p"), (TREE, "plain"), (TREE, "top_p")))])
def test_twenty_thousand_texts(block, name, entry, model):
    filters = FILTERS[name]
    results = [generate(model, [PROMPT] * ROWS, max_new_tokens=3, seed=seed, **filters, **block)
               for seed in range(CALLS)]
    texts = np.concatenate([np.stack(result.tokens) for result in results])
    want = enumerated(entry[2], filters)
    assert texts.shape == (20_000, 3) and abs(want.sum() - 1) < 1e-6
    assert chi_square(texts, want) > 1e-3
    assert chi_square(texts, enumerated(entry[2], {**filters, "temperature": 1.15 * filters["temperature"]})) < 1e-6
    accepted = sum(result.accepted.sum(axis=0) for result in results) / len(texts)
    assert 0.2 < accepted[0] < 1 and accepted[1] > 0.05, accepted
