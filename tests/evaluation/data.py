"""Files of tasks, where they are, and evaluations of given completions."""

import json
import pathlib

import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.evaluation import command

DATA = pathlib.Path(__file__).parent.parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the tasks' own data are not here")


def write_jsonl(path, records):
    """Writes a JSONL file; returns its path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def evaluate(task, *, completions, data, model=None, **flags):
    """Scores a file of completions; returns the result as its JSON file holds it."""
    output = completions.with_name(f"{completions.stem}.{task}.result.json")
    command.evaluate(EvaluationConfig(task=task, data=str(data), completions=str(completions), output=str(output),
                                      restart=True, **flags), model=model)
    return json.loads(output.read_text())
