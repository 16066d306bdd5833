"""Summaries: what the package rouge-score gives, against the best of several references, with intervals."""

import json

import pytest

pytest.importorskip("rouge_score")

from rouge_score.rouge_scorer import RougeScorer  # noqa: E402

from mtp_jax.config import EvaluationConfig  # noqa: E402
from mtp_jax.evaluation.request import Request  # noqa: E402
from mtp_jax.evaluation.tasks.summaries import KINDS, PARTS, TASK, rouge  # noqa: E402
from tests.evaluation.data import DATA, evaluate, needs_data, write_jsonl  # noqa: E402

FILE = DATA / "scitldr" / "test.jsonl"
NAMES = [f"{kind}_{part}" for kind in KINDS for part in PARTS]


def request(data, **options):
    return Request(EvaluationConfig(task="summaries", data=str(data), completions="-"),
                   {**TASK.options(()), **options})


def test_by_hand():
    scores = rouge("the cat sat", ["the cat sat on the mat"])
    assert scores["rouge1_precision"] == 1 and scores["rouge1_recall"] == 0.5
    assert scores["rouge1_fmeasure"] == pytest.approx(2 / 3)
    assert scores["rouge2_recall"] == pytest.approx(2 / 5) and scores["rouge3_recall"] == pytest.approx(1 / 4)
    assert scores["rougeL_recall"] == 0.5 and set(scores) == set(NAMES)
    assert set(rouge("", ["the cat"]).values()) == {0.0}


def test_stems_and_sentences():
    assert rouge("cats", ["cat"])["rouge1_fmeasure"] == 1 and rouge("cats", ["cat"], stem=False)["rouge1_fmeasure"] == 0
    # Lsum is of whole texts by the line: two sentences that change places keep their score, L's falls.
    one, other = "the cat sat\na dog ran", "a dog ran\nthe cat sat"
    assert rouge(one, [other])["rougeLsum_fmeasure"] == 1 and rouge(one, [other])["rougeL_fmeasure"] == 0.5
    one, other = "The cat sat. A dog ran.", "A dog ran. The cat sat."
    assert rouge(one, [other])["rougeLsum_fmeasure"] == 0.5
    assert rouge(one, [other], sentences=True)["rougeLsum_fmeasure"] == 1


def test_of_several_references_all_measures_are_of_the_one_with_the_best_rouge_1():
    references = ["a b x y", "b a c", "q"]  # the first has the common pair of words, the second more common words
    best = rouge("a b c", references)
    assert best == rouge("a b c", references[1:2]) and best["rouge2_fmeasure"] == 0
    assert rouge("a b c", references[:1])["rouge2_fmeasure"] > 0
    assert rouge("a b c", references, how="first") == rouge("a b c", references[:1])
    mean = rouge("a b c", references, how="mean")
    assert mean["rouge1_recall"] == pytest.approx((2 / 4 + 1 + 0) / 3)


@needs_data
def test_scitldr_against_the_package(tmp_path):
    rows = [json.loads(line) for line in FILE.read_text().splitlines()][:40]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    for name, said in (("copied", [row["target"][-1] for row in rows]), ("first", [row["source"][0] for row in rows])):
        completions = write_jsonl(tmp_path / f"{name}.jsonl", [
            {"task_id": row["paper_id"], "completion": text} for row, text in zip(rows, said)])
        result = evaluate("summaries", data=data, completions=completions)
        assert set(NAMES) == set(result["metrics"]) == set(result["intervals"]) and result["errors"] == []
        if name == "copied":
            assert {result["metrics"][f"{kind}_fmeasure"] for kind in KINDS} == {1.0}
            continue
        wanted = []
        for row, text in zip(rows, said):
            scores = [scorer.score(reference.strip(), text.strip()) for reference in row["target"]]
            wanted.append(max(scores, key=lambda one: one["rouge1"].fmeasure)["rougeL"].fmeasure)
        assert result["metrics"]["rougeL_fmeasure"] == pytest.approx(sum(wanted) / len(wanted))
        low, high = result["intervals"]["rougeL_fmeasure"]
        assert 0.1 < low < result["metrics"]["rougeL_fmeasure"] < high < 0.5


def test_any_fields_and_texts_for_lists(tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", [{"dialogue": "A: hello", "summary": "They meet."},
                                                 {"dialogue": ["One.", "Two."], "summary": ["They count.", " "]}])
    first, second = TASK.problems(request(data, source="dialogue", target="summary", prefix="Read:\\n"))
    assert first.task_id == "summaries/0" and first.prompt == "Read:\nA: hello\nTL;DR:"
    assert second.prompt == "Read:\nOne. Two.\nTL;DR:" and second.facts["references"] == ["They count."]


@pytest.mark.parametrize("record, options, told", [
    ({"question": "?", "answer": "!"}, {}, "data of gsm8k"), ({"source": "a", "target": 3}, {}, "no list of texts"),
    ({"source": "a", "target": []}, {}, "target is empty"),
    ({"source": "a", "target": "b"}, {"references": "bset"}, "best")])
def test_wrong_data_and_settings(record, options, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        TASK.problems(request(write_jsonl(tmp_path / "data.jsonl", [record]), **options))
