"""Evaluations by text: what is drawn, scored and counted, going on after a stop, and what is told of wrong input."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from mtp_jax.checkpoints import CheckpointError
from mtp_jax.decoding import generate
from mtp_jax.decoding.load import load_model
from mtp_jax.evaluation import after_training, generating
from mtp_jax.evaluation.command import evaluate
from mtp_jax.evaluation.generating import Drawing, check_stop, cut
from mtp_jax.evaluation.generation_task import pass_metrics
from mtp_jax.evaluation.problems import read_jsonl
from mtp_jax.evaluation.progress_file import ProgressFile
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Sample
from tests.evaluation import toy

QUESTIONS = {"a": "one", "b": "three and more", "c": "five", "d": "six, seven"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return toy.write_model(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def model(workdir):
    return load_model(workdir)


@pytest.fixture
def made(workdir, tmp_path, monkeypatch):
    """Returns a function that evaluates the toy and returns its result; fields are flags."""
    toy.register(monkeypatch)
    data = toy.write_data(tmp_path, QUESTIONS)

    def run(model=None, questions=None, **fields):
        if questions is not None:
            toy.write_data(tmp_path, questions)
        output = tmp_path / "result.json"
        config = toy.config_of(**{"workdir": workdir, "data": data, "output": output, "batch_size": 2, **fields})
        lines = evaluate(config, model=model)
        assert str(output) in lines
        return json.loads(output.read_text())

    return run

STOPPED = """
import sys
from mtp_jax import evaluate
from mtp_jax.evaluation import command
def run(config):
    raise KeyboardInterrupt
command.run, sys.argv = run, ["evaluate"]
evaluate.main()
"""


def test_what_an_evaluation_leaves(made, model):
    result = made(model)
    assert set(result) == {"task", "metrics", "intervals", "settings", "errors", "samples"}
    assert [sample["task_id"] for sample in result["samples"]] == list(QUESTIONS)
    wanted = generate(model, list(QUESTIONS.values()), max_new_tokens=6, heads=1).text
    assert [sample["completion"] for sample in result["samples"]] == wanted
    passed = [len(text) % 2 == 0 for text in wanted]
    assert [sample["passed"] for sample in result["samples"]] == passed
    assert result["metrics"] == {"pass@1": pytest.approx(np.mean(passed))}
    low, high = result["intervals"]["pass@1"]
    assert 0 <= low <= np.mean(passed) <= high <= 1
    assert result["settings"]["step"] == 3 and result["settings"]["tokens_per_forward"] >= 1
    assert len(result["settings"]["data_sha256"]) == 64


def test_drafts_and_batches_change_nothing(made, model, workdir):
    texts = [[sample["completion"] for sample in made(loaded, batch_size=size)["samples"]]
             for loaded, size in ((model, 2), (model, 3), (load_model(workdir, heads=1), 4))]
    assert texts[0] == texts[1] == texts[2]


def test_samples_differ_and_a_seed_repeats_them(made, model):
    first, again, other = (made(model, samples=4, temperature=("1.0",), k=("1", "4"), seed=seed) for seed in (5, 5, 6))
    texts = [[sample["completion"] for sample in result["samples"]] for result in (first, again, other)]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) > 4
    assert first["metrics"]["pass@1"] <= first["metrics"]["pass@4"]


def test_a_completion_ends_before_a_stop_sequence_and_the_row_is_not_gone_on_with(made, model, monkeypatch):
    greedy = generate(model, [QUESTIONS["b"]], max_new_tokens=30).text[0]
    stop = greedy[4:6]
    calls = []
    monkeypatch.setattr(generating, "generate", lambda *a, **k: calls.append(generate(*a, **k)) or calls[-1])
    monkeypatch.setattr(generating, "STRETCH", 1)
    result = made(model, stop=(stop,), max_new_tokens=30, questions={"b": QUESTIONS["b"]})
    assert result["samples"][0]["completion"] == greedy[:greedy.index(stop)]
    assert calls[0].finished == ["enough"] and calls[0].lengths[0] < 30


def test_cut_takes_the_first_of_several():
    assert cut("def f():\n  x\nclass A", ["class", "\n  "]) == "def f():" and cut("abc", []) == "abc"


def test_an_evaluation_that_was_stopped_goes_on(made, model, tmp_path, monkeypatch):
    whole = made(model, samples=2, temperature=("0.7",), k=("1", "2"))
    run, calls = generating.run_batch, []

    def stopping(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return run(*args, **kwargs)

    monkeypatch.setattr(generating, "run_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        made(model, samples=2, temperature=("0.7",))
    progress = tmp_path / "result.json.progress"
    assert len(progress.read_text().splitlines()) == 3
    with progress.open("a") as file:
        file.write('["batch 2", [["cut sh')  # as a kill leaves it
    monkeypatch.setattr(generating, "run_batch", lambda *args, **kwargs: calls.append(args) or run(*args, **kwargs))
    assert without_times(made(model, samples=2, temperature=("0.7",), k=("1", "2"))) == without_times(whole)
    assert len(calls) == 4 and not progress.exists()


def without_times(result):
    del result["settings"]["seconds_generating"]
    return result


def test_progress_of_other_settings_is_not_taken(tmp_path):
    file = ProgressFile(tmp_path / "r.json", {"seed": 1})
    file.add("batch 0", ["text"])
    assert ProgressFile(tmp_path / "r.json", {"seed": 1})["batch 0"] == ["text"]
    assert "batch 0" not in ProgressFile(tmp_path / "r.json", {"seed": 1}, restart=True)
    file = ProgressFile(tmp_path / "r.json", {"seed": 1})
    file.add("batch 0", ["text"])
    assert "batch 0" not in ProgressFile(tmp_path / "r.json", {"seed": 2})


def test_one_bad_problem_is_counted_and_listed(made, model):
    result = made(model, questions={**QUESTIONS, "long": "x" * toy.WINDOW})
    assert [error["task_id"] for error in result["errors"]] == ["long"]
    assert "does not fit the window of 48" in result["errors"][0]["error"]
    lost = next(sample for sample in result["samples"] if sample["task_id"] == "long")
    assert lost["passed"] is False
    assert result["metrics"]["pass@1"] == sum(sample["passed"] for sample in result["samples"]) / 5


def test_one_record_that_is_no_problem_is_counted_and_listed(made, model, tmp_path):
    data = toy.write_data(tmp_path, QUESTIONS)
    with data.open("a") as file:
        file.write('{"id": "bad", "question": 7}\n')
    result = made(model, samples=2, temperature=("0.5", "1.0"))
    assert [error["task_id"] for error in result["errors"]] == ["bad"] * 4
    assert "toy.jsonl, line 5: question is 7" in result["errors"][0]["error"]
    passed = [sample["passed"] for sample in result["samples"] if sample["temperature"] == 0.5]
    assert len(passed) == 10 and result["metrics"]["pass@1"] == sum(passed) / 10
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps({"task_id": name, "completion": "even"}) + "\n" for name in "abcd"))
    assert made(workdir="", completions=path)["metrics"] == {"pass@1": 4 / 5}
    with path.open("a") as file:
        file.write('{"task_id": "bad", "completion": "even"}\n')
    result = made(workdir="", completions=path)
    assert result["metrics"] == {"pass@1": 4 / 5} and len(result["errors"]) == 1


def test_seeds_that_follow_one_another_share_no_draws():
    assert len({generating.batch_seed(seed, number) for seed in range(8) for number in range(64)}) == 8 * 64


def test_completions_of_a_file_and_a_scorer_that_falls_over(made, tmp_path, capsys):
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps({"task_id": name, "completion": text}) + "\n" for name, text in (
        ("a", "even"), ("a", "odd"), ("b", "crash"), ("b", "even"), ("c", "odd"), ("c", "odd"), ("d", ""), ("d", "x"))))
    result = made(workdir="", completions=path, k=("1", "2"))
    assert [sample["passed"] for sample in result["samples"]] == [True, False, False, True, False, False, True, False]
    assert result["errors"] == [{"task_id": "b", "error": "RuntimeError: the scorer fell over"}]
    assert result["metrics"] == {"pass@1": pytest.approx(3 / 8), "pass@2": pytest.approx(3 / 4)}
    assert "the scorer fell over" in capsys.readouterr().err
    assert made(workdir="", completions=path, limit=2, k=("2",))["metrics"] == {"pass@2": 1.0}


def test_the_best_temperature_for_each_k_stands_beside_the_fixed_one():
    drawing = Drawing((0.2, 0.8), 2, 1.0, 5, ())
    verdicts = {0.2: {"a": (1, 1), "b": (0, 0)}, 0.8: {"a": (1, 0), "b": (0, 1)}}
    samples = [Sample(name, "", temperature, {"passed": bool(passed)}) for temperature, of in verdicts.items()
               for name, pair in of.items() for passed in pair]
    found = pass_metrics(samples, drawing, (1, 2), seed=0)
    assert found.values == {"pass@1": 0.5, "pass@1_best": 0.5, "pass@1_best_temperature": 0.8, "pass@2": 0.5,
                            "pass@2_best": 1.0, "pass@2_best_temperature": 0.8}
    assert found.tables["by_temperature"] == {"0.2": {"pass@1": 0.5, "pass@2": 0.5},
                                              "0.8": {"pass@1": 0.5, "pass@2": 1.0}}
    assert found.intervals["pass@2_best"] == (1.0, 1.0)


@pytest.mark.parametrize("fields, message", [
    (dict(k=("3",), samples=2, temperature=("1",)), "--k=3 needs at least 3 samples.*--samples=2 draws fewer"),
    (dict(samples=2), "--samples=2 at temperature 0 are 2 times the same text"),
    (dict(task="tou"), "--task='tou' is not one of.*Did you mean \"toy\""),
    (dict(data="/nowhere.jsonl"), "--data=/nowhere.jsonl does not exist"),
    (dict(set=("time=2",)), "has no setting 'time'.*Did you mean \"times\""),
    (dict(set=("times=two",)), "--set=times=two must be of type int"),
    (dict(set=("times=20",)), "None of the 4 prompts can be used.*--window"),
    (dict(temperature=("warm",)), "--temperature=warm must be a number"),
    (dict(k=("0",)), "--k=0 must be a whole number, 1 or above"),
    (dict(data=""), "--data is missing: --task=toy reads JSONL of question and id"),
    (dict(workdir=""), "--workdir is missing"),
    (dict(timeout=math.nan), "--timeout=nan must be above 0")])
def test_what_does_not_fit_is_told(made, fields, message):
    with pytest.raises(ValueError, match=message):
        made(**fields)


def test_data_of_another_task(made, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1+1", "solution": "2", "subject": "sums"}\n')
    with pytest.raises(ValueError, match=r"other.jsonl, line 1 has the fields .* lacks \['id', 'question'\].*math500"):
        made(data=other)


@pytest.mark.parametrize("content, message", [
    ('{"a": 1}\n{"a": \n', r"x.jsonl, line 2 is not JSON"), ("[1]\n", "line 1 holds list where an object belongs"),
    ("\n\n", "holds no line"), (b"\xff\xfe", "is no UTF-8 at byte 0")])
def test_lines_that_are_no_objects(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    from etils import epath

    with pytest.raises(ValueError, match=message):
        list(read_jsonl(epath.Path(path)))


@pytest.mark.parametrize("lines, message", [
    ('{"task_id": "a"}', r"line 1 .* lacks \['completion'\]"),
    ('{"task_id": "aa", "completion": ""}', "line 1: the task has no problem 'aa'.*Did you mean \"a\""),
    ('{"task_id": "a", "completion": "x"}', "no completion for 3 of 4 problems, such as 'b'"),
    ("\n".join(json.dumps({"task_id": name, "completion": "x"}) for name in "abcd"), "--k=2 needs at least 2")])
def test_completions_that_do_not_fit(made, tmp_path, lines, message):
    path = tmp_path / "completions.jsonl"
    path.write_text(lines + "\n")
    with pytest.raises(ValueError, match=message):
        made(workdir="", completions=path, k=("2",) if "needs" in message else ())


class NoNewlines:
    """A tokenizer that can write letters only."""

    def encode(self, text):
        return np.array([ord(letter) for letter in text if letter.isalpha()])

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.mark.parametrize("stop", ["\n", "a\n\nb", "\nclass"])
def test_a_tokenizer_without_the_stop_sequence(stop):
    check_stop(NoNewlines(), ["class"])
    with pytest.raises(ValueError, match="stop sequence .* never found"):
        check_stop(NoNewlines(), ["class", stop])


@pytest.mark.parametrize("task, fields, flag", [
    ("perplexity", dict(samples=2), "samples"), ("piqa", dict(temperature=("0.5",)), "temperature"),
    ("choice_points", dict(k=("1",)), "k"), ("drafting", dict(top_p=0.5), "top_p"),
    ("information", dict(stop=("x",)), "stop"), ("induction", dict(max_new_tokens=5), "max_new_tokens")])
def test_flags_that_a_task_does_not_read_are_refused(made, task, fields, flag):
    with pytest.raises(ValueError, match=f"^--{flag} is not read by --task={task}"):
        made(task=task, **fields)


def test_a_missing_checkpoint(made, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        made(workdir=tmp_path / "empty")


def test_after_a_training_what_failed_is_told(tmp_path, monkeypatch):
    toy.register(monkeypatch)
    (tmp_path / "run").mkdir()
    told = after_training("toy", data=str(toy.write_data(tmp_path, QUESTIONS)))(tmp_path / "run")
    assert told.startswith("Not evaluated: The workdir") and "--task=toy" in told


def test_the_command(workdir, tmp_path):
    def run(*flags):
        return subprocess.run([sys.executable, "-m", "mtp_jax.evaluate", *flags], capture_output=True, text=True,
                              timeout=120)

    done = run("--task=gsm8k", f"--workdir={tmp_path}", f"--data={tmp_path}/none")
    assert done.returncode == 1 and done.stderr.startswith("error: --data=") and "Traceback" not in done.stderr
    interrupted = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=120)
    assert interrupted.returncode == 130 and "the same command goes on" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    listed = run("--list")
    assert listed.returncode == 0 and "gsm8k" in listed.stdout, listed.stderr


def test_what_an_option_names_decides_as_the_data_do(tmp_path):
    path = tmp_path / "shots.jsonl"
    found = []
    for text in ("one", "two"):
        path.write_text(text)
        found.append(Request(toy.config_of(), {"shots_file": str(path)}).settings())
    assert found[0] != found[1] and found[0]["shots_file"] == found[1]["shots_file"]
