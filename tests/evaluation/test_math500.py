"""MATH-500: boxes are found in the completion alone, and answers are equal in the usual ways of writing alone."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import EvaluationConfig
from mtp_jax.evaluation.mathematics.boxed import last_boxed
from mtp_jax.evaluation.mathematics.lenient import leniently_equal, value
from mtp_jax.evaluation.mathematics.normal import normal, strictly_equal
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.tasks.math500 import TASK
from tests.evaluation.data import DATA, evaluate, needs_data, write_jsonl

FILE = DATA / "math500" / "test.jsonl"
# As MATH's own comparison has it: degrees, units and the sign of a currency do not count.
SAME_IN_THE_DATA = [{"90", "90^\\circ"}, {"5", "x=5"}, {"120", "120^\\circ"}, {"36", "36^\\circ", "\\$36"},
                    {"\\frac{1}{4}", "\\frac14"}, {"30", "30^\\circ"}, {"10080", "10,\\!080"},
                    {"15", "15\\mbox{ cm}^2"}, {"2\\sqrt{5}", "2 \\sqrt{5}"}]


def problems():
    return [json.loads(line) for line in FILE.read_text().splitlines()]


@needs_data
def test_the_reference_solutions_score_500_of_500(tmp_path):
    rows = problems()
    completions = write_jsonl(tmp_path / "c.jsonl", [{"task_id": row["unique_id"], "completion": row["solution"]}
                                                     for row in rows])
    result = evaluate("math500", data=FILE, completions=completions)
    assert len(result["samples"]) == 500 and result["errors"] == []
    assert result["metrics"]["pass@1"] == result["metrics"]["lenient_pass@1"] == 1.0
    empty = write_jsonl(tmp_path / "e.jsonl", [{"task_id": row["unique_id"], "completion": ""} for row in rows])
    assert evaluate("math500", data=FILE, completions=empty)["metrics"]["lenient_pass@1"] == 0.0


@needs_data
def test_no_two_answers_of_the_data_are_taken_for_equal_but_those_that_are():
    answers = sorted({row["answer"] for row in problems()})
    forms, equal = {}, []
    for answer in answers:
        forms.setdefault(normal(answer), set()).add(answer)
    assert len(answers) > 300
    assert sorted(map(sorted, (same for same in forms.values() if len(same) > 1))) == sorted(map(
        sorted, SAME_IN_THE_DATA))
    values = [(answer, value(answer)) for answer in answers]
    by_value = {}
    for answer, number in values:
        if number is not None:
            by_value.setdefault(number, set()).add(normal(answer))
    equal = [same for same in by_value.values() if len(same) > 1]
    assert equal == []  # no two different answers have one value either


@needs_data
def test_a_changed_reference_answer_fails():
    for row in problems():
        answer = row["answer"]
        digit = next((i for i, letter in enumerate(answer) if letter.isdigit()), None)
        wrong = answer + "1"
        if digit is not None:
            wrong = f"{answer[:digit]}{(int(answer[digit]) + 1) % 10}{answer[digit + 1:]}"
        assert not strictly_equal(wrong, answer), (wrong, answer)
        assert not leniently_equal(wrong, answer), (wrong, answer)


@pytest.mark.parametrize("first, second", [
    ("\\dfrac12", "\\frac{1}{2}"), ("\\tfrac{1}{2}", "1/2"), ("0.5", "\\frac12"), (".5", "\\frac{1}{2}"),
    ("\\sqrt3", "\\sqrt{3}"), ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"), ("90^{\\circ}", "90"),
    ("50\\%", "50"), ("\\$5", "5"), ("x=5", "5"), ("5 \\text{ cm}", "5"), ("15\\mbox{ cm}^2", "15"),
    ("10{,}080", "10,080"),
    ("1,000,000", "1000000"), ("\\text{east}", "east"), ("4210_{5}", "4210_5"), ("x^{2}", "x^2"), ("\\frac 34", "3/4"),
    ("-\\frac{1}{3}", "-1/3"), ("3.0 ", "3.0"), ("{.5}", "{0.5}"), ("\\text{(C)}", "(C)"), ("5.", "5"),
    ("\\begin{pmatrix} -1 & 0 \\\\ 0 & -1 \\end{pmatrix}", "\\begin{pmatrix}-1&0\\\\0&-1\\end{pmatrix}")])
def test_the_same_answer_written_otherwise(first, second):
    assert strictly_equal(first, second) and strictly_equal(second, first)
    assert leniently_equal(first, second) and leniently_equal(second, first)


@pytest.mark.parametrize("first, second", [
    ("1", "2"), ("-1", "1"), ("\\frac{1}{2}", "\\frac{2}{1}"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"),
    ("(3,4]", "(3,4)"),
    ("1,2", "12"), ("(1,234)", "1234"), ("x=5", "y=6"), ("2x+3", "2x+30"), ("52_8", "52"), ("\\sqrt{13}", "\\sqrt{1}3"),
    ("3\\sqrt{13}", "3\\sqrt{12}"), ("\\text{east}", "\\text{west}"), ("", "0"), ("\\pi", "3.14"), ("-125", "- 12 5 5"),
    ("x^5 - x^4", "x^5 - x^3"), ("\\infty", "-\\infty"), ("1 2", "3"), ("p - q", "q - p"), ("1+2i", "1-2i"),
    ("2^{10}", "210"), ("1\\frac{4}{5}", "\\frac{4}{5}"), ("\\frac{3}{56}", "\\frac{35}{6}"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 12 \\end{pmatrix}")])
def test_another_answer(first, second):
    for a, b in ((first, second), (second, first)):
        assert not strictly_equal(a, b)
        assert not leniently_equal(a, b)


@pytest.mark.parametrize("first, second", [
    ("0.25", "\\frac{1}{4}"), ("1\\frac{4}{5}", "\\frac{9}{5}"), ("1.8", "1\\frac{4}{5}"),
    ("\\frac{2}{4}", "\\frac{1}{2}"),
    ("2\\cdot3", "6"), ("2^{10}", "1024"), ("\\sqrt{9}", "3"), ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
    ("(0.5, 2)", "(\\frac12,2)"), ("\\text{(C)}", "C"), ("East", "\\text{east}"), ("x \\in [-2,7]", "[-2,7]"),
    ("10.0", "10"), ("\\frac{270}7\\text{ degrees}", "38\\frac{4}{7}"), ("2\\pi", "\\pi\\cdot 2"),
    ("m = 4", "\\frac{8}{2}"),
    ("\\sqrt[3]{8}", "2")])
def test_equal_by_value_alone_is_lenient(first, second):
    assert leniently_equal(first, second) and leniently_equal(second, first)
    assert not strictly_equal(first, second)


@pytest.mark.parametrize("text, answer", [
    ("so $\\boxed{5}$.", "5"), ("\\boxed{1} and then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\fbox{7}", "7"),
    ("\\boxed 5$ is it", "5"), ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"), ("\\boxed{\\text{a {b} c}}", "\\text{a {b} c}"),
    ("\\boxed{1} but \\boxed{2", None), ("no box", None), ("\\boxed{}", None), ("\\boxedtext{5}", None),
    ("\\boxed", None),
    ("\\boxed{ 3 }", "3"), ("\\boxed{\\left\\{ x \\right\\}}", "\\left\\{ x \\right\\}")])
def test_the_last_box(text, answer):
    assert last_boxed(text) == answer


def test_a_box_in_the_prompt_is_none_of_the_completion(tmp_path):
    rows = [{"problem": "Is it \\boxed{4}?", "solution": "\\boxed{4}", "answer": "4", "unique_id": "a"},
            {"problem": "2 + 2?", "solution": "It is \\boxed{4}.", "answer": "4", "unique_id": "b"}]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    said = write_jsonl(tmp_path / "c.jsonl", [{"task_id": "a", "completion": "It is 4."}, {
        "task_id": "b", "completion": "\\boxed{4}\nProblem: the next\n\\boxed{5}"}])
    result = evaluate("math500", data=data, completions=said, set=(f"shots_file={data}", "shots=2"))
    assert [sample["passed"] for sample in result["samples"]] == [False, True]
    prompt = TASK.problems(request_of(data, shots=2, shots_file=str(data)))[0].prompt
    assert prompt.count("\\boxed{4}") == 4 and prompt.endswith("Problem:\nIs it \\boxed{4}?\n\nSolution:")


def request_of(data, **options):
    return Request(EvaluationConfig(task="math500", data=str(data), completions="-"),
                   {**TASK.options(()), **options})


@pytest.mark.parametrize("options, told", [
    (dict(shots=4), "shots=4 needs --set=shots_file"), (dict(shots=9, shots_file="DATA"), "has 1 examples"),
    (dict(shots=1, shots_file="nowhere.jsonl"), "does not exist")])
def test_wrong_settings(options, told, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", [{"problem": "?", "solution": "\\boxed{4}", "answer": "4"}])
    options = {name: str(data) if one == "DATA" else one for name, one in options.items()}
    with pytest.raises(ValueError, match=told):
        TASK.problems(request_of(data, **options))


@pytest.mark.parametrize("text", [
    "9^{9^{9^{9}}}", "(" * 5000 + "1" + ")" * 5000, "((0.1^{64})^{64})^{64}", "\\frac" * 60, "-" * 190 + "1", "1/0",
    "\\sqrt" * 40 + "{4}", "2^{-64}", "\\frac{1}{0}", "{" * 3000, "1" * 5000, "\\boxed{",
    "(((0.3^{64})^{64})^{64})^{64}"])
def test_answers_made_to_stall_the_reader_end_at_once(text):
    clock = time.process_time()
    leniently_equal(text, "7")
    assert time.process_time() - clock < 1


@given(st.text(alphabet="\\frac{}()[]1230.,^_-+/=$% sqrtpixtext", max_size=60))
def test_no_answer_is_an_error_and_each_equals_itself(text):
    assert strictly_equal(text, text) and leniently_equal(text, text)
    leniently_equal(text, "1")
    last_boxed("\\boxed{" + text)
