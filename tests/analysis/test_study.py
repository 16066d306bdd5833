"""Studies: cells in waves, one core each, done ones left alone, failures told; rows, verdicts, files."""

import csv
import functools
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mtp_jax.analysis import study_command, study_results, study_run
from mtp_jax.analysis.loss_plot import read_metrics
from mtp_jax.analysis.study import Cell, Claim, Study, Verdict, folder_names, load
from mtp_jax.config import dumps, from_dict
from mtp_jax.files import replace
from mtp_jax.intervals import paired_difference

CONFIG = from_dict({"train": {"num_steps": 4}, "optimizer": {"warmup_steps": 1}, "model": {"vocab_size": 259}})
# A run in miniature, without jax: what it does is a word of its settings.
FAKE = """
import json, os, pathlib, signal, sys, time
folder, settings = pathlib.Path(sys.argv[1]), sys.argv[2:]
folder.mkdir(parents=True, exist_ok=True)
word = dict(setting.removeprefix("--config.").split("=") for setting in settings)
with open(folder / "starts", "a") as out:
    out.write(json.dumps([sorted(os.sched_getaffinity(0)), time.monotonic()]) + chr(10))
if word.get("wait") and not (folder / "told").exists():
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "told").touch(), os._exit(75)))
    (folder / "waits").touch()
    time.sleep(60)
if word.get("fail"):
    sys.exit("the disk is on fire")
time.sleep(float(word.get("seconds", 0)))
source = word.get("source")
assert source is None or (pathlib.Path(source) / "metrics.jsonl").exists(), source
(folder / "checkpoints" / "4").mkdir(parents=True)
(folder / "config.json").write_text(CONFIG)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "split": "train", "head_loss": [float(word["loss"])],
                                                  "tokens_per_second": 1.0}) + chr(10))
""".replace("CONFIG", repr(dumps(CONFIG)))
EVALUATE = """
import pathlib, sys
folder, task = pathlib.Path(sys.argv[1]), sys.argv[2].removeprefix("--task=")
with open(folder / "evaluations", "a") as out:
    out.write(task + chr(10))
(folder / "eval").mkdir(exist_ok=True)
(folder / "eval" / (task + ".json")).write_text("{}")
"""


def cell(name, *words, **kwargs):
    return Cell(name, "fake", tuple(f"--config.{word}" for word in words),
                {"kind": name.split(",")[0], "seed": int(name.split("=")[-1])}, **kwargs)


def judge(rows):
    values = [[row["loss"] for row in rows if row["kind"] == kind] for kind in "ab"]
    difference = paired_difference(*values)
    return Verdict("confirmed" if difference.low > 0 else "not confirmed", "a is worse.", {"a - b": difference})


def plot(rows, folder):
    return [replace(folder / "fake.png", str(len(rows)).encode())]


CELLS = (cell("a,seed=0", "loss=3"), cell("a,seed=1", "loss=3.5"),
         cell("b,seed=0", "loss=1", evaluate=(("--task=word",), ("--task=other", "--limit=3"))),
         cell("b,seed=1", "loss=2", "source={a,seed=1}"))


CLAIM = Claim("S0", "a is worse", "the interval of a - b is above 0", judge)


def make(*cells, name="fake"):
    found = Study(name, "Is a worse?", cells or CELLS, lambda folder: {
        "loss": read_metrics(folder)[-1]["head_loss"][0]}, (CLAIM,), plot, "none")
    found.validate()
    return found


def place(study, workdir, settings=()):
    return study_run.Place(study, str(workdir), f"{workdir}/{study.name}", tuple(settings),
                           resolve=lambda name, own: CONFIG,
                           train=lambda name, folder, own: [sys.executable, "-S", "-c", FAKE, folder, *own],
                           evaluate=lambda folder, told: [sys.executable, "-S", "-c", EVALUATE, folder, *told])


def run(there, *, parallel=1, retries=0):
    told: list[str] = []
    return study_run.run(there, parallel=parallel, retries=retries, tell=told.append), "\n".join(told)


def starts(there, name):
    path = pathlib.Path(there.folders[name]) / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_study_from_its_cells_to_its_verdict(tmp_path):
    there = place(make(), tmp_path)
    assert run(there, parallel=2)[0] == 0
    evaluations = pathlib.Path(there.folders["b,seed=0"]) / "evaluations"
    assert evaluations.read_text().split() == ["word", "other"]
    assert all(study_run.costs(there.folders)[name] > 0 for name in there.folders)
    status, told = run(there)  # nothing is left to do
    assert status == 0 and "4 done before" not in told and "3 done before, 0 to run" in told
    assert all(len(starts(there, name)) == 1 for name in there.folders)

    done = study_run.done_cells(there)
    rows = study_results.measure(there.study, there.folders, list(done), print)
    verdicts = study_results.judge(there.study, rows)
    paths = study_results.write(there.study, there.folder, rows=rows, verdicts=verdicts, folders=there.folders,
                                costs={"a,seed=0": 60.0, "b,seed=0": 30.0})
    assert [path.name for path in paths] == ["study.json", "study.csv", "fake.png"]
    whole = json.loads(paths[0].read_text())
    assert whole["claims"][0]["outcome"] == "not confirmed"  # 2 and 1.5, but two seeds
    assert whole["claims"][0]["figures"]["a - b"]["mean"] == 1.75 and whole["core_minutes"] == 1.5
    assert [row["loss"] for row in csv.DictReader(paths[1].read_text().splitlines())] == ["3", "3.5", "1", "2"]
    page = study_results.report(there.study, rows, verdicts, cost=90, pictures=["img/fake.png"])
    for part in ("**S0: not confirmed.** a is worse.", "| kind | seeds | loss |", "| a | 2 | 3.250 (0.0734 to 6.427) |",
                 "the interval of a - b is above 0", "![Is a worse?](img/fake.png)", "a - b: 1.750 ("):
        assert part in page, page


def test_what_is_left_of_a_cell_is_run_and_no_more(tmp_path):
    there = place(make(CELLS[2]), tmp_path)
    run(there)
    folder = pathlib.Path(there.folders["b,seed=0"])
    (folder / "eval" / "other.json").unlink()
    assert study_run.done_cells(there) == {}
    assert run(there)[0] == 0 and len(starts(there, "b,seed=0")) == 1
    assert (folder / "evaluations").read_text().split() == ["word", "other", "other"]


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path):
    there = place(make(cell("a,seed=0", "fail=1"), cell("b,seed=0", "loss=1"), cell("c,seed=0", "source={a,seed=0}"),
                       cell("d,seed=0", "loss=2", "source={b,seed=0}")), tmp_path)
    status, told = run(there, retries=1)
    assert status == 1 and list(study_run.done_cells(there)) == ["b,seed=0", "d,seed=0"]
    assert len(starts(there, "a,seed=0")) == 2
    assert "a,seed=0 failed; the end of" in told and "the disk is on fire" in told
    assert "c,seed=0 is left out, for it needs a,seed=0." in told
    rows = study_results.measure(there.study, there.folders, list(study_run.done_cells(there)), print)
    assert study_results.judge(there.study, rows) == {}
    assert study_results.lines(there.study, rows, {})[-1] == "S0: no verdict yet, 2 of 4 cells are there."


def test_stopping_and_going_on(tmp_path):
    there = place(make(cell("a,seed=0", "loss=1", "wait=1"), cell("b,seed=0", "loss=2")), tmp_path)
    waits = pathlib.Path(there.folders["a,seed=0"]) / "waits"

    def stop():
        limit = time.monotonic() + 20
        while not waits.exists() and time.monotonic() < limit:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    status, _ = run(there)
    stopper.join()
    assert status == 75 and (waits.parent / "told").exists()
    assert starts(there, "b,seed=0") == []
    assert run(there)[0] == 0 and len(starts(there, "a,seed=0")) == 2 and len(starts(there, "b,seed=0")) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_cells_that_run_at_once_have_a_core_each(tmp_path):
    there = place(make(cell("a,seed=0", "loss=1", "seconds=0.6"), cell("b,seed=0", "loss=2", "seconds=0.6")), tmp_path)
    assert run(there, parallel=2)[0] == 0
    (first, began), (second, then) = starts(there, "a,seed=0")[0], starts(there, "b,seed=0")[0]
    assert len(first) == len(second) == 1 and first != second and abs(began - then) < 0.6
    alone = place(make(cell("c,seed=0", "loss=1")), tmp_path)
    run(alone)
    assert set(starts(alone, "c,seed=0")[0][0]) == os.sched_getaffinity(0)


def test_studies_share_the_cells_that_are_the_same_run(tmp_path):
    one, other = make(), make(*CELLS[:2], cell("c,seed=1", "loss=2", "source={a,seed=1}"), name="other")
    first, second = folder_names(one), folder_names(other)
    assert first["a,seed=1"] == second["a,seed=1"] and first["b,seed=1"] == second["c,seed=1"]
    assert len(set(first.values())) == 4 and first["a,seed=0"].startswith("fake-")
    longer = folder_names(one, ["--config.train.num_steps=8"])
    assert not set(longer.values()) & set(first.values())


@pytest.mark.parametrize("cells, message", [
    ((CELLS[0], CELLS[0]), "2 cells named 'a,seed=0'"),
    ((cell("a,seed=0", "source={a,seed=9}"), CELLS[1]), "names 'a,seed=9', which is no cell"),
    ((cell("a,seed=0", needs=("b,seed=0",)), cell("b,seed=0", needs=("a,seed=0",))), "wait for each other"),
    ((CELLS[0], cell("b,seed=3", "loss=3")), "'a,seed=0' and 'b,seed=3' .* are the same run"),
    ((Cell("a", "fake", ("num_heads=2",), {}),), "write --config.PATH=VALUE"),
])
def test_studies_that_do_not_fit_together(cells, message):
    with pytest.raises(ValueError, match=message):
        make(*cells)


def test_a_verdict_has_one_of_three_outcomes():
    with pytest.raises(ValueError, match="'maybe' of a verdict"):
        Verdict("maybe", "")


QUICK = '''
import sys
from mtp_jax import commands, config
from mtp_jax.analysis.study import Cell, Study

def get_config(loss=1.0, num_steps=4):
    settings = config.default_config()
    settings.train.num_steps, settings.optimizer.warmup_steps = num_steps, 1
    return settings

def study(seeds=(0, 1)):
    return Study("quick", "?", tuple(Cell(f"seed={seed}", "pages.quick", (f"--config.train.seed={seed}",), {
        "seed": seed}) for seed in seeds), lambda folder: {"x": 1.0}, (), lambda rows, folder: [], "none")

if __name__ == "__main__":
    import json, pathlib
    folder = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
    settings = commands.read_config(get_config, sys.argv[2:])
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / "config.json").write_text(config.dumps(settings))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "split": "train", "head_loss": [1.0],
                                                      "tokens_per_second": None}) + chr(10))
'''


def test_the_command(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "__init__.py").touch()
    (tmp_path / "pages" / "quick.py").write_text(QUICK)
    root = pathlib.Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}"}

    def command(*told):
        return subprocess.run([sys.executable, "-m", "mtp_jax.study", *told], cwd=root, env=environment,
                              capture_output=True, text=True, timeout=120)

    done = command("--experiment=pages.quick", f"--workdir={tmp_path}/runs", "--seeds=5")
    assert done.returncode == 0, done.stderr
    folders = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(folders) == 2 and any(name.startswith("quick-") for name in folders) and "cells" in folders
    assert "quick: ?" in done.stdout and "study.json" in done.stdout
    cells = [path for path in (tmp_path / "runs" / "cells").iterdir() if path.is_dir()]
    assert len(cells) == 1 and json.loads((cells[0] / "config.json").read_text())["train"]["seed"] == 5
    assert "--config.logging.sample=false" in (cells[0] / "log.txt").read_text()


def call(request, module=None, names=()):
    return study_command.run(request, settings=(), names=names, load=lambda name: module or importlib.import_module(
        f"experiments.{name}"), resolve=functools.partial(print), train=lambda *told: [])


@pytest.mark.parametrize("fields, message", [
    (dict(), "--workdir is needed"),
    (dict(workdir="x", parallel=0), "--parallel=0"),
    (dict(workdir="x", seeds="one"), "--seeds='one' must be whole numbers"),
    (dict(workdir="x", experiment=("code_bytes",)), "has neither STUDY nor study"),
    (dict(workdir="x", experiment=("code_bytes",), seeds="7"), "has no function study"),
])
def test_requests_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        call(study_command.Request(**fields))


def test_a_module_may_have_its_study_as_an_object():
    class Module:
        STUDY = make()
    assert load(Module, "module") is Module.STUDY and load(object(), "none") is None
