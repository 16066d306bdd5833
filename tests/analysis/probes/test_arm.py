"""The redistribution probe: its measures by their formulas, its flags, and a whole run on a small model."""

import contextlib
import dataclasses
import io
import json
import types

import numpy as np
import pytest

from mtp_jax.analysis.probes import arm, arm_command, arm_report
from mtp_jax.analysis.probes.arm_activations import Gates, near_zero, per_token, read_gates, token_classes
from mtp_jax.analysis.probes.arm_command import Options
from mtp_jax.analysis.probes.insertion import Answers
from mtp_jax.analysis.probes.insertion_questions import Question, Questions
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import generate
from mtp_jax.decoding.load import load_model
from mtp_jax.evaluation.generating import Drawing
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.model.redistribution import MODES, NOISES, PERCENTILES, STATISTICS, Redistribution
from tests.evaluation import toy

TEXTS = ["2+3=5 and 7", "for x in range(3): y = 2 * x", "if a then b or c", "the end of it all"]


def gates_of(*rows):
    """Returns activations [T, F] a row, as one padded batch."""
    lengths = np.array([len(row) for row in rows], np.int32)
    batch = np.full((len(rows), lengths.max(), rows[0].shape[1]), 99.0, np.float32)
    for b, row in enumerate(rows):
        batch[b, :len(row)] = row
    return Gates([batch], [lengths], [list(range(len(rows)))], len(rows))


def test_measures_are_their_formulas():
    random = np.random.default_rng(0)
    rows = [random.normal(size=(3, 16)).astype(np.float32), random.normal(size=(5, 16)).astype(np.float32)]
    rows[0][0] = 0.0
    for row, found in zip(rows, per_token(gates_of(*rows), 0.5)):
        size = np.abs(row.astype(np.float64))
        np.testing.assert_allclose(found["near_zero"], (size < 0.5).mean(axis=1))
        np.testing.assert_allclose(found["l1"], size.sum(axis=1))
        np.testing.assert_allclose(found["l2"], np.linalg.norm(size, axis=1))
        apart = np.abs(size[:, :, None] - size[:, None]).sum(axis=(1, 2))
        gini = apart / np.maximum(2 * 16 * size.sum(axis=1), 1e-300)
        np.testing.assert_allclose(found["gini"], gini, atol=1e-12)


def test_the_threshold_is_fixed_on_all_tokens_together():
    rows = [np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32) for _ in range(2)]
    size = np.abs(np.concatenate(rows).ravel())
    mad = np.median(np.abs(size - np.median(size)))
    assert near_zero(gates_of(*rows), Redistribution.create(c=0.3)) == pytest.approx(1.4826 * mad * 0.3)
    assert near_zero(gates_of(*rows), Redistribution.create(fraction=0.3)) == pytest.approx(np.quantile(size, 0.3))


def test_tokens_are_of_the_class_of_the_word_that_they_are_part_of():
    def classes(text):
        found = token_classes(ByteTokenizer(), np.array([ByteTokenizer.bos_id, *ByteTokenizer().encode(text)]))
        return "".join({"digits": "d", "operators": "o", "conjunctions": "c", "other": "."}[name] for name in found)[1:]

    assert classes("12+x == 3") == "ddo..oo.d"
    assert classes("and sand OR if") == "ccc......cc.cc"
    assert classes("é - 1") == "...o.d" and classes("") == ""


def test_the_words_of_the_flags_are_those_of_the_module():
    assert (arm_command.STATS, arm_command.MODES, arm_command.NOISES, arm_command.PERCENTILES) == (
        STATISTICS, MODES, NOISES, PERCENTILES)


@pytest.mark.parametrize("bad, words", [
    ({"workdir": ""}, "--workdir is missing"), ({"task": ""}, "--task=NAME for questions, or --data=FILE"),
    ({"stats": "tokens"}, 'Did you mean "token"'), ({"mode": "repalce"}, 'Did you mean "replace"'),
    ({"noise": "x"}, "--noise='x' is not one of"), ({"percentile_of": "magnitude"}, 'Did you mean "magnitudes"'),
    ({"c": ("-1",)}, "--c=-1.0 must be 0 or above"), ({"c": ("x",)}, "--c=x must be a number"),
    ({"c": ("1", "1.0")}, "has a value twice"), ({"p1": ("101",)}, "--p1=101.0 must lie in 0..100"),
    ({"p_min": 0.5}, "--p_min=0.5 is above p_max=0.25"), ({"fraction": ("1.5",)}, "--fraction=1.5 must lie in 0..1"),
    ({"c": ("0.1",), "fraction": ("0.1",)}, "leave one out"), ({"noise_seed": ("0.5",)}, "must be whole numbers"),
    ({"noise_seed": ("-1",)}, "--noise_seed=-1 must be a whole number in"),
    ({"stats": "tensor"}, "add --loss_only, which reads whole rows"),
    ({"k": -1}, "--k=-1"), ({"k": 3, "meaningless": ""}, "--meaningless is empty"),
    ({"text_tokens": 2}, "--text_tokens=2 must be at least 4"), ({"out": "x.txt"}, "must end in .json")])
def test_bad_flags_are_told_before_anything_is_loaded(bad, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        arm_command.run(Options(**{"workdir": "nowhere", "task": "gsm8k", **bad}))


def test_what_tensor_statistics_can_be_used_for():
    Options(workdir="w", task="t", stats="tensor", loss_only=True).validate()
    Options(workdir="w", task="t", stats="tensor", heads=1, batch_size=1).validate()


QUESTIONS = Questions(np.arange(3), "abc", [Question(name, np.arange(size), np.arange(2))
                                           for name, size in (("short", 4), ("long", 9))],
                      Drawing((0.0,), 1, 1.0, 5, ()), lambda *asked: {}, [])


@pytest.mark.parametrize("bos", [None, 256])
@pytest.mark.parametrize("flags, size, room, words", [
    ({}, 0, 5, "its reference answer, 5 new tokens: .* by --leave_out, lower --max_new_tokens, or raise --window"),
    (dict(loss_only=True), 0, 1, "its reference answer: .* by --leave_out, take a shorter --instruction, or"),
    (dict(loss_only=True), 7, 7, "its reference answer, 7 inserted ones: .* by --leave_out, lower --k, or"),
])
def test_problems_that_do_not_fit_are_told_or_left_out(bos, flags, size, room, words):
    need, run = 3 + 9 + room + (bos is not None), np.zeros(size, np.int32)
    options = Options(workdir="w", task="t", **flags)

    def fit(window, **changes):
        model = types.SimpleNamespace(tokenizer=types.SimpleNamespace(bos_id=bos), window=window)
        return arm.fitting(dataclasses.replace(options, **changes), model, QUESTIONS, run)

    assert fit(need)[1] == []
    with pytest.raises(ValueError, match=f"1 of 2 problems fit .*'long' needs {need}, 3 of .*"):
        fit(need - 1)
    with pytest.raises(ValueError, match=words.split(":")[0] + ":"):
        fit(need - 1)
    with pytest.raises(ValueError, match=f"Leave the others out{words.split('.*')[1]}"):
        fit(need - 1)
    kept, left_out = fit(need - 1, leave_out=True)
    assert [question.name for question in kept.questions] == ["short"] and left_out == ["long"]
    with pytest.raises(ValueError, match="0 of 2 problems fit"):
        fit(need - 6, leave_out=True)


def test_answers_that_cannot_be_scored_are_told():
    one = Answers(np.array([True, False]), None, ["", ""], np.ones(2), np.ones(2), np.zeros(1), 1, {})
    cells = [arm.Cell({}, None, None, one), arm.Cell({"c": 0.1}, None, None, dataclasses.replace(
        one, errors={"long": "KeyError: 'answer'"}))]
    found = types.SimpleNamespace(cells=cells, questions=QUESTIONS, left_out=[], model=types.SimpleNamespace(
        config=types.SimpleNamespace(loops=1)))
    assert arm_report.notes(Options(), found) == [
        "1 of 4 answers could not be scored and count as failed; the first is that to 'long': KeyError: 'answer'"]


def run(options):
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(io.StringIO()):
        arm_command.run(options)
    return told.getvalue()


@pytest.mark.slow
def test_a_whole_run_on_texts(tmp_path):
    workdir = toy.write_model(tmp_path / "run")
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    told = run(Options(workdir=str(workdir), data=str(data), text_tokens=8, max_new_tokens=6, c=("0.2", "0.5"),
                       p1=("90",), k=3, noise_seed=("0", "1")))
    result = json.loads((workdir / "probes" / "arm-texts.json").read_text())
    assert (workdir / "probes" / "arm-texts.png").stat().st_size > 10_000
    off, *on = result["cells"]
    assert len(on) == 4 and result["problems"] == len(TEXTS) and "accuracy" not in on[0] and "3 x '/'" in told
    model = load_model(workdir)
    ids = [np.array([256, *text.encode()[:8]]) for text in TEXTS]
    arms = model.redistributing(Redistribution.create(c=0.5, p1=90, seed=1))
    for cell, loaded in ((off, model), (on[3], arms)):
        readings = Scorer(loaded).read(ids, heads=(1, 4))
        # Targets: ids 5 to 8 are the answer; head 4 foretells all of them from the question's ids 1 to 4.
        want = -np.mean([reading.logprob[4][1:] for reading in readings])
        assert cell["loss"]["answer"]["4"]["mean"] == pytest.approx(want, rel=1e-5)
        texts = generate(loaded, [row[:5].tolist() for row in ids], max_new_tokens=6)
        assert cell["completions"] == list(texts.text)
        assert cell["tokens_per_forward"]["mean"] == pytest.approx(texts.produced.sum() / texts.forwards.sum())
    assert off["loss"]["answer"]["1"]["mean"] != on[0]["loss"]["answer"]["1"]["mean"]
    for cell in on:
        own = cell["activations"]
        assert own["near_zero"]["after"]["mean"] < own["near_zero"]["before"]["mean"]
        assert own["tokens"] == len(TEXTS) * 9
        by_class = own["near_zero_by_class"]
        for side in ("before", "after"):
            total = sum(found["tokens"] * found[side] for found in by_class.values())
            assert total / own["tokens"] == pytest.approx(own["near_zero"][side]["mean"])
    assert {"digits", "operators", "conjunctions", "other"} == set(on[0]["activations"]["near_zero_by_class"])


@pytest.mark.slow
def test_activations_are_those_of_the_model_and_move_as_in_decoding(tmp_path):
    model = load_model(toy.write_model(tmp_path / "run"))
    rows = [np.array([256, *text.encode()]) for text in TEXTS]
    gates = read_gates(model, rows, batch_size=3)
    assert [len(row) for row in gates.of_row()] == [len(row) for row in rows]
    alone = read_gates(model, rows[2:3]).of_row()[0]
    np.testing.assert_allclose(gates.of_row()[2], alone, atol=1e-5)
    settings = Redistribution.create(c=0.5, p1=90)
    again = read_gates(model.redistributing(settings), rows, batch_size=3)  # those before the module
    for one, other in zip(gates.of_row(), again.of_row()):
        np.testing.assert_allclose(one, other, atol=1e-6)
    moved = gates.moved(settings)
    np.testing.assert_allclose(moved.of_row()[2], read_gates(model, rows[2:3]).moved(settings).of_row()[0], atol=1e-5)
    found = arm.compare(gates, moved, 0.1, [])
    assert (found.sums["near_zero"][1] <= found.sums["near_zero"][0]).all()
    assert found.tokens.tolist() == [len(row) for row in rows]


@pytest.mark.slow
def test_a_task_is_answered_off_and_on_and_other_data_are_told(tmp_path, monkeypatch):
    toy.register(monkeypatch)
    workdir = toy.write_model(tmp_path / "run")
    data = toy.write_data(tmp_path, {str(number): f"{number} and {number}?" for number in range(6)})
    options = Options(workdir=str(workdir), task="toy", data=str(data), c=("0.4",), p1=("90",))
    run(options)
    result = json.loads((workdir / "probes" / "arm-toy.json").read_text())
    off, on = result["cells"]
    difference = on["accuracy"]["difference"]
    assert difference["mean"] == pytest.approx(on["accuracy"]["mean"] - off["accuracy"]["mean"])
    assert difference["p_holm"] == difference["p"] and len(on["completions"]) == 6
    tensor = dataclasses.replace(options, stats="tensor", loss_only=True, out=str(tmp_path / "t.json"))
    assert "Statistics are taken over batches" in run(tensor)
    plain = tmp_path / "plain.txt"
    plain.write_text("0123456789" * 5)
    texts = dataclasses.replace(options, task="", data=str(plain), text_tokens=20, max_new_tokens=2, loss_only=True)
    found = arm.measure(texts, texts.settings())
    assert len(found.questions.questions) == 2 and arm_report.report(texts, found)["task"] == "texts"
    for change, words in (({"text_tokens": 60}, "holds no text of 60 tokens"), ({"set": ("a=1",)}, "texts of --data"),
                          ({"data": str(data), "field": "no"}, "field 'no'"), ({"k": 60}, "0 of 2 .* 60 inserted"),
                          ({"text_tokens": 50}, "0 of 1 problems fit")):
        with pytest.raises(ValueError, match=words):
            run(dataclasses.replace(texts, **change))
