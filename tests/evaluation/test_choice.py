"""Choice tasks: every form of every file, scores of the plain forward, accuracies by hand, bad input."""

import functools
import gzip
import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

from mtp_jax.config import EvaluationConfig
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.evaluation import command, loglikelihood_choice
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.tasks.choice import TASKS
from mtp_jax.evaluation.tasks.choice_files import read_records
from tests.decoding.checks import decoding_model
from tests.decoding.models import WINDOW, random_model

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "multiple_choice"
LABELS = "ABCDE"
ASKED = "Please choose the correct answer to the question: "


def instruction(text, answer):
    return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def problems(name, path, *settings):
    """Returns the problems of a file."""
    task = TASKS[name]
    return [task.read(record, where, task.options(settings)) for where, record in read_records(epath.Path(path))]


FOUR = [{"text": text, "label": label} for text, label in zip(("sun", "a moon", "ice", "air"), LABELS)]
ARC = {"id": "x7", "question": {"stem": "What shines?", "choices": FOUR}, "answerKey": "A"}
HUB = {"id": "x7", "question": "What shines?", "answerKey": "1",
       "choices": {"text": ["sun", "a moon", "ice", "air"], "label": list("1234")}}
ANSWERS = "Answer1: sun Answer2: a moon Answer3: ice Answer4: air\n\nAnswer format: answer1/answer2/answer3/answer4"
SENTENCE = {"sentence": "Ann beat Sue so _ won.", "option1": "Ann", "option2": "Sue", "answer": "1"}
SHINES = [("Question: What shines?\nAnswer:", f" {text}") for text in ("sun", "a moon", "ice", "air")]
STEM = [("What shines?", more) for _, more in SHINES]
GOAL = [("Question: Keep it dry?\nAnswer:", more) for more in (" Use a\nbag.", " Use rain.")]
ROBIN = [("Q: Robin fell. How did Robin feel?\nA:", more) for more in (" hurt", " glad", " tall")]
WON = [("Ann beat Sue so Ann", " won."), ("Ann beat Sue so Sue", " won.")]
YES = [("A text.\nQuestion: is it?\nAnswer:", " no"), ("A text.\nQuestion: is it?\nAnswer:", " yes")]
WET = [("The cat got wet because", " it rained."), ("The cat got wet because", " I slept.".lower())]

FORMS = [
    ("arc_easy", ARC, SHINES, 0), ("arc_challenge", HUB, SHINES, 0),
    ("arc_easy", instruction(f"{ASKED}What shines?\n\n{ANSWERS}", "answer1"), SHINES, 0),
    ("openbookqa", ARC, STEM, 0), ("openbookqa", {**HUB, "question_stem": "What shines?"}, STEM, 0),
    ("openbookqa", instruction(f"{ASKED}What shines?\n\n{ANSWERS}", "answer3"), STEM, 2),
    ("piqa", {"goal": "Keep it dry?", "sol1": "Use a\nbag.", "sol2": "Use rain.", "label": 0}, GOAL, 0),
    ("piqa", instruction("Please choose the correct solution to the question: Keep it dry?\n\nSolution1: Use a\nbag."
                         "\n\nSolution2: Use rain. \n\nAnswer format: solution1/solution2", "solution2"), GOAL, 1),
    ("siqa", {"context": "Robin fell.", "question": "How did Robin feel?", "answerA": "hurt", "answerB": "glad",
              "answerC": "tall", "label": "1"}, ROBIN, 0),
    ("siqa", instruction(f"{ASKED}Robin fell. How did Robin feel?\n\nAnswer1: hurt Answer2: glad Answer3: tall\n\n"
                         "Answer format: answer1/answer2/answer3", "answer3"), ROBIN, 2),
    ("winogrande", SENTENCE, WON, 0),
    ("winogrande", instruction("Please choose the correct answer to fill in the blank to complete the given sentence: "
                               "Ann beat Sue so _ won.\n\nOption1: Ann Option2: Sue Answer format: option1/option2",
                               "option2"), WON, 1),
    ("boolq", {"passage": "A text.", "question": "is it", "answer": True, "title": "T"}, YES, 1),
    ("boolq", {"passage": "A text.", "question": "is it", "label": 0}, YES, 0),
    ("boolq", instruction("Please answer the following question with true or false, question: is it?\n\nAnswer format: "
                          "true/false", "false"), [("Question: is it?\nAnswer:", more) for _, more in YES], 0),
    ("copa", {"premise": "The cat got wet.", "choice1": "It rained.", "choice2": "I slept.", "question": "cause",
              "label": 0}, WET, 0),
]


@pytest.mark.parametrize("name, record, pairs, gold", FORMS)
def test_every_form_is_read(name, record, pairs, gold, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    listed = tmp_path / "data.json.gz"
    listed.write_bytes(gzip.compress(json.dumps([record, record], indent=1).encode()))
    one, = problems(name, path)
    assert (list(one.pairs), one.gold) == (pairs, gold)
    assert problems(name, listed) == [one, one]
    assert one.closed == (name == "boolq" and "instruction" in record)


def test_copa_is_read_from_its_xml(tmp_path):
    path = tmp_path / "copa.xml"
    path.write_text('<?xml version="1.0"?><!DOCTYPE copa-corpus SYSTEM "copa.dtd"><copa-corpus version="1.0">'
                    '<item id="5" asks-for="cause" most-plausible-alternative="1"><p>The cat got wet.</p>'
                    '<a1>It rained.</a1><a2>I slept.</a2></item><item id="6" asks-for="effect" '
                    'most-plausible-alternative="2"><p>It rained.</p><a1>A.</a1><a2>B.</a2></item></copa-corpus>')
    first, second = problems("copa", path)
    assert (list(first.pairs), first.gold) == (WET, 0)
    assert (second.pairs[1], second.gold) == (("It rained therefore", " b."), 1)
    assert problems("copa", path, "effect=so")[1].pairs[0] == ("It rained so", " a.")


def test_labels_of_a_file_of_their_own(tmp_path):
    record = {key: value for key, value in FORMS[6][1].items() if key != "label"}
    (tmp_path / "valid.jsonl").write_text("\n".join([json.dumps(record)] * 2))
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    assert [one.gold for one in problems("piqa", tmp_path / "valid.jsonl")] == [1, 0]
    (tmp_path / "valid-labels.lst").write_text("1\n")
    with pytest.raises(ValueError, match="valid-labels.lst has 1 labels for the 2 problems"):
        problems("piqa", tmp_path / "valid.jsonl")


@pytest.mark.skipif(not SHARED.exists(), reason="the data files are not here")
@pytest.mark.parametrize("name, file, count, golds", [
    ("arc_easy", "ARC-Easy.json", 2376, (596, 585, 633, 561, 1)), ("piqa", "piqa.json", 1838, (910, 928)),
    ("arc_challenge", "ARC-Challenge.json", 1172, (266, 311, 310, 285)), ("copa", "copa-test.xml", 500, (250, 250)),
    ("siqa", "social_i_qa.json", 1954, (643, 654, 657)), ("winogrande", "winogrande.json", 1267, (628, 639)),
    ("openbookqa", "openbookqa.json", 500, (138, 126, 132, 104)), ("boolq", "boolq.json", 3270, (1237, 2033))])
def test_the_published_sets_are_read_whole(name, file, count, golds):
    found = problems(name, SHARED / file)
    assert len(found) == count
    assert tuple(np.bincount([one.gold for one in found])) == golds
    records = [record for _, record in read_records(epath.Path(SHARED / file))]
    for one, record in zip(found, records):
        whole = record.get("instruction") or f"{record['choice1']} {record['choice2']}".lower()
        assert name == "boolq" or all(text in whole or text.lower() in whole for text in one.texts)


@functools.cache
def model():
    """Returns (Naive, DecodingModel) of random weights over bytes."""
    entry = random_model("parallel", vocab_size=ByteTokenizer.vocab_size)
    return entry[2], decoding_model(entry, tokenizer=ByteTokenizer())


def evaluate(folder, data, task, **settings):
    config = EvaluationConfig(task=task, workdir=str(folder), data=str(data), batch_size=2, **settings)
    printed = command.evaluate(config, model=model()[1])
    return json.loads((folder / "eval" / f"{task}.json").read_text()), printed


def test_scores_and_accuracies_by_definition(x64, tmp_path, monkeypatch):
    monkeypatch.setattr(loglikelihood_choice, "CHUNK", 1)
    choices = [("sun", "a moon", "ice", "air"), ("né", "nnn", "n"), ("b", "a long one", "xyz"), ("qq", "qqq", "éééq")]
    data = tmp_path / "arc.jsonl"
    data.write_text("\n".join(json.dumps({"id": f"n{i}", "answerKey": LABELS[i % 2], "question": {
        "stem": "W?", "choices": [{"text": text, "label": label} for text, label in zip(texts, LABELS)]}})
        for i, texts in enumerate(choices)))
    result, printed = evaluate(tmp_path, data, "arc_easy")
    right = {name: [] for name in ("acc", "acc_norm", "acc_bytes", "acc_tokens")}
    for i, (texts, sample) in enumerate(zip(choices, result["samples"], strict=True)):
        scores = []
        for text in texts:
            context = [256, *b"Question: W?\nAnswer:"]
            row = context + list(f" {text}".encode())
            logp_LxV = np.asarray(jax.nn.log_softmax(model()[0].logits([row])[0, 0, :, :259]))
            scores.append(sum(logp_LxV[place - 1, row[place]] for place in range(len(context), len(row))))
        assert sample["scores"] == pytest.approx(scores, abs=1e-9)
        assert sample["tokens"] == [len(text.encode()) + 1 for text in texts]
        lengths = {"acc": [1] * len(texts), "acc_norm": [len(text) for text in texts],
                   "acc_bytes": [len(text.encode()) for text in texts],
                   "acc_tokens": [len(text.encode()) + 1 for text in texts]}
        for name, by in lengths.items():
            best = int(np.argmax([score / length for score, length in zip(scores, by)]))
            assert sample["chosen"][name] == best
            right[name].append(best == i % 2)
            assert sample[name] == right[name][-1]
    for name, found in right.items():
        assert result["metrics"][name] == pytest.approx(np.mean(found))
        low, high = result["intervals"][name]
        assert 0 <= low <= np.mean(found) <= high <= 1
        assert name in printed
    assert result["metrics"]["chance"] == pytest.approx(np.mean([1 / len(texts) for texts in choices]))
    assert result["metrics"]["cut_problems"] == 0 and result["errors"] == []


def test_what_is_too_long_is_cut_from_the_left_and_told(x64, tmp_path):
    question = "".join(chr(97 + i % 26) for i in range(WINDOW))
    records = [{"id": "long", "goal": question, "sol1": "yes", "sol2": "no!", "label": 1},
               {"id": "hopeless", "goal": "x", "sol1": "y" * (WINDOW + 1), "sol2": "n", "label": 0},
               {"id": "broken", "goal": "x", "sol1": "y", "label": 0},
               {"id": "odd", "goal": "x", "sol1": "y", "sol2": "n", "label": 2},
               {"id": "short", "goal": "x", "sol1": "y", "sol2": "n", "label": 0}]
    data = tmp_path / "piqa.jsonl"
    data.write_text("\n".join(map(json.dumps, records)))
    result, printed = evaluate(tmp_path, data, "piqa")
    samples = {sample["task_id"]: sample for sample in result["samples"]}
    whole = [256, *f"Question: {question}\nAnswer: no!".encode()]
    assert result["cut"] == {"long": len(whole) - WINDOW - 1} and result["metrics"]["cut_problems"] == 1
    assert samples["long"]["cut_tokens"] == len(whole) - WINDOW - 1
    row = whole[-WINDOW - 1:]
    logp_LxV = np.asarray(jax.nn.log_softmax(model()[0].logits([row[:-1]])[0, 0, :, :259]))
    want = sum(logp_LxV[place - 1, row[place]] for place in range(len(row) - 4, len(row)))
    assert samples["long"]["scores"][1] == pytest.approx(want, abs=1e-9)
    errors = {error["task_id"]: error["error"] for error in result["errors"]}
    assert set(errors) == {"hopeless", "broken", "odd"}
    assert f"A choice has {WINDOW + 2} tokens" in errors["hopeless"]
    assert "line 3 has the fields" in errors["broken"] and "lacks ['sol2']" in errors["broken"]
    assert "the answer is 2, which is none of 0, 1" in errors["odd"]
    assert [samples[name]["passed"] for name in errors] == [False] * 3
    good = (samples["long"]["acc"] + samples["short"]["acc"]) / 5
    assert result["metrics"]["acc"] == pytest.approx(good), "what could not be scored counts as wrong"
    assert "3 of them could not be evaluated" in printed


def test_closed_book_is_told(x64, tmp_path, capsys):
    data = tmp_path / "boolq.json"
    data.write_text(json.dumps([FORMS[14][1]]))
    result, _ = evaluate(tmp_path, data, "boolq")
    assert "1 of 1 questions come without the passage" in result["note"] and "closed-book" in capsys.readouterr().err
    data.write_text(json.dumps([FORMS[12][1]]))
    assert "note" not in evaluate(tmp_path, data, "boolq")[0]


def test_a_stopped_evaluation_goes_on(x64, tmp_path, monkeypatch):
    data = tmp_path / "w.jsonl"
    data.write_text("\n".join(json.dumps({**SENTENCE, "sentence": f"Ann {'x' * i} _ won {i}."}) for i in range(6)))
    monkeypatch.setattr(loglikelihood_choice, "CHUNK", 2)
    whole = evaluate(tmp_path, data, "winogrande")[0]
    score, calls = loglikelihood_choice.Scorer.score, []

    def stopping(self, pairs, **settings):
        calls.append(len(pairs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, pairs, **settings)

    monkeypatch.setattr(loglikelihood_choice.Scorer, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, data, "winogrande")
    assert evaluate(tmp_path, data, "winogrande")[0] == whole
    assert calls == [4, 4, 4, 4]
    sample = whole["samples"][0]
    assert sample["context"] == ["Ann  Ann", "Ann  Sue"] and sample["choices"] == [" won 0."] * 2


@pytest.mark.parametrize("task, text, message", [
    ("piqa", json.dumps([FORMS[2][1]]), "item 1: the instruction begins 'Please choose the correct answer.*no data of"),
    ("siqa", json.dumps([FORMS[2][1]]), "item 1 has 4 choices, and this task's problems have 3"),
    ("siqa", json.dumps([FORMS[2][1]] * 2 + [FORMS[9][1]]),
     "2 of 3 records of .* are no problem of --task=siqa. The first"),
    ("arc_easy", json.dumps(FORMS[6][1]), r"line 1 has the fields .* and lacks \['question', 'answerKey'\]"),
    ("arc_easy", json.dumps({"question": "6 x 7?", "answerKey": "A"}), "has no choices with text and label"),
    ("piqa", json.dumps(SENTENCE), "lacks .*'goal'"),
    ("arc_easy", json.dumps(instruction(f"{ASKED}Q?\n\n{ANSWERS.replace('Answer3', 'Answer5')}", "answer1")),
     "the choices are numbered 1, 2, 5, 4"),
    ("arc_easy", json.dumps(instruction(f"{ASKED}Q?\n\n{ANSWERS.replace('a moon', '')}", "answer1")),
     "choice is empty"),
    ("arc_easy", json.dumps(instruction(f"{ASKED}Q?\n\n{ANSWERS}", "answer5")),
     "the answer is 'answer5', which is none"),
    ("winogrande", json.dumps({**SENTENCE, "sentence": "No gap."}), "has no blank _"),
    ("copa", json.dumps({**FORMS[15][1], "question": "why"}), "asks for 'why', neither cause nor effect"),
    ("boolq", json.dumps({**FORMS[12][1], "answer": "maybe"}), "'maybe', which is neither true nor false"),
    ("piqa", '{"goal": \n', "line 1 is not JSON"), ("piqa", '[\n{"goal": "x"},\n{,\n]', "line 3 is not JSON"),
    ("piqa", "[]", "holds no problem"), ("piqa", "[1]", "item 1 is int where an object belongs"),
    ("copa", "<copa-corpus><item>", "is no XML"),
    ("piqa", '{"id": 1}\n{"id": 1}', "another problem named '1'"),
])
def test_bad_data_are_told(task, text, message, x64, tmp_path):
    data = tmp_path / ("x.xml" if text.startswith("<") else "x.json")
    data.write_text(text)
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, data, task)


def test_data_of_a_task_of_the_same_form_are_refused(tmp_path):
    def read(task, path):
        request = Request(EvaluationConfig(workdir="x", task=task, data=str(path)), {})
        return TASKS[task]._problems(request)[0]

    four, three = FORMS[2][1], instruction(f"{ASKED}Q?\n\n{ANSWERS.replace('Answer4: ', '')}", "answer1")
    three["instruction"] = three["instruction"].replace("/answer4", "")
    data = tmp_path / "ARC-Challenge.json"
    data.write_text(json.dumps([four]))
    assert len(read("arc_challenge", data)) == 1
    for task in ("arc_easy", "openbookqa"):
        with pytest.raises(ValueError, match="is called like the data of arc_challenge.*give --task=arc_challenge"):
            read(task, data)
    data = tmp_path / "test.json"
    data.write_text(json.dumps([four] * 4 + [three] * 6))
    with pytest.raises(ValueError, match="6 of 10 problems .* do not have 4 choices"):
        read("arc_easy", data)
    data.write_text(json.dumps([four] * 5 + [three] * 5))
    assert len(read("arc_easy", data)) == 10
    hub = {"choices": HUB["choices"], "answerKey": "1"}
    for task, field in (("openbookqa", "question"), ("arc_easy", "question_stem")):
        data.write_text(json.dumps({**hub, field: "What shines?"}))
        with pytest.raises(ValueError, match="lacks"):
            read(task, data)


def test_completions_do_not_say_what_is_likely(x64, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(SENTENCE))
    with pytest.raises(ValueError, match="asks the model how likely the choices are"):
        evaluate(tmp_path, tmp_path / "x.jsonl", "winogrande", completions="c.jsonl")
