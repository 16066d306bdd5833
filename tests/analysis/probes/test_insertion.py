"""The insertion probe: which predictions count, paired statistics, and a whole run against texts joined by hand."""

import contextlib
import dataclasses
import io
import json
import math
import types

import numpy as np
import pytest
from scipy.stats import binomtest

from mtp_jax.analysis.probes import insertion, insertion_command, insertion_figure, insertion_report
from mtp_jax.analysis.probes.conditions import BETWEEN, NONE, POSITIONS, Filler, insert
from mtp_jax.analysis.probes.insertion_command import Options
from mtp_jax.analysis.probes.insertion_questions import Question, Questions, find_task, load_questions
from mtp_jax.analysis.probes.insertion_reading import predictions, sums
from mtp_jax.analysis.probes.paired import add_holm, holm, mcnemar, mean_over
from mtp_jax.config import EvaluationConfig
from mtp_jax.data.tasks.names_made import MadeStoriesTokenizer
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import generate
from mtp_jax.evaluation.generating import Drawing
from mtp_jax.evaluation.likelihood import Reading, Scorer
from mtp_jax.evaluation.request import Request
from tests.decoding.workdirs import write_workdir
from tests.evaluation.toy import write_model
from tests.small_model import make_config, make_params

BOS, HEADS = ByteTokenizer.bos_id, 2
PROBLEMS = [("1+1?", " It is 2.\n#### 2"), ("2+3?", " #### 5"), ("3 and 4?", " 3 + 4 = <<3+4=7>>7.\n#### 7"),
            ("9-9?", " Nothing.\n#### 0")]
ANSWERS = [" It is 2. The answer is 2.", "  The answer is 5.", " 3 + 4 = 7. The answer is 7.",
           " Nothing. The answer is 0."]
ASKED = "Add. "


# Which predictions count.

@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("head", [1, 2, 3])
def test_the_same_predictions_count_with_and_without_the_insertion(position, head):
    """Every token knows where it was; so (source, target) can be compared, and none is of the filler."""
    question, instruction = np.arange(100, 108), np.arange(50, 55)
    answer = np.arange(200, 204)
    for part in ("question", "answer"):
        seen = []
        for size in (0, 1, 6):
            row = insert(question, [9] * size, bos=BOS, instruction=instruction, position=position, seed=4)
            ids = np.concatenate([row.ids, answer])
            places = predictions(row, len(answer), head, part)
            seen.append([(int(ids[place]), int(ids[place + head])) for place in places])
            assert all(pair[0] in {*question, *answer} for pair in seen[-1])
            assert all(pair[1] in (question if part == "question" else answer) for pair in seen[-1])
        assert seen[0] == seen[1] == seen[2]
        # Without the filler they lie `head` apart, and all such pairs are there that the place does not divide.
        order = [*question, *answer]
        place = {"before": 0, "between": 0, "end": 8}.get(position)
        if place is None:
            cut = insert(question, [], bos=BOS, instruction=instruction, position=position, seed=4).filler_start
            place = max(0, cut - 6)
        want = [(order[i], order[i + head]) for i in range(len(order) - head)
                if not i < place <= i + head and (i + head < 8) == (part == "question")]
        assert seen[0] == want


def test_sums_are_of_the_predictions_that_count():
    random = np.random.default_rng(0)
    row, answer = insert(np.arange(6), [9, 9], bos=BOS, instruction=np.arange(3), position="between"), 3
    length = len(row.ids) + answer
    reading = Reading({k: -random.random(length - k) for k in (1, 2, 3)},
                      {k: random.integers(0, 2, length - k) for k in (1, 2, 3)})
    found = sums([reading], [row], [answer], 3)
    start, end = row.question_start, len(row.ids)
    for k in (1, 2, 3):
        own = [i for i in range(start, length - k)]
        for part, inside in (("question", lambda j: j < end), ("answer", lambda j: j >= end)):
            places = [i for i in own if inside(i + k)]
            assert found.loss[part, k][0] == pytest.approx(-sum(reading.logprob[k][i] for i in places))
            assert found.tokens[part, k][0] == len(places)
    for part, places in (("question", range(start, end - 3)), ("answer", range(end - 1, length - 3))):
        want = 0
        for i in places:
            agree = [reading.top[k][i] == reading.top[1][i + k - 1] for k in (2, 3)]
            want += 1 + (agree[0]) + (agree[0] and agree[1])
        assert found.accepted[part][0] == want and found.positions[part][0] == len(places)


# Statistics.

def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    random = np.random.default_rng(1)
    for number in (1, 7, 40, 2000):
        first, second = random.random((2, number)) < np.array([[0.6], [0.4]])
        only_first, only_second, p = mcnemar(first, second)
        assert (only_first, only_second) == (np.sum(first > second), np.sum(second > first))
        want = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
        assert p == pytest.approx(want, rel=1e-9)
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)
    assert mcnemar([True] * 5, [False] * 5)[2] == 2 / 2**5
    with pytest.raises(ValueError, match="2 problems cannot be paired with 1"):
        mcnemar([True, False], [True])


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    cells = [{"accuracy": {}}, *({"accuracy": {"difference": {"p": p}}} for p in (0.01, 0.04)), {}]
    add_holm(cells)
    assert [cell["accuracy"]["difference"]["p_holm"] for cell in cells[1:3]] == pytest.approx([0.02, 0.04])


def test_means_are_over_tokens_and_intervals_over_problems():
    found = mean_over(np.array([3.0, 0.0, 10.0]), np.array([1, 0, 5]))
    assert found["mean"] == pytest.approx(13 / 6)
    assert found["interval"] == pytest.approx([2.0, 3.0])  # all of the one problem, or all of the other
    assert mean_over(np.zeros(2), np.zeros(2, int)) is None


# A whole run.

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data in GSM8K's form."""
    folder = tmp_path_factory.mktemp("insert")
    (folder / "data.jsonl").write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n"
                                               for question, answer in PROBLEMS))
    write_model(folder / "run", num_heads=HEADS, num_layers=3)
    return folder


def options_of(place, **changes):
    values = dict(workdir=str(place / "run"), task="gsm8k", data=str(place / "data.jsonl"), k=("0", "5"), window=64,
                  set=("shots=0",), instruction=ASKED, max_new_tokens=6, out=str(place / "out" / "insert.json"),
                  position=("before", "between", "end"))
    return Options(**{**values, **changes})


@pytest.fixture(scope="module")
def run(place):
    """Returns what the command wrote, its lines, and the model."""
    models, real = [], insertion.measure
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        def measure(options):
            found = real(options)
            models.append(found.model)
            return found

        patch.setattr(insertion, "measure", measure)
        assert insertion_command.run(options_of(place)) == 0
    return json.loads((place / "out" / "insert.json").read_text()), said.getvalue(), models[0]


def text_of(position, filler, question):
    """Returns the prompt joined as text, which with bytes has the same ids."""
    return {"before": filler + ASKED + question, "between": ASKED + filler + question,
            "end": ASKED + question + filler}[position]


def test_losses_are_those_of_the_texts_joined_by_hand(run):
    result, _, model = run
    scorer, tokenizer = Scorer(model, batch_size=32), ByteTokenizer()
    texts = {"none": "", "meaningless": "/" * 5, "meaningful": "he " * 5}
    checked = 0
    for cell in result["cells"]:
        if cell["condition"] not in texts:
            continue
        total = dict.fromkeys([(part, k) for part in ("question", "answer") for k in (1, 2)], (0.0, 0))
        position = cell["position"]
        asked = [f"Q: {question}\nA:" for question, _ in PROBLEMS]
        wholes = [text_of(position, texts[cell["condition"]], question) + answer
                  for question, answer in zip(asked, ANSWERS)]
        readings = scorer.read([np.array([BOS, *tokenizer.encode(whole)]) for whole in wholes], heads=(1, 2))
        for question, whole, reading in zip(asked, wholes, readings):
            first = whole.index("Q: ") + 1  # BOS
            last = first + len(question)
            begin = last + len(texts[cell["condition"]]) * (position == "end")
            for k in (1, 2):
                spans = {"question": range(first, last - k), "answer": range(
                    begin if position == "end" else last - k, len(whole) + 1 - k)}
                for part, span in spans.items():
                    values = -reading.logprob[k][list(span)]
                    total[part, k] = total[part, k][0] + values.sum(), total[part, k][1] + len(span)
        for (part, k), (value, tokens) in total.items():
            assert cell["loss"][part][str(k)]["tokens"] == tokens
            assert cell["loss"][part][str(k)]["mean"] == pytest.approx(value / tokens, abs=1e-4)
            checked += 1
    assert checked == 3 * 3 * 4


def test_answers_are_what_the_model_writes_behind_the_text(run):
    result, _, model = run
    tokens = {"none": 0, "meaningless": 5, "meaningful": 15, "random": 5}
    for cell in result["cells"]:
        assert cell["tokens"] == tokens[cell["condition"]] and len(cell["completions"]) == len(PROBLEMS)
        assert math.isclose(cell["accuracy"]["mean"], np.mean(cell["passed"])) and "lenient_accuracy" in cell
        assert len(cell["acceptance"]) == HEADS - 1 and 1 <= cell["tokens_per_forward"]["mean"] <= HEADS
    cell = next(cell for cell in result["cells"] if (cell["position"], cell["condition"]) == ("end", "meaningful"))
    prompts = [text_of("end", "he " * 5, f"Q: {question}\nA:") for question, _ in PROBLEMS]
    assert cell["completions"] == generate(model, prompts, max_new_tokens=6).text


def test_each_cell_stands_beside_no_insertion(run):
    result, said, _ = run
    assert [(cell["position"], cell["condition"]) for cell in result["cells"][:5]] == [
        ("before", "none"), ("before", "meaningless"), ("before", "meaningful"), ("before", "random"),
        ("between", "none")]
    plain, cell = result["cells"][0], result["cells"][2]
    loss, before = (one["loss"]["answer"]["2"] for one in (cell, plain))
    difference = loss["difference"]
    assert difference["mean"] == pytest.approx(loss["mean"] - before["mean"])
    assert difference["interval"][0] <= difference["mean"] <= difference["interval"][1]
    assert "difference" not in plain["loss"]["answer"]["2"] and "difference" not in plain["accuracy"]
    assert cell["accuracy"]["difference"]["p"] == 1.0 == cell["accuracy"]["difference"]["p_holm"]
    assert "5 x 'he ': 15 tokens, 3 for each" in said and "between  random" in said
    assert (result["problems"], result["left_out"]) == (4, [])


def test_pictures_are_drawn(run, place):
    result, said, _ = run
    picture = place / "out" / "insert.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in said
    path = insertion_figure.draw_beside([result, result], place / "two.png", k=5)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="share a position and k=7"):
        insertion_figure.draw_beside([result, result], place / "two.png", k=7)


def test_what_does_not_fit_is_told_before_anything_runs_or_left_out(run, place, monkeypatch):
    model = run[2]
    monkeypatch.setattr(Scorer, "read", lambda *args, **more: pytest.fail("something ran"))
    tight = options_of(place, condition=("meaningless",), k=("0", "9"), position=("between",), loss_only=True)
    programs, model = model.programs, dataclasses.replace(model, window=50)
    model.programs.update(programs)  # of the same weights
    with pytest.raises(ValueError, match=r"k=9 of 'meaningless', has 9 tokens. .* 3 of 4 problems fit the window of 50 "
                                         r"tokens, without it 4: .*'gsm8k/2', needs 56, 5 of them instruction. Leave"):
        insertion.measure(tight, model=model)
    monkeypatch.undo()
    found = insertion.measure(Options(**{**vars(tight), "leave_out": True}), model=model)
    result = insertion_report.report(tight, found)
    assert result["left_out"] == ["gsm8k/2"] and result["problems"] == 3
    assert "1 of 4 problems do not fit" in " ".join(result["notes"]) and "accuracy" not in result["cells"][0]
    with pytest.raises(ValueError, match="0 of 4 problems fit .* Lower --k"):
        insertion.measure(Options(**{**vars(tight), "leave_out": True, "k": ("60",)}), model=model)


@pytest.mark.parametrize("bos", [None, BOS])
def test_the_window_holds_what_is_joined_and_not_a_token_more(bos):
    model = types.SimpleNamespace(tokenizer=types.SimpleNamespace(bos_id=bos), window=20)
    questions = Questions(np.arange(3), "abc", [Question("one", np.arange(5), np.arange(2))],
                          Drawing((0.0,), 1, 1.0, 4, ()), lambda *asked: {}, [])

    def fit(size):
        cells = [insertion.Cell(BETWEEN, NONE, 0, [Filler(NONE, 0, np.zeros(0, np.int32))]),
                 insertion.Cell(BETWEEN, "meaningless", size, [Filler("meaningless", size, np.arange(size))])]
        return insertion.fitting(Options(task="x"), model, questions, cells)

    room = 20 - 3 - 5 - 4 - (bos is not None)
    assert len(fit(room)[0].questions) == 1
    with pytest.raises(ValueError, match="'one', needs 21, 3 of them instruction"):
        fit(room + 1)
    questions = dataclasses.replace(questions, questions=[])
    with pytest.raises(ValueError, match="--task=x has no problem that can be asked"):
        fit(1)


def test_answers_that_cannot_be_scored_are_told(monkeypatch):
    names, rows = ["a", "b", "c"], [insert(np.arange(3), [], bos=BOS)] * 3

    def score(question, text, ids):
        if question.name != "a":
            raise KeyError("answer")
        return {"passed": True}

    questions = Questions(np.zeros(0, np.int32), "", [Question(name, np.arange(3), np.arange(2)) for name in names],
                          Drawing((0.0,), 1, 1.0, 1, ()), score, [])
    ones = np.ones((3, 1), int)
    monkeypatch.setattr(insertion, "write_batch", lambda *asked, **more: (["x"] * 3, types.SimpleNamespace(
        accepted=ones, blocks=ones[:, 0], produced=ones[:, 0], forwards=ones[:, 0], tokens=ones)))
    model = types.SimpleNamespace(tokenizer=ByteTokenizer(), heads=2)
    found = insertion.answer(model, questions, rows, 3, 0, lambda number: None)
    assert found.passed.tolist() == [True, False, False] and found.errors.keys() == {"b", "c"}
    # The cell without insertion is the same at every position, and is counted once.
    probed = types.SimpleNamespace(cells=[], questions=questions, left_out=[], answers=[found, found])
    assert insertion_report.notes(Options(), probed) == [
        "2 of 3 answers could not be scored and count as failed; the first is that to 'b': KeyError: 'answer'"]
    probed.answers = [dataclasses.replace(found, errors={})]
    assert insertion_report.notes(Options(), probed) == []


def test_losses_that_a_question_of_one_token_lacks_are_left_out_of_the_picture(monkeypatch, tmp_path):
    made, real = [], insertion_figure.Picture

    def picture(*panels, **more):
        made.append(real(*panels, **more))
        return made[-1]

    monkeypatch.setattr(insertion_figure, "Picture", picture)
    mean = {"mean": 1.0, "interval": [0.5, 1.5]}

    def draw(**parts):  # {position: parts of the text with losses}
        cells = [{"position": position, "condition": name, "k": k, "loss": {
            part: {"1": mean | ({"difference": mean} if k else {})} if part in own else {}
            for part in ("question", "answer")}}
            for position, own in parts.items() for name, k in (("none", 0), ("meaningless", 5))]
        result = {"task": "x", "problems": 2, "cells": cells, "settings": {
            "positions": list(parts), "same_tokens": False, "k": [0, 5]}}
        assert insertion_figure.draw(result, tmp_path / "x.png", k=5).exists()
        return result, [axis.get_ylabel().split(" minus")[0] for axis in made[-1].axes]

    result, panels = draw(between=["answer"])
    assert panels == ["answer loss"]
    with pytest.raises(ValueError, match="no loss on their questions"):
        insertion_figure.draw_beside([result], tmp_path / "y.png", k=5)
    # Of a question of two tokens only where nothing stands between them.
    assert draw(random=["answer"], between=["question", "answer"])[1] == ["question loss", "question loss",
                                                                         "answer loss"]
    bars = made[-1].axes[0]
    assert len(bars.patches) == 1 and [text.get_text() for text in bars.get_legend().get_texts()] == ["meaningless"]
    with pytest.raises(ValueError, match="nothing to draw: .* without --loss_only"):
        draw(between=[])


@pytest.fixture
def stories(tmp_path):
    """Options of a probe of an untrained model of made stories."""
    tokenizer = MadeStoriesTokenizer()
    config = make_config(num_heads=1, num_layers=2, vocab_size=tokenizer.vocab_size, dtype="float32",
                         param_dtype="float32")
    workdir = write_workdir(tmp_path / "run", config, {1: make_params(config)}, seq_len=64, source="made_stories",
                            tokenizer="made_stories", tokenizer_hash=tokenizer.hash)
    return Options(workdir=str(workdir), task="induction", set=("stories=6",), k=("4",), meaningless=".",
                   condition=("meaningless",))


def questions_of(options):
    """Returns the questions of a task, and the request."""
    config = EvaluationConfig(workdir=options.workdir, task=options.task)
    request = Request(config, find_task(options.task).options(options.set))
    return load_questions(options.task, request, options.instruction), request


def test_induction_asks_for_the_second_token_of_a_name(stories):
    questions, _ = questions_of(stories)
    assert len(questions.questions) == 6 and questions.drawing.max_new_tokens == 1
    for question in questions.questions:
        before = question.ids.tolist()
        assert (before[-1], int(question.answer[0])) in list(zip(before, before[1:])) and len(question.answer) == 1
        assert questions.score(question, "", question.answer)["passed"]
        assert not questions.score(question, "", question.answer + 1)["passed"]


@pytest.mark.slow
def test_induction_is_answered_by_the_likeliest_token(stories):
    found = insertion.measure(stories)
    plain, tokenizer = found.answers[0], found.model.tokenizer
    for number, question in enumerate(found.questions.questions):
        top = Scorer(found.model).read([np.array([tokenizer.bos_id, *question.ids, 0])])[0].top[1][-1]
        assert plain.passed[number] == (top == question.answer[0])
        assert plain.produced[number] == 1
