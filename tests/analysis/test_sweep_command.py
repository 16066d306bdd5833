"""`python -m mtp_jax.sweep`: cells checked, run or handed over, done ones skipped; the exact calls."""

import csv
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from experiments import code_bytes
from launch import calls, gke, job, queued_resources, slurm
from mtp_jax import commands
from mtp_jax import config as configs
from mtp_jax.analysis import sweep_command
from mtp_jax.analysis.grid import parse_grid
from mtp_jax.analysis.sweep_cells import make_cells
from mtp_jax.analysis.sweep_engines import job_names
from mtp_jax.analysis.sweep_record import SweepRecord
from tests.launch.fakes import Fakes
from tests.training.small_runs import ROOT, environment, small, write_corpus

RECORDED = pathlib.Path(__file__).parent / "recorded"
ENGINES = {"gke": gke.ENGINE, "slurm": slurm.ENGINE, "queued_resources": queued_resources.ENGINE}
GKE = dict(accelerator="v5e:2x4", image="registry.example/mtp_jax:1")
OPTIONS = {"local": {}, "gke": GKE, "slurm": dict(nodes=2, gpus_per_node=8, time="2:00:00"),
           "queued_resources": dict(accelerator="v5e:2x4", zone="us-east5-a", code="https://example.com/mtp_jax.git")}
# SLURM, but for the check that hosts share the folder: a test's does not lie where they could.
ANYWHERE = dataclasses.replace(slurm.ENGINE, submit=lambda jobs, options: [
    calls.Call(("sbatch",), stdin=slurm.script(jobs, options))])
# An experiment that trains nothing and leaves what a run leaves. With two heads it fails the first time, with seed 13
# always.
QUICK = '''
import json, pathlib, sys
from mtp_jax import commands, config

def get_config(width=32):
    settings = config.default_config()
    settings.model.d_model, settings.train.num_steps, settings.optimizer.warmup_steps = width, 4, 1
    settings.data.batch_size, settings.data.seq_len = 2, 50
    settings.model.vocab_size = 259
    return settings

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
    settings = commands.read_config(get_config, sys.argv[2:])
    n, seed = settings.model.num_heads, settings.train.seed
    if seed == 13 or (n == 2 and not (folder / "failed").exists()):
        (folder / "failed").touch()
        sys.exit("the disk is on fire")
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / "config.json").write_text(config.dumps(settings))
    lines = [{"step": 4, "split": "train", "loss": 3.0 * n, "head_loss": [3.0] * n, "tokens_per_second": 100.0 * n},
             {"step": 4, "split": "validation", "loss": 2.5 * n, "head_loss": [2.5] * n, "head_agreement": [1.0] * n,
              "expected_accepted_length": 1.0 * n}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
'''


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Puts the experiment pages.quick on the path of this process and of those that it starts."""
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "__init__.py").touch()
    (tmp_path / "pages" / "quick.py").write_text(QUICK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    namespace = {"__name__": "quick"}
    exec(QUICK, namespace)
    return namespace["get_config"]


def sweep(get_config, workdir, *settings, experiment="pages.quick", grid=("config.model.num_heads=1,2",),
          engine="local", options=None, **fields):
    """Runs the command's function as the command does."""
    request = sweep_command.Request(experiment=experiment, grid=tuple(grid), workdir=str(workdir), engine=engine,
                                    **fields)
    chosen = ENGINES.get(engine)
    values = OPTIONS[engine] if options is None else options
    launch = sweep_command.Launch(job, calls, chosen, chosen and chosen.options(**values))
    return sweep_command.run(request, settings=settings, launch=launch, again="THE COMMAND",
                             resolve=functools.partial(commands.read_config, get_config))


def read_csv(workdir):
    with open(workdir / "sweep.csv") as file:
        return list(csv.DictReader(file))


def test_a_sweep_runs_its_cells_again_where_they_fail_and_skips_those_that_are_done(quick, tmp_path, capsys):
    folder = tmp_path / "runs"
    assert sweep(quick, folder, "--config.width=16", parallel=2) == 0
    told = capsys.readouterr()
    assert "2 cells: 0 done, 0 handed over before, 2 to start." in told.err
    assert "num_heads=2: ended with status 1 and is run again" in told.err
    assert "head 1, nats" in told.out and f"{folder}/sweep.csv" in told.out and (folder / "sweep.png").exists()
    one, two = read_csv(folder)
    assert (one["status"], two["status"], two["config.model.num_heads"]) == ("done", "done", "2")
    assert (two["validation_loss"], two["head_loss_2"], two["tokens_per_second"], two["step_seconds"]) == (
        "5", "2.5", "200", "0.5")
    assert json.loads((folder / "num_heads=2" / "config.json").read_text())["model"]["d_model"] == 16
    assert SweepRecord(folder)["num_heads=2"].attempts == 2

    for name in ("sweep.csv", "sweep.png"):
        (folder / name).unlink()
    assert sweep(quick, folder, "--config.width=16", grid=["config.model.num_heads=1,2,4"], collect=True) == 0
    assert [row["status"] for row in read_csv(folder)] == ["done", "done", "waiting"]
    assert sweep(quick, folder, "--config.width=16", grid=["config.model.num_heads=1,2,4"]) == 0
    assert "3 cells: 2 done, 0 handed over before, 1 to start." in capsys.readouterr().err
    assert [row["status"] for row in read_csv(folder)] == ["done"] * 3
    assert (folder / "num_heads=2" / "log.txt").read_text().count("(attempt") == 2
    with pytest.raises(ValueError, match="holds another run"):
        sweep(quick, folder, "--config.width=24")


def test_a_damaged_cell_is_told_and_counts_as_failed(quick, tmp_path, capsys):
    folder = tmp_path / "runs"
    assert sweep(quick, folder) == 0
    path = folder / "num_heads=1" / "metrics.jsonl"
    path.write_bytes(b"\0\0\n" + path.read_bytes())
    capsys.readouterr()
    assert sweep(quick, folder, collect=True) == 0
    assert f"num_heads=1: {path} is damaged in line 1" in capsys.readouterr().err
    assert [row["status"] for row in read_csv(folder)] == ["failed", "done"]


def test_a_cell_that_fails_for_good_is_told_with_the_end_of_its_log(quick, tmp_path, capsys):
    assert sweep(quick, tmp_path / "runs", grid=["config.train.seed=13,1"], retries=0) == 1
    told = capsys.readouterr().err
    assert "seed=13 failed; the end of" in told and "\n    the disk is on fire\n" in told and "THE COMMAND" in told
    assert [row["status"] for row in read_csv(tmp_path / "runs")] == ["failed", "done"]


@pytest.mark.parametrize("engine, workdir", [
    ("local", "runs/heads"), ("gke", "gs://bucket/heads"), ("slurm", "/shared/heads"),
    ("queued_resources", "gs://bucket/heads")])
def test_the_calls_of_a_dry_run_are_the_recorded_ones(engine, workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep(code_bytes.get_config, workdir, "--config.train.num_steps=100", experiment="code_bytes", engine=engine,
                 grid=["config.model.num_heads=1,2", "config.objective.head_weights='()'"], dry_run=True) == 0
    printed, path = capsys.readouterr().out, RECORDED / f"sweep_{engine}.txt"
    if os.environ.get("MTP_JAX_RECORD"):  # record anew, and read the difference
        RECORDED.mkdir(exist_ok=True)
        path.write_text(printed)
    assert printed == path.read_text()
    assert not list(tmp_path.iterdir())


def test_what_costs_money_prints_its_plan_and_asks(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ENGINES, "slurm", ANYWHERE)
    assert sweep(quick, tmp_path / "runs", engine="slurm") == 1
    told = capsys.readouterr()
    assert "Asks for 32 GPUs" in told.err and "Add --yes" in told.err and not told.out
    assert not (tmp_path / "runs").exists()


def test_cells_that_were_handed_over_are_left_alone_until_told(quick, tmp_path, capsys, monkeypatch):
    fakes, folder = Fakes(tmp_path / "bin"), tmp_path / "runs"
    fakes.add("sbatch", statuses=[0, 0, 7], reads=True)
    monkeypatch.setenv("PATH", fakes.environment["PATH"])
    monkeypatch.setitem(ENGINES, "slurm", ANYWHERE)
    assert sweep(quick, folder, engine="slurm", yes=True) == 0
    assert "this collects what they have done:\n    THE COMMAND" in capsys.readouterr().err
    ((program, _, script),) = fakes.calls()
    assert program == "sbatch" and f"--workdir={folder}/num_heads=2 --config.model.num_heads=2" in script
    assert [row["status"] for row in read_csv(folder)] == ["submitted"] * 2
    for engine in ("slurm", "local"):
        assert sweep(quick, folder, engine=engine, yes=True) == 0
        assert "2 cells: 0 done, 2 handed over before, 0 to start." in capsys.readouterr().err
    assert len(fakes.calls()) == 1
    assert sweep(quick, folder, engine="slurm", yes=True, resubmit=True) == 0
    assert "job-name=runs-num-heads\n" in fakes.calls()[0][2] and "job-name=runs-num-heads-r2\n" in fakes.calls()[1][2]
    assert [SweepRecord(folder)[f"num_heads={n}"].job for n in (1, 2)] == ["runs-num-heads-r2"] * 2
    assert SweepRecord(folder)["num_heads=1"].attempts == 2
    assert sweep(quick, folder, engine="slurm", yes=True, resubmit=True) == 1  # sbatch refuses
    assert SweepRecord(folder)["num_heads=1"].attempts == 2


@pytest.mark.parametrize("fields, message", [
    (dict(experiment=""), "--experiment is needed"),
    (dict(grid=()), "--grid is needed"),
    (dict(workdir=""), "--workdir is needed"),
    (dict(engine="slrum"), 'Did you mean "slurm"'),
    (dict(parallel=0), "--parallel=0 must be at least 1"),
    (dict(retries=-1), "--retries=-1 must be at least 0"),
    (dict(engine="gke", parallel=2), "--parallel=2 is for --engine=local"),
])
def test_flags_that_do_not_fit_are_told(fields, message):
    request = dict(experiment="code_bytes", grid=("config.model.num_heads=1",), workdir="x")
    with pytest.raises(ValueError, match=message):
        sweep_command.Request(**{**request, **fields}).validate()


def test_an_engine_says_which_of_its_flags_does_not_fit(quick, tmp_path):
    with pytest.raises(ValueError, match="--engine=gke, whose options are the flags --gke_.*accelerator"):
        sweep(quick, "gs://bucket/x", engine="gke", options={}, dry_run=True)


def test_names_of_jobs_differ_and_fit():
    cells = make_cells(parse_grid(["config.optimizer.learning_rate=1e-3,2e-3;config.optimizer.weight_decay=0.1,0.2"]),
                       settings=(), workdir="x", resolve=functools.partial(commands.read_config, code_bytes.get_config))
    names = job_names(cells, "a_sweep", longest=job.MAX_NAME, clean=job.name_from)
    assert len(set(names.values())) == 4
    for name in names.values():
        job.Job(f"{name}-r2", "experiments.code_bytes", "x").validate()
    assert job_names(cells[:1], "s", longest=60, clean=job.name_from) == {
        cells[0].name: job.name_from(f"s-{cells[0].name}")}


def run(*arguments, **kwargs):
    return subprocess.run([sys.executable, "-m", "mtp_jax.sweep", *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=240, **kwargs)


@pytest.mark.parametrize("arguments, message", [
    (["--experiment=code_byte", "--workdir=x", "--grid=config.model.num_heads=1"], 'Did you mean "code_bytes"'),
    (["--experiment=experiments.__init__", "--workdir=x", "--grid=config.model.num_heads=1"], "is not among"),
    (["--experiment=mtp_jax.registry", "--workdir=x", "--grid=config.model.num_heads=1"], "has no get_config()"),
    (["--gird=x"], "Did you mean: grid"),
])
def test_mistakes_are_told_without_a_traceback(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (ROOT / "x").exists()


def test_help_answers_quickly_and_names_every_flag():
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = run("--help")
        fastest = min(fastest, time.perf_counter() - start)
    fields = [field for field in sweep_command.Request.__dataclass_fields__]
    assert all(f"--{name}" in done.stdout or f"--[no]{name}" in done.stdout for name in
               [*fields, *(f"{engine}_env" for engine in ENGINES)])
    assert fastest < 2.0


@pytest.mark.slow
def test_a_sweep_of_real_runs(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    start = configs.flatten(configs.from_config_dict(code_bytes.get_config()))
    settings = [f"--config.{name}={value}" for name, value in configs.flatten(small(corpus)).items()
                if value != start[name] and name != "model.num_heads"]
    done = run("--experiment=code_bytes", "--grid=config.model.num_heads=1,2", f"--workdir={tmp_path / 'runs'}",
               "--parallel=2", *settings, env=environment())
    assert done.returncode == 0, done.stderr
    one, two = read_csv(tmp_path / "runs")
    assert (one["status"], one["step"], two["status"]) == ("done", "8", "done")
    assert 0 < float(two["head_loss_2"]) < 8 and 1 <= float(two["expected_accepted_length"]) <= 2
    assert one["params"] == two["params"] and float(one["step_seconds"]) > 0
    assert (tmp_path / "runs" / "sweep.png").stat().st_size > 10_000
