"""A task of a few problems, a model that was never trained, and an evaluation of the one by the other."""

import json

from mtp_jax.config import EvaluationConfig
from mtp_jax.evaluation import registry
from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.problems import make_problems, need_text, read_jsonl
from mtp_jax.evaluation.task import Defaults, Problem, Setting
from tests.decoding.models import BYTES
from tests.decoding.workdirs import write_workdir
from tests.small_model import make_config, make_params

WINDOW = 48


class Toy(GenerationTask):
    """Passes where the completion has an even number of characters; one that says "crash" cannot be scored."""

    name = "toy"
    about = "whether a text is even"
    data_help = "JSONL of question and id"
    defaults = Defaults(max_new_tokens=6)
    settings = (Setting("times", 1, "how often the question is put"),)

    def problems(self, request):
        def make(where, record, name):
            need_text(record, where, "id", "question")
            return Problem(name, record["question"] * request.option("times"))

        return make_problems(read_jsonl(request.data), lambda number, record: record.get("id", f"toy/{number}"), make)

    def score(self, problem, completion, request):
        if completion == "crash":
            raise RuntimeError("the scorer fell over")
        return {"passed": len(completion) % 2 == 0, "length": len(completion)}


TASK = Toy()


def register(monkeypatch):
    """Makes the task known as --task=toy."""
    monkeypatch.setitem(registry.TASKS, "toy", __name__)


def write_data(folder, questions):
    """Writes {id: question} as the task's data; returns the file."""
    path = folder / "toy.jsonl"
    path.write_text("".join(json.dumps({"id": name, "question": text}) + "\n" for name, text in questions.items()))
    return path


def write_model(folder, **changes):
    """Saves an untrained model of bytes with four heads, as a run does; returns its workdir."""
    config = make_config(**{**BYTES, "dtype": "float32", "param_dtype": "float32", **changes})
    return write_workdir(folder, config, {3: make_params(config)}, seq_len=WINDOW)


def config_of(**fields):
    """Returns the flags of an evaluation by the toy."""
    paths = ("workdir", "data", "completions", "output")
    return EvaluationConfig(**{"task": "toy", **{name: str(value) if name in paths else value
                                                 for name, value in fields.items()}})
