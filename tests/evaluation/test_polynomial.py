"""The task of polynomial arithmetic: its prompts, what counts as right, and the accuracies by operations."""

import json

import numpy as np
import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.config.sections import ModelConfig
from mtp_jax.data.tasks import polynomial
from mtp_jax.data.tasks.polynomial import PolynomialOptions
from mtp_jax.evaluation.command import evaluate
from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.tasks.polynomial import TASK
from tests.data.tasks.test_polynomial_ring import evaluate as value_of
from tests.decoding.workdirs import write_workdir

OPTIONS = PolynomialOptions(prime=5, degree=3, max_operations=2, pause=2)
TEXT = "prime=5,degree=3,max_operations=2,pause=2"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("polynomial"), source="polynomial", options=TEXT)


def write_run(folder, **data):
    """Writes a run, its settings and no model: given completions need none."""
    return write_workdir(folder, ModelConfig(), {3: {"none": np.zeros(2, np.float32)}}, seq_len=64, **data)


def request_of(workdir, **fields):
    config = EvaluationConfig(workdir=str(workdir), task="polynomial", **fields)
    return Request(config, TASK.options(config.set))


def scored(workdir, folder, answer, **fields):
    """Returns the result of completions: what `answer` makes of each problem."""
    config = EvaluationConfig(workdir=str(workdir), task="polynomial", completions=str(folder / "completions.jsonl"),
                              output=str(folder / "result.json"), set=("questions=20",), **fields)
    problems = TASK.problems(Request(config, TASK.options(config.set)))
    lines = [json.dumps({"task_id": problem.task_id, "completion": answer(problem)}) for problem in problems]
    (folder / "completions.jsonl").write_text("\n".join(lines))
    evaluate(config)
    return json.loads((folder / "result.json").read_text())


def test_prompts_are_test_questions_with_the_pauses_of_the_run(workdir):
    problems = TASK.problems(request_of(workdir, set=("questions=50",)))
    assert [problem.task_id for problem in problems[:6]] == ["m=1/0", "m=2/0", "m=3/0", "m=4/0", "m=1/1", "m=2/1"]
    assert len(problems) == 200
    for problem in problems:
        assert problem.prompt.endswith("..=") and problem.prompt.count(".") == 2
        value, operations = value_of(problem.prompt.removesuffix("..="), OPTIONS.ring)
        assert problem.facts["answer"] == "".join(map(str, value))
        assert problem.task_id.startswith(f"m={operations}/")
    trained = {text.split(b"..")[0].decode() for piece in range(3) for text in
               polynomial.texts(polynomial.training_expressions(OPTIONS, piece), OPTIONS)}
    assert trained.isdisjoint(problem.prompt.removesuffix("..=") for problem in problems)


def test_right_and_wrong_answers(workdir, tmp_path):
    def answer(problem):
        right, (operations, number) = problem.facts["answer"], problem.task_id.removeprefix("m=").split("/")
        if operations == "1":
            return right
        if operations == "2" and int(number) % 2:  # wrong in the last coefficient
            return right[:-1] + str((int(right[-1]) + 1) % 5)
        return right + "0" if operations == "3" else right if operations == "2" else ""

    result = scored(workdir, tmp_path, answer)
    assert result["metrics"] == {"accuracy@m=1": 1.0, "accuracy@m=2": 0.5, "accuracy@m=3": 0.0, "accuracy@m=4": 0.0,
                                 "accuracy_in_domain": 0.75, "accuracy_out_of_domain": 0.0}
    assert result["questions"] == {"1": 20, "2": 20, "3": 20, "4": 20} and not result["errors"]
    low, high = result["intervals"]["accuracy@m=2"]
    assert low < 0.5 < high
    assert result["options"]["pause"] == 2 and result["settings"]["questions"] == 20


def test_a_limit_takes_as_many_of_each_size(workdir, tmp_path):
    result = scored(workdir, tmp_path, lambda problem: problem.facts["answer"], limit=10)
    assert result["questions"] == {"1": 3, "2": 3, "3": 2, "4": 2}


def test_an_answer_gets_one_token_more_than_it_has(workdir):
    assert TASK.drawing(request_of(workdir)).max_new_tokens == 4
    assert TASK.drawing(request_of(workdir, max_new_tokens=9)).max_new_tokens == 9
    assert isinstance(TASK, GenerationTask)


def test_a_small_space_gives_fewer_questions(tmp_path):
    run = write_run(tmp_path, source="polynomial", options="prime=2,degree=2,max_operations=1")
    problems = TASK.problems(request_of(run))
    ones = [problem for problem in problems if problem.task_id.startswith("m=1/")]
    assert 0 < len(ones) < 20


def test_runs_and_settings_that_do_not_fit(workdir, tmp_path):
    other = write_run(tmp_path, source="stdlib")
    with pytest.raises(ValueError, match="needs a run with data.source=polynomial.*has data.source=stdlib"):
        TASK.problems(request_of(other))
    told = TASK.problems(request_of(other, set=("options=" + TEXT, "questions=3")))
    assert told == TASK.problems(request_of(workdir, set=("questions=3",)))
    with pytest.raises(ValueError, match="--set=questions=0 must be at least 1"):
        TASK.problems(request_of(workdir, set=("questions=0",)))
    with pytest.raises(ValueError, match="has no setting 'question'.*questions"):
        TASK.options(("question=3",))
