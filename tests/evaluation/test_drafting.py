"""Tokens per forward over the heads in use: held-out prompts of the run's own corpus, counts as `generate` has them."""

import json
import types

import jax
import numpy as np
import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.data.corpus import open_corpus
from mtp_jax.decoding import generate
from mtp_jax.decoding.load import load_model, read_config
from mtp_jax.evaluation import command, likelihood
from mtp_jax.evaluation.likelihood import Reading
from mtp_jax.evaluation.registry import get_task
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.tasks.drafting import agreement_lengths, interval
from tests.decoding.workdirs import write_workdir
from tests.small_model import make_config, make_params
from tests.training.small_runs import write_corpus


@pytest.fixture
def greedy_only(monkeypatch):
    """Leaves the rules that draw tokens out of the programs, which halves the time of compiling them."""
    monkeypatch.setattr(jax.lax, "switch", lambda index, branches, *operands: branches[0](*operands))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A random model of four heads beside a corpus of made-up code."""
    folder = tmp_path_factory.mktemp("drafting")
    (folder / "corpus").mkdir()
    model = make_config(num_heads=3, num_layers=4, d_model=16, num_attention_heads=2, d_ff=24, vocab_size=259)
    run = write_workdir(folder / "run", model, {1: make_params(model)}, seq_len=48, source="files",
                        path=str(write_corpus(folder / "corpus")), validation_fraction=0.3)
    rename(run, open_corpus(read_config(run).data).hash)
    return run


def rename(run, corpus_hash):
    stored = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**stored, "corpus_hash": corpus_hash}))


def config_of(run, **settings):
    told = tuple(f"{name}={value}" for name, value in {"prompts": 4, "prompt_tokens": 20, "new_tokens": 24,
                                                       **settings}.items())
    return EvaluationConfig(workdir=str(run), task="drafting", set=told)


def evaluate(run, **settings):
    command.evaluate(config_of(run, **settings))
    return json.loads((run / "eval" / "drafting.json").read_text())


@pytest.mark.slow
def test_counts_are_those_of_generating_the_same_prompts(workdir, greedy_only):
    model, task = load_model(workdir), get_task("drafting")
    config = config_of(workdir)
    request = Request(config, task.options(config.set), model=model)
    found = task.run(request).to_json()
    assert list(found["metrics"]) == [*(f"tokens_per_forward_{k}" for k in (1, 2, 3)),
                                      *(f"agreement_length_{k}" for k in (2, 3))]
    assert found["metrics"]["tokens_per_forward_1"] == 1 and len(found["samples"]) == 4
    prompts = [row[:20].tolist() for row in task.rows(request)]
    (part,) = open_corpus(read_config(workdir).data).parts.values()
    held_out = [tuple(row["tokens"][:20].tolist()) for row in map(part.rows["validation"].__getitem__,
                                                                  range(len(part.rows["validation"])))]
    assert len(prompts) == 4 and all(tuple(prompt) in held_out for prompt in prompts)
    for k in (2, 3):
        direct = generate(model, prompts, max_new_tokens=24, heads=k, stop=())
        assert found["metrics"][f"tokens_per_forward_{k}"] == pytest.approx(direct.tokens_per_forward)
        assert found["acceptance"][str(k)] == pytest.approx(direct.acceptance)
        assert [sample[f"forwards_{k}"] for sample in found["samples"]] == direct.forwards.tolist()
        low, high = found["intervals"][f"tokens_per_forward_{k}"]
        assert 1 <= low <= found["metrics"][f"tokens_per_forward_{k}"] <= high <= k
    assert [sample["completion"] for sample in found["samples"]] == direct.text


@pytest.mark.parametrize("settings, message", [
    (dict(heads="2,5"), "--set=heads=2,5 must lie between 1 and the model's 3 heads"),
    (dict(heads="two"), "--set=heads=two must be whole numbers"),
    (dict(prompts=0), "--set=prompts=0 must be at least 1"),
    (dict(prompt_tokens=-3), "--set=prompt_tokens=-3 must be at least 1"),
    (dict(prompt_tokens=200), "lower --set=prompt_tokens"),
    pytest.param(dict(new_tokens=40), "do not fit in the window of 48 tokens", marks=pytest.mark.slow),
])
def test_settings_that_do_not_fit(settings, message, workdir, greedy_only):
    with pytest.raises(ValueError, match=message):
        evaluate(workdir, **settings)


def test_another_corpus_is_refused(workdir):
    stored = json.loads((workdir / "config.json").read_text())["corpus_hash"]
    rename(workdir, "other")
    try:
        with pytest.raises(ValueError, match="was trained on another corpus"):
            evaluate(workdir)
    finally:
        rename(workdir, stored)


def test_the_interval_is_that_of_the_ratio():
    produced, forwards = np.full(400, 64), np.r_[np.full(200, 16), np.full(200, 64)]
    low, high = interval(produced, forwards)
    assert low < 128 / 80 < high and high - low < 0.2
    assert interval(produced, np.full(400, 32)) == (2, 2)


def test_it_is_listed():
    assert "held-out" in get_task("drafting").about


@pytest.mark.parametrize("wrong, expected", [({}, [2, 3]), ({3: (0, 4)}, [2, 2.8]), ({2: (0, 1, 5)}, [1.7, 2.4])])
def test_agreement_is_with_what_head_1_says_there(wrong, expected, monkeypatch):
    says = np.arange(12)  # head 1, at each position of a row of 13 tokens

    class Fake:
        def __init__(self, model, *, batch_size):
            assert batch_size == 32

        def read(self, rows, *, heads):
            top = {k: says[k - 1:].copy() for k in heads}
            for k, places in wrong.items():
                top[k][list(places)] = -1
            return [Reading({}, top) for _ in rows]

    monkeypatch.setattr(likelihood, "Scorer", Fake)
    request = Request(config_of("none"), {}, model=types.SimpleNamespace(heads=3))
    found = agreement_lengths(request, [np.zeros(13), np.zeros(13)])
    assert list(found.values()) == pytest.approx(expected) and list(found) == ["agreement_length_2",
                                                                               "agreement_length_3"]
