"""Heads that draft in turn: what they draft is what they say of the text so far and of the drafts before theirs."""

import functools

import jax
import numpy as np
import pytest

from mtp_jax.decoding import Tree, auto, generate, loop
from mtp_jax.decoding.calibrate import calibrate_on
from mtp_jax.decoding.generate import make_request
from mtp_jax.decoding.sampling import make_sampling
from mtp_jax.decoding.weights import unstack
from tests.decoding.checks import greedy_model, ragged
from tests.decoding.models import random_model, trained_model
from tests.small_model import QUICK

LENGTHS = (1, 2, 3, 9, 17)  # three modules: shorter than the positions that they make again, and longer
BLOCKS = 9


def blocks_of(entry, prompts, heads):
    """Yields (settled tokens of each row, drafts behind them) after the prompt and after each block, greedily."""
    spec, params, _ = entry
    tree, weights = Tree.chain(heads), unstack(spec, params, heads=heads)
    tokens, lengths = np.zeros((len(prompts), 24), np.int32), np.array([len(prompt) for prompt in prompts], np.int32)
    for row, prompt in zip(tokens, prompts):
        row[:len(prompt)] = prompt
    request = make_request(make_sampling(), np.full(len(prompts), 60, np.int32), np.full(16, -1, np.int32), 0,
                           len(prompts))
    start = functools.partial(loop.start, spec.config, tree, 64, "float64", "xla")
    step = jax.jit(functools.partial(loop.step, spec.config, tree), compiler_options=QUICK)
    state = jax.jit(start, compiler_options=QUICK)(weights, tokens, lengths, request)
    for block in range(BLOCKS + 1):
        yield [[*prompt, *new[:count]] for prompt, new, count in zip(
            prompts, np.asarray(state.tokens_BxT).tolist(), state.produced_B)], np.asarray(state.drafts.tokens_BxJ)
        if block < BLOCKS:
            state = step(weights, state, request)


def wrong_drafts(entry, heads=4):
    """Returns the share of drafts that are not the likeliest tokens of the plain forward, and the accepted ones."""
    prompts, wrong, texts = ragged(5, entry[0].config.vocab_size, LENGTHS), [], None
    for texts, drafts_BxJ in blocks_of(entry, prompts, heads):
        logits = entry[2].logits([[*text, *drafts] for text, drafts in zip(texts, drafts_BxJ.tolist())])
        for text, row, drafts in zip(texts, logits, drafts_BxJ):
            # The last token is settled, but no forward has read it: the states are those of the one before.
            said = np.argmax(row[1:heads, len(text) - 2], axis=-1)
            wrong.append(said != drafts)
    made = sum(len(text) - len(prompt) - 1 for text, prompt in zip(texts, prompts))
    return np.mean(wrong, axis=0), made - BLOCKS * len(prompts)


def test_drafts_are_what_the_modules_say_of_the_text(x64, greedy_only):
    """Whether drafts before were accepted or not, and from prompts shorter than the modules are many."""
    wrong, accepted = wrong_drafts(random_model("sequential"))
    assert wrong.tolist() == [0, 0, 0] and accepted > 3


@pytest.mark.slow
def test_positions_that_are_not_made_again_are_noticed(x64, greedy_only, monkeypatch):
    """Without the states before the block, what modules made of wrong drafts stays in their cache."""
    monkeypatch.setattr("mtp_jax.decoding.forward.settled", lambda heads: 0)
    monkeypatch.setattr("mtp_jax.decoding.loop.settled", lambda heads: 0)
    wrong, _ = wrong_drafts(random_model("sequential"))
    assert wrong[0] == 0 < wrong[1] <= wrong[2] + 0.1


def test_a_tree_is_refused(x64, greedy_only):
    _, model = greedy_model("sequential")
    with pytest.raises(ValueError, match="tree, of 3 nodes, branches.*'sequential' draft one after.*causal.*parallel"):
        generate(model, [[1]], max_new_tokens=3, tree=Tree((-1, 0, 0), (0, 0, 1)))


@pytest.mark.slow
def test_calibration_and_choice_are_of_chains(x64, greedy_only):
    """Ranks are those of a plain count, the prediction is what decoding makes, and no tree is a candidate."""
    entry, model = greedy_model("sequential")
    prompts = ragged(6, 11, (3, 12, 5, 8, 2, 7, 9, 4))
    found = calibrate_on(model, prompts, new_tokens=40, ranks=4)
    rows = [prompt + new for prompt, (new, _) in zip(prompts, entry[2].greedy(prompts, 40))]
    ranks = []
    for row, prompt, logits in zip(rows, prompts, entry[2].logits(rows)):
        for i in range(len(prompt) - 1, len(row) - 4):
            order = np.argsort(-logits[1:, i], axis=-1, kind="stable")
            ranks.append([min(4, order[d - 1].tolist().index(row[i + 1 + d])) for d in (1, 2, 3)])
    assert np.concatenate(found.rows).tolist() == ranks
    run = generate(model, prompts, max_new_tokens=40)
    made = (run.produced.sum() - len(prompts)) / run.blocks.sum()
    assert found.expected_tokens(Tree.chain(4)) == pytest.approx(made, rel=0.05) and made > 1.02
    trees = auto.choose(found, lambda trees: [1.0 + tree.size / 100 for tree in trees], heads=4, branches=False)
    assert [row.tree for row in trees.table] == [Tree.chain(k) for k in (1, 2, 3, 4)]


@pytest.mark.slow
def test_a_trained_model_drafts_well(x64, greedy_only):
    wrong, accepted = wrong_drafts(trained_model("sequential"))
    assert wrong.tolist() == [0, 0, 0] and accepted > 0.5 * BLOCKS * len(LENGTHS)
