"""What heads say of given tokens, against the ordinary forward of whole rows and a plain log_softmax."""

import functools

import jax
import numpy as np
import pytest

from mtp_jax.config import ParallelConfig
from mtp_jax.decoding import DecodingModel
from mtp_jax.evaluation import likelihood
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.parallel import Layout, make_mesh
from tests.decoding.checks import decoding_model, ragged
from tests.decoding.models import RANDOM, random_model

LENGTHS = (1, 2, 3, 5, 9, 17, 40, 60, 33)


@functools.cache
def scorer_of(kind, **changes):
    """Returns (Naive, Scorer) in fp64."""
    entry = random_model(kind)
    return entry[2], Scorer(decoding_model(entry, **changes), batch_size=4)


def assert_reads(naive, scorer, rows, heads):
    readings = scorer.read(rows, heads=heads)
    logits = naive.logits(rows)[..., :naive.spec.config.vocab_size]
    for row, reading, logits_NxLxV in zip(rows, readings, logits, strict=True):
        assert set(reading.logprob) == set(reading.top) == set(heads)
        for k in heads:
            logp_LxV = np.asarray(jax.nn.log_softmax(logits_NxLxV[k - 1]))
            want = [logp_LxV[i, row[i + k]] for i in range(len(row) - k)]
            np.testing.assert_allclose(reading.logprob[k], want, rtol=0, atol=1e-9)
            assert reading.top[k].tolist() == [int(np.argmax(logp_LxV[i])) for i in range(len(row) - k)]


@pytest.mark.parametrize("kind", RANDOM)
def test_every_head_says_what_the_plain_forward_says(kind, x64):
    naive, scorer = scorer_of(kind)
    rows = ragged(3, 11, LENGTHS)
    assert_reads(naive, scorer, rows, tuple(range(1, naive.spec.config.num_heads + 1)))
    pairs = [(np.array(row[:cut]), np.array(row[cut:])) for row in rows[3:] for cut in (1, len(row) // 2)]
    logp = [np.asarray(jax.nn.log_softmax(logits[0, :, :11])) for logits in naive.logits(rows)[3:] for _ in range(2)]
    for (context, more), scored, logp_LxV in zip(pairs, scorer.score(pairs), logp, strict=True):
        places = np.arange(len(context) - 1, len(context) + len(more) - 1)
        assert scored.logprob == pytest.approx(logp_LxV[places, more].sum(), abs=1e-9)
        assert scored.tokens == len(more)
        assert scored.greedy == bool(np.all(np.argmax(logp_LxV[places], axis=1) == more))


def test_logits_are_formed_a_few_positions_at_a_time(x64, monkeypatch):
    """With room for two positions' logits no array of all of them is made, and the numbers stay the same."""
    entry = random_model("parallel", vocab_multiple=32)
    monkeypatch.setattr(likelihood, "LOGITS", 4 * 32 * 2)
    model = decoding_model(entry)
    assert_reads(entry[2], Scorer(model, batch_size=4), ragged(3, 11, LENGTHS), (2,))
    program = functools.partial(likelihood._read, model, (1, 2))
    text = str(jax.make_jaxpr(program)(model.weights, np.ones((4, 65), np.int32), np.ones(4, np.int32)))
    assert "[4,2,32]" in text and "[4,64,32]" not in text, "logits of 4 rows over a padded vocabulary of 32"


def test_greedy_is_what_decoding_writes(x64):
    naive, scorer = scorer_of("causal")
    prompts = ragged(5, 11, (4, 9))
    for prompt, (said, _) in zip(prompts, naive.greedy(prompts, 6)):
        other = [*said[:-1], (said[-1] + 1) % 11]
        results = scorer.score([(np.array(prompt), np.array(said)), (np.array(prompt), np.array(other))])
        assert [result.greedy for result in results] == [True, False]


def test_a_mesh_changes_nothing(x64):
    spec, params, naive = random_model("parallel")
    layout = Layout.create(make_mesh("data:2,fsdp:2,tensor:2"), ParallelConfig().rules)
    model = DecodingModel.from_params(spec, params, window=naive.window, layout=layout)
    assert_reads(naive, Scorer(model, batch_size=3), ragged(3, 11, (5, 9, 2, 17)), (1, 2))


def test_one_token_more_than_the_window_fits(x64):
    naive, scorer = scorer_of("parallel")
    row = np.array(ragged(4, 11, (61,))[0])
    assert_reads(naive, scorer, [row[:60]], (1,))
    whole = scorer.read([row])[0].logprob[1]
    np.testing.assert_allclose(whole[:59], scorer.read([row[:60]])[0].logprob[1], rtol=0, atol=1e-9)
    assert len(whole) == 60
    with pytest.raises(ValueError, match="Row 1 has 62 tokens, and the model's window of 60 holds 61"):
        scorer.read([row, np.append(row, 1)])


def test_fit_cuts_from_the_left(x64):
    _, scorer = scorer_of("parallel")
    ids = np.arange(100)
    for context, more, cut in ((30, 31, 0), (31, 31, 1), (90, 2, 31), (3, 70, 12), (1, 61, 1)):
        kept, rest, lost = scorer.fit(ids[:context], ids[context:context + more])
        assert lost == cut and np.concatenate([kept, rest]).tolist() == list(range(cut, context + more))
        assert len(kept) == max(1, context - cut)


def test_bad_input_is_told(x64):
    _, scorer = scorer_of("linear")
    for rows, message in (([[]], "Row 0 must be a list of at least one id"), ([[1], [3, 11]], "Row 1 holds the id 11"),
                          ([[-1]], "Row 0 holds the id -1"), ([[0.5]], "Row 0 must be")):
        with pytest.raises(ValueError, match=message):
            scorer.read([np.array(row) for row in rows])
    with pytest.raises(ValueError, match="heads=3 must lie in 1..2"):
        scorer.read([np.array([1])], heads=(3,))
    with pytest.raises(ValueError, match="names no head"):
        scorer.read([np.array([1])], heads=())
    with pytest.raises(ValueError, match="The context of pair 0 is empty"):
        scorer.score([(np.array([], np.int32), np.array([1]))])
    with pytest.raises(ValueError, match="batch_size=0"):
        Scorer(scorer.model, batch_size=0)
    assert scorer.read([]) == []


def test_a_diverged_model_is_told(x64):
    spec, params, naive = random_model("linear")
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(ValueError, match="row 0 are NaN: training has diverged"):
        Scorer(DecodingModel.from_params(spec, broken, window=naive.window)).read([np.array([1, 2])])
