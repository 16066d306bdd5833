"""Every module of experiments/ trains as a command: 20 small steps, finite losses that fall."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable

import pytest

from tests.training.small_runs import ROOT, run, write_corpus

MODULES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__")
STORIES = ("Once upon a time there was a king who had three daughters, and the youngest was called {}.",
           "The fox said to {}: come with me to the well at the end of the world, and do not look back.")
SMALL = {"data.batch_size": 4, "data.seq_len": 32, "data.validation_batches": 2, "optimizer.warmup_steps": 2,
         "optimizer.learning_rate": 0.01, "train.num_steps": 20, "logging.log_every": 1, "logging.tensorboard": False,
         "logging.progress": "lines"}
SHAPE = {"model.num_layers": 3, "model.num_heads": 2, "model.d_model": 32, "model.num_attention_heads": 2,
         "model.d_ff_multiple": 8}


def stories(folder):
    """Writes two small JSONL files; returns the settings that name them."""
    for name, count in (("train", 40), ("val", 4)):
        lines = [json.dumps({"id": str(i), "text": STORIES[i % 2].format(f"Anna the {i}th") * 5}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {"data.path": folder / "train.jsonl", "data.validation_path": folder / "val.jsonl"}


def files(folder):
    """Writes a small corpus; returns the settings that name it."""
    (folder / "corpus").mkdir()
    return {"data.source": "files", "data.path": write_corpus(folder / "corpus")}


def tokenizer(folder):
    """Makes a small tokenizer by the command that the experiment's header names; returns the setting."""
    texts, file = folder / "texts", folder / "tokenizer.json"
    texts.mkdir()
    for path in sorted((ROOT / "mtp_jax").glob("*/*.py")):
        (texts / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    done = run([sys.executable, "-m", "mtp_jax.data.train_tokenizer", "--source=files", f"--path={texts}",
                "--vocab_size=512", f"--output={file}"])
    assert done.returncode == 0, done.stderr
    return {"data.tokenizer": file}


def source_run(folder):
    """Trains the run that another goes on from; returns the parameters that name it."""
    done = run(arguments("code_bytes", folder / "source", SMALL | SHAPE))
    assert done.returncode == 0, done.stderr
    return {"source_run": folder / "source", "num_heads": 3}


@dataclasses.dataclass(frozen=True)
class Case:
    """How an experiment is made small."""

    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    make: Callable = lambda folder: {}  # files that the run needs; returns further settings
    slow: bool = True
    falls: bool = True  # whether 20 steps are enough for that: not for a new head on a frozen trunk of 20 steps


CASES = {
    "architectures": Case(SHAPE | {"row": "causal"}, stories),
    "bytes": Case(SHAPE | {"num_heads": 2}, files),
    "choice_points": Case(SHAPE, stories),
    "code_bpe": Case(SHAPE, tokenizer),
    "code_bytes": Case(SHAPE),
    "code_bytes_8": Case(SHAPE | {"model.num_layers": 9, "model.num_heads": 8}),
    "drafting": Case({}, source_run, falls=False),
    "epochs": Case(SHAPE, lambda folder: {**stories(folder), "data.validation_path": ""}),
    "finetune": Case({}, source_run),
    "induction": Case(SHAPE),
    "information": Case(SHAPE, stories),
    "head_sweep": Case(SHAPE, stories),
    "looped": Case({"loops": 3, "model.d_model": 32, "model.num_heads": 2, "data.seq_len": 64}),
    "paper": Case({"size": "1m", "model.d_model": 64}, files),
    "polynomial": Case({"size": "small", "model.d_model": 32, "data.seq_len": 64}),
    "scaling_grid": Case({"width": 48, "model.num_layers": 3, "model.num_heads": 2, "model.loops": 2}, stories),
    "size_sweep": Case(SHAPE, stories),
    "star_graph": Case({"size": "small", "data.seq_len": 26}),
    "stories": Case({"model.d_model": 32}, stories),
    "weights": Case(SHAPE | {"schedule": "deepseek"}, stories),
}


def arguments(module, workdir, settings):
    """Returns the command line of an experiment."""
    return [sys.executable, "-m", f"experiments.{module}", f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in settings.items())]


def test_every_experiment_has_a_case():
    assert sorted(CASES) == MODULES


@pytest.mark.parametrize("module", [pytest.param(name, marks=[pytest.mark.slow] if case.slow else [])
                                    for name, case in CASES.items()])
def test_an_experiment_trains_for_20_steps(module, tmp_path):
    case = CASES[module]
    settings = SMALL | case.settings | case.make(tmp_path)
    done = run(arguments(module, tmp_path / "run", settings))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {split: [record["loss"] for record in records if record["split"] == split]
              for split in ("train", "validation")}
    assert [record["step"] for record in records if record["split"] == "train"] == list(range(1, 21))
    assert records[-1]["split"] == "validation" and records[-1]["step"] == 20
    assert all(math.isfinite(value) for record in records for value in [record["loss"], *record["head_loss"]]
               if value is not None or module != "drafting")  # whose old heads rest
    assert sum(losses["train"][-3:]) < sum(losses["train"][:3]) or not case.falls, losses["train"]

    changed, again = (next(line for line in done.stderr.splitlines() if line.startswith(start))
                      for start in ("changed", "to resume"))
    names = {part.split("=")[0] for part in changed.split(None, 1)[1].split(", ") if "." in part}
    assert {"logging.log_every"} <= names <= set(settings)  # and none that a parameter decides
    assert all(f"--config.{name}={settings[name]}" in again for name in settings if "." not in name)
