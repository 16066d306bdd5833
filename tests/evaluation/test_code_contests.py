"""APPS and CodeContests on examples made here in their published forms, for their own data are too large to keep."""

import json

import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.sandbox import run
from mtp_jax.evaluation.tasks import apps, code_contests
from mtp_jax.evaluation.tasks.programs import same_text, score_program
from tests.evaluation.data import evaluate, write_jsonl

TEXT = {"inputs": ["3\n1 2 3\n", ["2", "4 5"]], "outputs": ["6\n", ["9"]]}
CALLS = {"fn_name": "total", "inputs": [[[1, 2, 3]], [[4, 5]], [[]]], "outputs": [6, [9], 0]}
SUM = "n = int(input())\nprint(sum(map(int, input().split())))\n"
METHOD = "class Solution:\n    def total(self, numbers: List[int]) -> int:\n        return sum(numbers)\n"


@pytest.fixture
def folder(tmp_path):
    """APPS as published: a folder a problem, in a folder a split."""
    for name, level, tests, starter in (
        ("0000", "introductory", TEXT, ""), ("0001", "introductory", CALLS, METHOD[:20]),
        ("0002", "interview", TEXT, ""), ("0003", "introductory", None, "")):
        place = tmp_path / "APPS" / "test" / name
        place.mkdir(parents=True)
        (place / "question.txt").write_text(f"Add the numbers ({name}).")
        (place / "metadata.json").write_text(json.dumps({"difficulty": level, "url": "https://example.org"}))
        (place / "solutions.json").write_text(json.dumps([SUM]))
        if tests:
            (place / "input_output.json").write_text(json.dumps(tests))
        if starter:
            (place / "starter_code.py").write_text(starter)
    return tmp_path / "APPS"


def problems(task, data, *options):
    own = {"apps": apps, "code_contests": code_contests}[task].TASK
    return own.problems(Request(EvaluationConfig(task=task, data=str(data), completions="-"), own.options(options)))


def passed(result):
    return {sample["task_id"]: sample["passed"] for sample in result["samples"]}


def test_apps_as_a_folder(folder, tmp_path):
    said = write_jsonl(tmp_path / "said.jsonl", [
        {"task_id": "0000", "completion": SUM}, {"task_id": "0001", "completion": METHOD},
        {"task_id": "0003", "completion": SUM}])
    result = evaluate("apps", data=folder, completions=said)
    assert passed(result) == {"0000": True, "0001": True, "0003": False}
    assert result["samples"][0]["tests_passed"] == 2
    assert [error["task_id"] for error in result["errors"]] == ["0003"]
    assert "has no test" in result["errors"][0]["error"]
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [
        {"task_id": "0000", "completion": SUM.replace("sum", "max")}, {"task_id": "0003", "completion": ""},
        {"task_id": "0001", "completion": "def total(numbers):\n    return 6"}])
    result = evaluate("apps", data=folder, completions=wrong)
    assert not any(passed(result).values()) and result["samples"][0]["detail"] == "test 0"


def test_apps_as_jsonl(tmp_path):
    record = {"problem_id": 7, "question": "Add.", "solutions": json.dumps([SUM]), "input_output": json.dumps(CALLS),
              "difficulty": "competition", "url": "https://example.org", "starter_code": ""}
    data = write_jsonl(tmp_path / "test.jsonl", [record])
    said = write_jsonl(tmp_path / "said.jsonl", [{"task_id": "7", "completion": "def total(a):\n    return sum(a)"}])
    assert passed(evaluate("apps", data=data, completions=said, set=["level=all"])) == {"7": True}
    said = write_jsonl(tmp_path / "said.jsonl", [{"task_id": "7", "completion": ""}])
    assert passed(evaluate("apps", data=data, completions=said, set=["level=competition"])) == {"7": False}


def test_the_prompt_of_apps(folder):
    first, second, _ = problems("apps", folder)
    assert first.prompt == "\nQUESTION:\nAdd the numbers (0000).\nUse Standard Input format\nANSWER:\n"
    assert second.prompt == (f"\nQUESTION:\nAdd the numbers (0001).\n{METHOD[:20]}\nUse Call-Based format\nANSWER:\n")
    assert [problem.task_id for problem in problems("apps", folder, "level=interview")] == ["0002"]
    assert len(problems("apps", folder / "test", "level=all")) == 4


@pytest.mark.parametrize("tests, message", [
    ("", "has no test"), ("[", "no object of inputs"), ("[]", "no object of inputs"), ('{"inputs": []}', "no object"),
    ('{"inputs": [1], "outputs": []}', "of one length"), ('{"inputs": [], "outputs": []}', "has no test")])
def test_tests_of_apps_that_are_none(tests, message, tmp_path):
    data = write_jsonl(tmp_path / "test.jsonl", [{"problem_id": 1, "question": "q", "input_output": tests}])
    said = write_jsonl(tmp_path / "said.jsonl", [{"task_id": "1", "completion": SUM}])
    result = evaluate("apps", data=data, completions=said, set=["level=all"])
    assert message in result["errors"][0]["error"] and result["metrics"]["pass@1"] == 0


def test_apps_with_wrong_data(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder with a question.txt"):
        problems("apps", tmp_path / "empty")
    with pytest.raises(ValueError, match="no problem of level 'competition'"):
        problems("apps", folder, "level=competition")
    (folder / "test" / "0000" / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match="metadata.json is no object with a difficulty"):
        problems("apps", folder)


CONTEST = {"name": "1_A. Sum", "description": "Add.\n\nInput\n\nNumbers.\n",
           "public_tests": {"input": ["1\n5\n"], "output": ["5\n"]},
           "private_tests": {"input": ["3\n1 2 3\n"], "output": ["6\n"]},
           "generated_tests": {"input": ["2\n4 5\n", "1\n0\n"], "output": ["9\n", "0\n"]},
           "time_limit": {"seconds": 2, "nanos": 500000000}, "source": 2, "difficulty": 7,
           "solutions": {"language": [3], "solution": [SUM]}, "incorrect_solutions": {"language": [], "solution": []}}


def write(form, folder):
    """Writes two problems in one of the forms; returns the folder."""
    records = [CONTEST, CONTEST | {"name": "1_B. Broken", "private_tests": {"input": ["1"], "output": []}}]
    if form == "jsonl":
        write_jsonl(folder / "test-00000.jsonl", records)
    elif form == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), folder / "test-00000-of-00001.parquet")
    else:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "test.array_record"), "group_size:1")
        for record in records:
            writer.write(json.dumps(record).encode())
        writer.close()
    (folder / "README.md").write_text("test")
    return folder


@pytest.mark.parametrize("form", ["jsonl", "parquet", "array_record"])
def test_code_contests_in_every_form(form, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(form, folder)
    said = write_jsonl(tmp_path / "said.jsonl", [{"task_id": "1_A. Sum", "completion": SUM},
                                                 {"task_id": "1_A. Sum", "completion": "print(5)"},
                                                 {"task_id": "1_B. Broken", "completion": SUM}])
    result = evaluate("code_contests", data=folder, completions=said)
    assert [sample["passed"] for sample in result["samples"]] == [True, False, False]
    assert [sample.get("tests_passed") for sample in result["samples"]] == [4, 1, None]
    assert [error["task_id"] for error in result["errors"]] == ["1_B. Broken"]
    assert "private_tests is not" in result["errors"][0]["error"]


@pytest.mark.parametrize("options, start", [
    ((), "LANGUAGE IS python3\nCORRECT SOLUTION\nAdd."), (("condition=none", "language="), "Add."),
    (("condition=incorrect", "language=x"), "LANGUAGE IS x\nINCORRECT SOLUTION\nAdd.")])
def test_the_prompt_of_code_contests(options, start, tmp_path):
    data = write_jsonl(tmp_path / "test.jsonl", [CONTEST])
    problem = problems("code_contests", data, *options)[0]
    assert problem.prompt.startswith(start) and problem.prompt.endswith("Numbers.\n")
    assert problem.facts["seconds"] == 2.5 and "6" not in problem.prompt


def test_settings_and_data_of_code_contests(tmp_path):
    data = write_jsonl(tmp_path / "valid.jsonl", [CONTEST])
    assert len(problems("code_contests", data, "tests=hidden")[0].facts["cases"]) == 3
    assert len(problems("code_contests", tmp_path, "split=valid", "tests=public")[0].facts["cases"]) == 1
    with pytest.raises(ValueError, match="no file with 'test' in its name"):
        problems("code_contests", tmp_path)
    with pytest.raises(ValueError, match="condition"):
        problems("code_contests", data, "condition=right")
    with pytest.raises(ValueError, match="time_factor"):
        problems("code_contests", data, "time_factor=-1")
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="no Parquet file"):
        problems("code_contests", tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="lacks"):
        problems("code_contests", write_jsonl(tmp_path / "y.jsonl", [{"question": "q", "answer": "#### 1"}]))


@pytest.mark.parametrize("got, expected, same", [
    ("6\n", "6", True), (" 1  2\n\n3", "1 2 3", True), ("1 2", "12", False), ("", "", True), ("6", "", False),
    ("0.3333333", "0.33333334", True), ("0.34", "0.33", False), ("1000000.1", "1000000.2", True), ("7", "7.0", True),
    ("100000", "100001", False), ("nan", "nan", True), ("1e999", "1.0", False), ("1.0", "inf", False),
    ("Yes", "YES", False), ("a.b", "a,b", False), ("1 2 3 ", "1 2", False), ("1 2 ", "1 2", True)])
def test_what_is_the_same_output(got, expected, same):
    assert same_text(got, expected) is same
    assert same_text("Yes", "YES", fold=True)


def test_all_tests_together_are_bounded(monkeypatch):
    monkeypatch.setattr("mtp_jax.evaluation.tasks.programs.ALTOGETHER", 0.5)
    score = score_program("import time\ntime.sleep(0.4)\nprint(1)", [("", "1")] * 50, seconds=1.0)
    assert score["outcome"] == "timeout" and 1 <= score["tests_passed"] < 5


def test_the_expected_output_never_enters_the_sandbox(monkeypatch):
    sent, send = [], run.wire.send
    monkeypatch.setattr(run.wire, "send", lambda place, message: (sent.append(str(message)), send(place, message)))
    assert score_program("print(int(input()) + 4000)", [("321", "4321")], seconds=5.0)["passed"]
    assert sent and not any("4321" in message for message in sent)
