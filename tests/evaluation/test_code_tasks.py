"""HumanEval and MBPP: their own solutions pass, nothing and wrong ones do not, prompts are as published."""

import gzip
import json

import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.evaluation import sandbox
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.tasks import humaneval, mbpp
from tests.evaluation.data import DATA, evaluate, needs_data, write_jsonl

HUMANEVAL, MBPP = DATA / "humaneval" / "HumanEval.jsonl.gz", DATA / "mbpp" / "mbpp.jsonl"
BOTH = {"humaneval": (HUMANEVAL, "canonical_solution", []), "mbpp": (MBPP, "code", ["split=all"])}
# With helpers of the prompt, with classes of the program, set up first, named as a builtin, with an import of the test.
PICKED = {"humaneval": {f"HumanEval/{n}" for n in (0, 10, 32, 33, 38, 50, 81, 162, 163)},
          "mbpp": {"2", "126", "367", "596", "601", "927"}}


def rows(path):
    opened = gzip.open(path, "rt") if path.name.endswith(".gz") else open(path, newline="\n")
    with opened as file:
        return [json.loads(line) for line in file]


def score(task, records, completions, folder, **flags):
    """Returns the result of completions of some records."""
    data, _, options = BOTH[task]
    if task == "mbpp":
        options = [*options, "shots=0"]
    data = write_jsonl(folder / "data.jsonl", records)
    said = write_jsonl(folder / "said.jsonl", [{"task_id": str(record["task_id"]), "completion": text}
                                               for record, text in zip(records, completions)])
    return evaluate(task, data=data, completions=said, set=options, **flags)


@needs_data
@pytest.mark.parametrize("task", BOTH)
def test_own_solutions_pass_and_empty_ones_do_not(task, tmp_path):
    data, field, _ = BOTH[task]
    records = [record for record in rows(data) if str(record["task_id"]) in PICKED[task]]
    result = score(task, records, [record[field] for record in records], tmp_path, timeout=20.0)
    assert len(result["samples"]) == len(PICKED[task]) and result["errors"] == []
    assert result["metrics"]["pass@1"] == 1, [one for one in result["samples"] if not one["passed"]]
    result = score(task, records[:3], [""] * 3, tmp_path)
    assert result["metrics"]["pass@1"] == 0 and result["errors"] == []
    assert result["settings"]["sandbox"] == sandbox.layer_here()


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("task", BOTH)
def test_all_own_solutions_pass_and_no_empty_one_does(task, tmp_path):
    data, field, _ = BOTH[task]
    records = rows(data)
    assert len(records) == {"humaneval": 164, "mbpp": 974}[task]
    result = score(task, records, [record[field] for record in records], tmp_path, timeout=30.0)
    assert [one["task_id"] for one in result["samples"] if not one["passed"]] == [] and result["errors"] == []
    assert len(result["samples"]) == len(records) and result["metrics"]["pass@1"] == 1
    result = score(task, records, [""] * len(records), tmp_path)
    assert result["metrics"]["pass@1"] == 0 and len(result["samples"]) == len(records)


HUMAN = {"task_id": "X/0", "prompt": "def twice(x):\n    \"\"\"Doubles.\"\"\"\n", "entry_point": "twice",
         "canonical_solution": "    return 2 * x\n", "test": "def check(candidate):\n    assert candidate(3) == 6\n"}
SHORT = {"task_id": 20, "text": "Write a function to double.", "code": "def twice(x):\r\n    return 2 * x",
         "test_list": ["assert twice(3) == 6"], "test_setup_code": "", "challenge_test_list": []}


@pytest.mark.parametrize("completion, passed, outcome", [
    ("    return 2 * x", True, "passed"), ("    return x", False, "failed"), ("    return (", False, "error"),
    ("    return 2 * x\n\nexit(0)", False, "error"), ("    while True:\n        pass", False, "timeout")])
def test_humaneval_scores(completion, passed, outcome, tmp_path):
    result = score("humaneval", [HUMAN], [completion], tmp_path, timeout=1.0)
    assert (result["samples"][0]["passed"], result["samples"][0]["outcome"]) == (passed, outcome)


def test_several_samples_of_a_problem(tmp_path):
    said = ["    return 2 * x", "    return x", "    return x + x", "    return 6"]
    result = score("humaneval", [HUMAN] * 1, said[:1], tmp_path)
    assert list(result["metrics"]) == ["pass@1"]
    data = write_jsonl(tmp_path / "d.jsonl", [HUMAN])
    path = write_jsonl(tmp_path / "s.jsonl", [{"task_id": "X/0", "completion": text} for text in said])
    metrics = evaluate("humaneval", data=data, completions=path, k=["1", "2"])["metrics"]
    assert metrics["pass@1"] == 0.75 and metrics["pass@2"] == 1.0


@pytest.mark.parametrize("completion, outcome", [
    (SHORT["code"], "passed"), ("def twice(x):\n    return x", "failed"), ("def other(x):\n    return 2 * x", "error")])
def test_mbpp_scores(completion, outcome, tmp_path):
    assert score("mbpp", [SHORT], [completion], tmp_path)["samples"][0]["outcome"] == outcome


def test_a_bad_problem_is_listed_and_ends_nothing(tmp_path):
    records = [SHORT, SHORT | {"task_id": 21, "test_list": ["assert twice("]}, SHORT | {"task_id": 22}]
    result = score("mbpp", records, [SHORT["code"]] * 3, tmp_path)
    assert [sample["passed"] for sample in result["samples"]] == [True, False, True]
    assert [error["task_id"] for error in result["errors"]] == ["21"] and "no Python" in result["errors"][0]["error"]


def request(task, data, *options):
    own = {"humaneval": humaneval, "mbpp": mbpp}[task].TASK
    return own.problems(Request(EvaluationConfig(task=task, data=str(data), completions="-"), own.options(options)))


def test_the_prompt_of_mbpp(tmp_path):
    records = [SHORT | {"task_id": n, "text": f"Task {n}. "} for n in (2, 3, 4, 10, 11, 510, 511)]
    data = write_jsonl(tmp_path / "mbpp.jsonl", records)
    problems = request("mbpp", data)
    assert [problem.task_id for problem in problems] == ["11", "510"]
    asked = ("You are an expert Python programmer, and here is your task: Task {}. Your code should pass these tests:"
             "\n\nassert twice(3) == 6\n[BEGIN]\n")
    shown = "".join(f"{asked.format(n)}def twice(x):\n    return 2 * x\n[DONE]\n\n" for n in (2, 3, 4))
    assert problems[0].prompt == shown + asked.format(11)
    assert request("mbpp", data, "shots=0", "split=validation")[0].prompt == asked.format(511)
    assert len(request("mbpp", data, "split=all")) == 7


def test_the_names_that_a_test_needs():
    code = "import sys\nimport re\nclass A: pass\ndef f(x): return g(x)\ndef g(x): return sys"
    assert mbpp.names_and_imports(code, "assert f(A(1)) == sys.maxsize") == (["A", "f"], "import sys")
    assert mbpp.names_and_imports("def sum(a): pass", "assert sum(1) == len([])") == (["sum"], "")


@pytest.mark.parametrize("task, record, message", [
    ("humaneval", SHORT, "looks like the data of mbpp"), ("mbpp", HUMAN, "looks like the data of humaneval"),
    ("humaneval", HUMAN | {"test": 3}, "test is 3, which is no text"),
    ("mbpp", SHORT | {"test_list": []}, "no list of assertions"), ("mbpp", SHORT | {"task_id": "x"}, "no whole number"),
    ("mbpp", SHORT, "lacks task 2, which the prompt shows")])
def test_data_of_another_kind(task, record, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        request(task, write_jsonl(tmp_path / "data.jsonl", [record]))


@pytest.mark.parametrize("option, message", [("split=tset", "Did you mean"), ("shots=4", "0 to 3")])
def test_settings_of_mbpp(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        request("mbpp", write_jsonl(tmp_path / "data.jsonl", [SHORT]), option)


def test_without_a_sandbox_nothing_is_generated(monkeypatch, tmp_path):
    def none():
        raise ValueError("none can be built")

    monkeypatch.setattr(sandbox, "layer_here", none)
    for task, record in (("humaneval", HUMAN), ("mbpp", SHORT)):
        with pytest.raises(ValueError, match="none can be built"):
            request(task, write_jsonl(tmp_path / "data.jsonl", [record]))
