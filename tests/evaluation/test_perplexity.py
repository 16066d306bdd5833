"""Perplexity of every head: each token once, equal to the plain forward's, on texts longer than the window."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.evaluation import command
from mtp_jax.evaluation.tasks import perplexity
from mtp_jax.intervals import bootstrap
from tests.decoding.checks import decoding_model
from tests.decoding.models import WINDOW, random_model, text


@functools.cache
def model_of(kind):
    """Returns (Naive, DecodingModel) of random weights over bytes."""
    entry = random_model(kind, vocab_size=ByteTokenizer.vocab_size)
    return entry[2], decoding_model(entry, tokenizer=ByteTokenizer())


def evaluate(model, folder, data, **settings):
    """Returns the JSON of an evaluation."""
    config = EvaluationConfig(task="perplexity", workdir=str(folder), data=str(data), batch_size=4, **settings)
    printed = command.evaluate(config, model=model)
    return json.loads((folder / "eval" / "perplexity.json").read_text()), printed


def by_definition(naive, data, stride, heads):
    """Returns {head: (sum of -log p, right, tokens)}, one token and one head at a time."""
    ids = [256, *data.encode()]
    found = {}
    for head in range(1, heads + 1):
        nats, right, count = 0.0, 0, 0
        for place in range(head, len(ids)):
            # The row that scores this token ends with the first multiple of the stride behind the first window.
            over = place - WINDOW
            end = min(len(ids), WINDOW + 1 + (-(-over // stride) * stride if over > 0 else 0))
            begin = max(0, end - WINDOW - 1)
            row = ids[begin:end]
            logits_NxLxV = logits_of(naive, tuple(row))
            logp_V = logits_NxLxV[head - 1, place - head - begin]
            nats -= logp_V[ids[place]]
            right += int(np.argmax(logp_V)) == ids[place]
            count += 1
        found[head] = (nats, right, count)
    return found


def logits_of(naive, row):
    if row not in CACHE:
        CACHE[row] = np.asarray(jax.nn.log_softmax(naive.logits([row[:WINDOW]])[0][..., :259]))
    return CACHE[row]


CACHE = {}


@pytest.mark.parametrize("kind, stride", [("parallel", 0), ("parallel", 59), ("sequential", 7)])
def test_every_head_by_the_definition(kind, stride, x64, tmp_path):
    CACHE.clear()
    naive, model = model_of(kind)
    documents = [text(1, 25)[:150], "Ein Märchen.", text(2, 30)[:61], text(3, 30)[:60]]
    data = tmp_path / "tales.jsonl"
    data.write_text("\n".join(json.dumps({"id": f"t{i}", "text": one}) for i, one in enumerate(documents)))
    result, printed = evaluate(model, tmp_path, data, set=(f"stride={stride}",))
    want = [by_definition(naive, one, stride or 30, model.heads) for one in documents]
    tokens, size = (sum(len(one.encode()) for one in documents) for _ in range(2))
    for head in range(1, model.heads + 1):
        nats, right, count = (sum(one[head][i] for one in want) for i in range(3))
        metrics = result["metrics"]
        assert metrics[f"head_{head}_nats_per_token"] == pytest.approx(nats / count, abs=1e-9)
        assert metrics[f"head_{head}_bits_per_byte"] == pytest.approx(nats / count / math.log(2) * tokens / size)
        assert metrics[f"head_{head}_accuracy"] == pytest.approx(right / count)
        low, high = result["intervals"][f"head_{head}_nats_per_token"]
        assert low < nats / count < high
        assert f"head_{head}_bits_per_byte" in printed
        assert [one["head_tokens"][head - 1] for one in result["samples"]] == [
            len(one.encode()) + 1 - head for one in documents]
        by_document = [one["head_nats"][head - 1] for one in result["samples"]]
        assert by_document == pytest.approx([one[head][0] for one in want])
    assert result["metrics"]["perplexity"] == pytest.approx(math.exp(result["metrics"]["head_1_nats_per_token"]))
    assert result["settings"]["stride"] == (stride or 30)


def test_what_cannot_be_scored_is_listed_and_the_rest_goes_on(x64, tmp_path):
    _, model = model_of("parallel")
    data = tmp_path / "tales.jsonl"
    data.write_text('{"text": ""}\n{"text": "a tale"}\n')
    result, printed = evaluate(model, tmp_path, data)
    assert result["errors"] == [{"task_id": "tales.jsonl/0", "error": "The document has no token."}]
    assert [one["task_id"] for one in result["samples"]] == ["tales.jsonl/1"]
    plain = tmp_path / "tale.txt"
    plain.write_text("a tale")
    again = evaluate(model, tmp_path, plain)[0]
    assert again["metrics"] == result["metrics"] and again["samples"][0]["task_id"] == "tale.txt"


@pytest.mark.parametrize("settings, lines, message", [
    ({"set": ("stride=60",)}, '{"text": "a"}', r"--set=stride=60 must lie in 1..59, so that the last of 2 heads"),
    ({"set": ("stride=-1",)}, '{"text": "a"}', "--set=stride=-1 must lie in 1..59"),
    ({"set": ("strid=2",)}, '{"text": "a"}', "no setting 'strid'.*stride"),
    ({"set": ("field=txt",)}, '{"text": "a"}', r"line 1 has the fields \['text'\] and lacks \['txt'\]"),
    ({}, '{"text": "a"}\n{"text": ', "line 2 is not JSON"),
    ({}, '{"text": ""}', "has no token"),
    ({"completions": "x"}, "{}", "reads a text with the model"),
])
def test_bad_input_is_told(settings, lines, message, x64, tmp_path):
    data = tmp_path / "tales.jsonl"
    data.write_text(lines)
    with pytest.raises(ValueError, match=message):
        evaluate(model_of("parallel")[1], tmp_path, data, **settings)


def test_data_is_needed(x64, tmp_path):
    with pytest.raises(ValueError, match="--data is missing: --task=perplexity reads a text file"):
        evaluate(model_of("parallel")[1], tmp_path, "")


def test_an_evaluation_that_was_stopped_goes_on(x64, tmp_path, monkeypatch):
    """Killed after the first chunk it reads only the rest, and ends as one that was never stopped."""
    _, model = model_of("parallel")
    data = tmp_path / "tale.txt"
    data.write_text(text(4, 80))
    monkeypatch.setattr(perplexity, "CHUNK", 1)
    whole = evaluate(model, tmp_path, data, set=("stride=10",))[0]
    read, chunks = perplexity.Scorer.read, []

    def stopping(self, rows, **settings):
        chunks.append(len(rows))
        if len(chunks) == 2:
            raise KeyboardInterrupt
        return read(self, rows, **settings)

    monkeypatch.setattr(perplexity.Scorer, "read", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tmp_path, data, set=("stride=10",))
    assert evaluate(model, tmp_path, data, set=("stride=10",))[0] == whole
    assert sum(chunks[2:]) + 4 == sum(1 for _ in perplexity.windows(len(data.read_bytes()) + 1, WINDOW, 10))


def test_weighted_intervals_of_equal_values_are_points():
    assert bootstrap([2.0, 2.0], weights=[1, 3]) == (2.0, 2.0)
    low, high = bootstrap([0.0, 1.0], weights=[1, 3])
    assert (low, high) == (0.0, 1.0)
    same = np.arange(50.0)
    assert bootstrap(same, weights=np.full(50, 7.0)) == pytest.approx(bootstrap(same))
