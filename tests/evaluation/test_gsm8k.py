"""GSM8K: the answer's sentence decides, numbers count by value, and the prompt holds the worked examples."""

import json
from fractions import Fraction

import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.evaluation.mathematics.gsm8k_prompt import WEI_2022
from mtp_jax.evaluation.mathematics.numbers import last_number, written
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.tasks.gsm8k import TASK, stated_answer, worked
from tests.evaluation.data import DATA, evaluate, needs_data, write_jsonl

FILE = DATA / "gsm8k" / "test.jsonl"
ROWS = [{"question": "Two and two?", "answer": "2+2=<<2+2=4>>4 in all.\n#### 4"},
        {"question": "A thousand times 1.45?", "answer": "It is $1,450.\n#### 1,450"}]


def request(data, **options):
    return Request(EvaluationConfig(task="gsm8k", data=str(data), completions="-"), {**TASK.options(()), **options})


@needs_data
def test_the_reference_solutions_score_all_and_wrong_ones_none(tmp_path):
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    said = {"right": [row["answer"] for row in rows],
            "told": [f"The answer is {row['answer'].rpartition('#### ')[2]}." for row in rows],
            "dollars": [f"5 of 7. So the answer is ${row['answer'].rpartition('#### ')[2]}.00.\n\nQ: 3?\nA: The answer "
                        "is 3." for row in rows],
            "empty": [""] * len(rows),
            "wrong": [f"The answer is {row['answer'].rpartition('#### ')[2]}1." for row in rows]}
    for name, passed in (("right", 1), ("told", 1), ("dollars", 1), ("empty", 0), ("wrong", 0)):
        completions = write_jsonl(tmp_path / f"{name}.jsonl", [
            {"task_id": f"gsm8k/{i}", "completion": text} for i, text in enumerate(said[name])])
        result = evaluate("gsm8k", data=FILE, completions=completions)
        assert len(result["samples"]) == 1319 and result["errors"] == []
        assert result["metrics"]["pass@1"] == result["metrics"]["lenient_pass@1"] == passed, name


@pytest.mark.parametrize("text, number", [
    ("18", 18), ("$1,450.00", 1450), ("20%", 20), ("-3", -3), ("so - 3", -3), ("21 - 15 = 6", 6), ("21-15", 15),
    ("3.50 dollars", Fraction(7, 2)), ("3/4", Fraction(3, 4)), ("1/0", None), ("", None), ("none", None), ("1,2", 2),
    (".5", Fraction(1, 2)), ("12,345,678 and that", 12345678), ("ends with 5.", 5), ("1,450 left", 1450), ("x2 = 9", 9),
    ("-$5", -5), ("9" * 5000, None), ("1,4500", 4500), ("2.50.", Fraction(5, 2))])
def test_the_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text, number", [
    ("5 + 4 = 9. The answer is 9.", 9), ("The answer is $8.50. That is it 7", Fraction(17, 2)), ("It is 9.", None),
    ("The answer is 4. No, the answer is 5.", 5), ("Steps 3\n#### 12", 12), ("The answer is 3 + 4 = 7 apples", 7),
    ("The answer is unknown.\n8", None), ("the final answer is 1,000", 1000), ("answer is 4", None),
    ("The answer is\n7", None)])
def test_the_stated_answer(text, number):
    assert stated_answer(text) == number


def test_strict_and_lenient_are_told_apart(tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", ROWS)
    said = write_jsonl(tmp_path / "c.jsonl", [{"task_id": "gsm8k/0", "completion": "That makes 4"},
                                              {"task_id": "gsm8k/1", "completion": "The answer is 1450. Not 7."}])
    result = evaluate("gsm8k", data=data, completions=said)
    assert [sample["passed"] for sample in result["samples"]] == [False, True]
    assert [sample["lenient"] for sample in result["samples"]] == [True, False]
    assert result["samples"][1]["answer"] == "1450" and result["samples"][0]["answer"] is None


def test_written_numbers():
    assert [written(one) for one in (None, Fraction(18), Fraction(5, 2), Fraction(1, 3))] == [None, "18", "2.5", "1/3"]


def test_the_prompt_has_eight_worked_examples_each_with_its_own_right_answer(tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", ROWS)
    prompt = TASK.problems(request(data))[0].prompt
    assert prompt.count("Q: ") == 9 and prompt.count("The answer is") == 8 and prompt.endswith("Q: Two and two?\nA:")
    assert [stated_answer(answer) for _, answer in WEI_2022] == [6, 5, 39, 8, 9, 29, 33, 8]
    own = TASK.problems(request(data, shots=2, shots_file=str(data)))[1].prompt
    assert own.startswith("Q: Two and two?\nA: 2+2=4 in all. The answer is 4.\n\nQ: A thousand")
    assert TASK.problems(request(data, shots=0))[0].prompt == "Q: Two and two?\nA:"
    assert worked(**ROWS[1])[1] == "It is $1,450. The answer is 1,450."


@pytest.mark.parametrize("rows, options, told", [
    (ROWS, dict(shots=9), "0..8"), (ROWS, dict(shots=-1), "0..8"), (ROWS, dict(shots_file="nowhere"), "does not exist"),
    ([{"problem": "?", "solution": "", "subject": ""}], {}, "data of math500"),
    ([{"question": "?", "answer": "4"}], {}, "line 1: answer does not end in")])
def test_wrong_settings_and_data(rows, options, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        TASK.problems(request(write_jsonl(tmp_path / "data.jsonl", rows), **options))
