"""Early exit: the losses over thresholds and loops are those of one position after the other, and of training."""

import dataclasses
import json

import numpy as np
import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import DecodingModel
from mtp_jax.evaluation import command
from mtp_jax.evaluation.likelihood import Reading
from mtp_jax.evaluation.tasks.early_exit import sums
from mtp_jax.model import ModelSpec
from mtp_jax.objective import multi_token_targets
from tests.decoding.checks import decoding_model
from tests.decoding.models import RANDOM, WINDOW, random_model, text
from tests.decoding.naive_looped import NaiveLooped
from tests.small_model import make_config, make_params

LOOPS, PIECE = 2, WINDOW - 1  # tokens of a row beside its BOS


def evaluate(model, folder, *, rows=2, **settings):
    """Returns the metrics of an evaluation on made-up code."""
    (folder / "code.py").write_text(text(1, 40))
    config = EvaluationConfig(task="early_exit", workdir=str(folder), data=str(folder / "code.py"), batch_size=2,
                              **{"set": (f"rows={rows}", "thresholds=0.6"), **settings})
    command.evaluate(config, model=model)
    return json.loads((folder / "eval" / "early_exit.json").read_text())["metrics"]


def test_losses_and_loops_are_those_of_the_definition(x64, tmp_path):
    config = make_config(**{**RANDOM["parallel"], "num_layers": 3, "extra_trunk_layers": 0, "vocab_size": 259,
                            "trunk_kind": "looped", "loops": LOOPS})
    spec, params = ModelSpec.create(config), make_params(config)
    model = DecodingModel.from_params(spec, params, window=WINDOW, tokenizer=ByteTokenizer())
    found = evaluate(model, tmp_path)
    ids = list(text(1, 40).encode())
    rows = [[256, *ids[start:start + PIECE]] for start in (0, PIECE)]
    plain = {name: part for name, part in params.items() if name != "gate"}
    ways = {"q=0.6": NaiveLooped(spec, params, WINDOW, 0.6), "loops=2": NaiveLooped(spec, params, WINDOW),
            "loops=1": NaiveLooped(ModelSpec.create(dataclasses.replace(config, loops=1)), plain, WINDOW)}
    for label, naive in ways.items():
        logits = [naive.logits([row])[0][..., :259] for row in rows]
        loops = [naive.text(0, row).loops[:-1] for row in rows]
        for k in (1, 2):
            nats = [np.logaddexp.reduce(at_V) - at_V[row[i + k]] for row, found_NxLxV in zip(rows, logits)
                    for i, at_V in enumerate(found_NxLxV[k - 1][:len(row) - k])]
            assert found[f"head_{k}_nats@{label}"] == pytest.approx(np.mean(nats), abs=1e-9), label
        if label == "q=0.6":
            assert found["loops@q=0.6"] == pytest.approx(np.mean(np.concatenate(loops))) == found["loops_read@q=0.6"]
            assert 1 < found["loops@q=0.6"] < LOOPS
    assert len(found) == 8


@pytest.mark.parametrize("prompt_end", [None, 7, 9])
def test_targets_count_as_in_training(prompt_end):
    row, heads = np.array([3, 1, 7, 4, 7, 5, 2]), 3
    reading = Reading({k: -np.arange(1.0, len(row) - k + 1) for k in range(1, heads + 1)}, {},
                      np.arange(10, 10 + len(row) - 1))
    nats_N, count_N, loops, read = sums(row, reading, prompt_end)
    _, mask_NxBxL = multi_token_targets(row[None], np.ones((1, len(row)), np.int32), np.arange(len(row))[None], heads,
                                        prompt_end)
    mask_NxL = np.asarray(mask_NxBxL)[:, 0]
    assert count_N == mask_NxL.sum(axis=1).tolist()
    assert nats_N == [float(np.sum(-reading.logprob[k + 1][mask_NxL[k][:len(row) - k - 1]])) for k in range(heads)]
    assert loops == reading.loops[mask_NxL[0][:-1]].sum() and read == reading.loops.sum()
    assert sum(count_N) == {None: 15, 7: 12, 9: 0}[prompt_end]


@pytest.mark.parametrize("settings, message", [
    ({}, "exit_threshold=0.6 needs an exit gate, and the model has none"),
    ({"set": ("thresholds=a",)}, "--set=thresholds=a must be numbers with commas"),
    ({"set": ("thresholds=1.5",)}, r"exit_threshold=1.5 must lie in \(0, 1\]"),
    ({"exit_threshold": 0.5}, "--exit_threshold is one of those that --task=early_exit compares"),
    ({"loops": 1}, "--loops is one of those")])
def test_what_cannot_be_compared(settings, message, x64, tmp_path):
    model = decoding_model(random_model("parallel", vocab_size=259), tokenizer=ByteTokenizer())
    with pytest.raises(ValueError, match=message):
        evaluate(model, tmp_path, **settings)
