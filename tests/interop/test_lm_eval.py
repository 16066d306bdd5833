"""lm_eval on our workdirs: tasks of a local folder give the numbers of our own tasks and of plain decoding."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import generate
from mtp_jax.decoding.load import load_model
from mtp_jax.evaluation import command
from mtp_jax.evaluation.loglikelihood import encode_pair, windows
from tests.decoding.models import text, trained_model
from tests.decoding.workdirs import write_workdir
from tests.training.small_runs import ROOT, environment

pytestmark = pytest.mark.interop
pytest.importorskip("lm_eval")

WINDOW = 64
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
UNTIL = """
task: local_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [" return", ";"], max_gen_toks: 20}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a workdir, of data and of task definitions; lm_eval keeps what it makes of data in it too."""
    folder = tmp_path_factory.mktemp("lm_eval")
    spec, params, _ = trained_model(dtype="float32")
    write_workdir(folder / "run", spec.config, {1: params}, seq_len=WINDOW)
    questions = [{"question": text(i, 20)[:4 + 9 * i], "choices": {"text": [text(20 + 4 * i + j, 1 + j % 2)
                                                                        for j in range(3 + i % 2)],
                                                                  "label": list("1234")[:3 + i % 2]},
                  "answerKey": "12"[i % 2]} for i in range(7)]
    questions[3]["choices"]["text"][1] = "né é"
    (folder / "choice.jsonl").write_text("\n".join(map(json.dumps, questions)))
    texts = [{"text": text(i, 8 * i + 1), "prompt": text(40 + i, 2 * i + 1), "answer": "x"} for i in range(6)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    for name, task in (("choice", CHOICE), ("rolling", ROLLING), ("until", UNTIL)):
        (folder / f"{name}.yaml").write_text(task.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def lm_eval(folder):
    """lm_eval, kept off the net."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in offline(folder).items():
            patch.setenv(name, value)
        import datasets
        import lm_eval

        import mtp_jax.evaluation.lm_eval_adapter  # noqa: F401  makes the model known

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield lm_eval


def offline(folder):
    return {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
            "HF_DATASETS_CACHE": str(folder / "cache")}


@pytest.fixture(scope="module")
def results(folder, lm_eval):
    """What lm_eval finds on the three tasks."""
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model="mtp_jax", model_args=f"workdir={folder}/run,batch_size=4", task_manager=tasks,
                                   tasks=["local_choice", "local_rolling", "local_until"], bootstrap_iters=0)


def own(folder, task, data, **settings):
    """Returns the JSON of our own task."""
    config = EvaluationConfig(workdir=str(folder / "run"), task=task, data=str(folder / data), batch_size=4, **settings)
    command.evaluate(config)
    return json.loads((folder / "run" / "eval" / f"{task}.json").read_text())


def test_choices_are_scored_as_by_our_own_task(folder, results):
    mine, theirs = own(folder, "arc_easy", "choice.jsonl"), results["results"]["local_choice"]
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert theirs[f"{name},none"] == pytest.approx(mine["metrics"][name])
    assert 0 < sum(mine["metrics"][name] for name in ("acc", "acc_norm", "acc_bytes")) < 3
    samples = sorted(results["samples"]["local_choice"], key=lambda sample: sample["doc_id"])
    for sample, found in zip(samples, mine["samples"], strict=True):
        assert [score for (score, _), in sample["resps"]] == pytest.approx(found["scores"], abs=1e-4)
    assert mine["metrics"]["cut_problems"] > 0, "some are longer than the window, and both cut them alike"


def test_texts_are_scored_as_by_our_own_task(folder, results):
    mine = own(folder, "perplexity", "texts.jsonl", set=(f"stride={WINDOW}",), heads=1)
    theirs = results["results"]["local_rolling"]
    assert theirs["bits_per_byte,none"] == pytest.approx(mine["metrics"]["head_1_bits_per_byte"], rel=1e-6)
    samples = sorted(results["samples"]["local_rolling"], key=lambda sample: sample["doc_id"])
    for sample, found in zip(samples, mine["samples"], strict=True):
        assert sample["resps"][0][0] == pytest.approx(-found["head_nats"][0], rel=1e-6)
    assert max(found["tokens"] for found in mine["samples"]) > 2 * WINDOW


def test_text_is_what_decoding_writes(folder, results):
    model = load_model(folder / "run")
    samples = sorted(results["samples"]["local_until"], key=lambda sample: sample["doc_id"])
    stopped = 0
    for sample in samples:
        ids = [256, *sample["doc"]["prompt"].encode()][-(WINDOW - 20):]
        said = generate(model, [ids], max_new_tokens=20, heads=1).text[0]
        ends = [said.find(stop) for stop in (" return", ";") if stop in said]
        stopped += bool(ends)
        assert sample["resps"][0][0] == (said[:min(ends)] if ends else said)
    assert 0 < stopped, "no text ended at a stop sequence"


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def adapter(folder, lm_eval):
    from mtp_jax.evaluation.lm_eval_adapter import WorkdirLM

    return WorkdirLM(f"{folder}/run", batch_size="auto")


def test_greedy_is_told(adapter):
    said = adapter.generate_until(requests("generate_until", ("def main", {"until": [], "max_gen_toks": 9})))[0]
    scores = adapter.loglikelihood(requests("loglikelihood", ("def main", said), ("def main", " x"), ("", "def")))
    assert len(said) == 9
    assert [greedy for _, greedy in scores][:2] == [True, False]
    assert scores[2][0] == pytest.approx(adapter.loglikelihood_rolling(requests("loglikelihood_rolling", ("def",)))[0])


@pytest.mark.parametrize("context, continuation", [("a b", " c"), ("a ", "c"), ("", "c d"), (" \n", "c"), ("é", "né")])
def test_pairs_are_cut_as_lm_eval_cuts_them(context, continuation, lm_eval):
    from lm_eval.api.model import TemplateLM

    class Plain(TemplateLM):
        eot_token_id, prefix_token_id = 257, 256
        loglikelihood_rolling = generate_until = _loglikelihood_tokens = None

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return [256] * (add_special_tokens is not False) + ByteTokenizer().encode(string).tolist()

    Plain.__abstractmethods__ = frozenset()
    seen = []
    plain = Plain()
    plain._loglikelihood_tokens = lambda pairs, **kwargs: seen.extend(pairs)
    plain.loglikelihood(requests("loglikelihood", (context, continuation)), disable_tqdm=True)
    first, rest = encode_pair(ByteTokenizer(), context, continuation)
    assert seen[0][1:] == (first.tolist(), rest.tolist())


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 16, 17, 30])
def test_windows_are_those_of_lm_eval(tokens, lm_eval):
    from lm_eval.utils import get_rolling_token_windows

    ids = np.arange(tokens)
    for stride in (1, 3, 8):
        theirs = list(get_rolling_token_windows(ids[1:].tolist(), prefix_token=0, max_seq_len=8,
                                                context_len=9 - stride))
        mine = [(ids[begin:end - 1].tolist(), ids[first:end].tolist()) for begin, end, first in
                windows(tokens, 8, stride)]
        assert mine == [(list(read), list(said)) for read, said in theirs]


@pytest.mark.parametrize("settings, message", [
    ({"num_beams": 4}, "with num_beams, which mtp_jax does not draw by"),
    ({"do_sample": True, "temperature": 0.5, "top_k": 4}, "with top_k"),
    ({"max_gen_toks": WINDOW}, "max_gen_toks=64 must be at least 1 and below the window of 64"),
])
def test_a_setting_that_does_nothing_is_refused(settings, message, adapter):
    with pytest.raises(ValueError, match=message):
        adapter.generate_until(requests("generate_until", ("def", settings)))


def test_draws_differ_and_come_again(adapter):
    ask = requests("generate_until", *[("def ", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 9})] * 3)
    said = adapter.generate_until(ask)
    assert len(set(said)) > 1 and adapter.generate_until(ask) == said
    greedy = {"do_sample": False, "temperature": 1.0, "top_k": 4, "until": "e", "max_new_tokens": 9}
    assert "e" not in adapter.generate_until(requests("generate_until", ("def ", greedy)))[0]


def test_bad_input_is_told(adapter, lm_eval):
    from mtp_jax.evaluation.lm_eval_adapter import WorkdirLM

    with pytest.raises(ValueError, match="workdir is missing: give --model_args workdir=FOLDER"):
        WorkdirLM()
    with pytest.raises(ValueError, match="batch_size='many' must be a whole number"):
        WorkdirLM(model=adapter.model, batch_size="many")
    with pytest.raises(ValueError, match="no chat template"):
        adapter.apply_chat_template([])


def test_the_command(folder, results):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "mtp_jax.evaluation.lm_eval_adapter", *arguments], cwd=ROOT,
                              env={**environment(), **offline(folder)}, capture_output=True, text=True, timeout=300)

    done = run("--model_args", f"workdir={folder}/run", "--tasks", "local_choice", "--include_path", str(folder),
               "--output_path", str(folder / "out"))
    assert done.returncode == 0, done.stderr
    assert "local_choice" in done.stdout and "mtp_jax" in done.stdout and "batch_size: 32" in done.stdout
    written, = (folder / "out").rglob("results_*.json")
    found = json.loads(written.read_text())["results"]["local_choice"]
    assert found["acc_norm,none"] == results["results"]["local_choice"]["acc_norm,none"]
    missing = run("--model_args", f"workdir={folder}/other", "--tasks", "local_choice", "--include_path", str(folder))
    assert missing.returncode == 1
    assert f"ERROR: The workdir {folder}/other does not exist" in missing.stderr and "Traceback" not in missing.stderr
    assert os.path.exists(folder / "cache"), "lm_eval kept its data elsewhere"
