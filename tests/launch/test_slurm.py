"""SLURM: the call of sbatch as recorded, and its script run by bash with fake srun and scontrol."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch import slurm
from launch.job import Job
from launch.slurm import ENGINE, Options
from tests.launch import recorded
from tests.launch.fakes import Fakes

JOB = Job("paper-7b", "experiments.paper", "/shared/runs/paper_7b", ("--config.size=7b",))
JOBS = [dataclasses.replace(JOB, name=f"n-{n}", workdir=f"/shared/n{n}",
                            settings=(f"--config.model.num_heads={n}", "--config.data.path=it's $here"))
        for n in (1, 2, 4)]
RUN = ["--experiment=paper", "--workdir=/shared/runs/paper_7b"]


@pytest.fixture
def fakes(tmp_path):
    found = Fakes(tmp_path / "programs")
    found.add("scontrol")
    return found


@pytest.mark.parametrize("name, arguments", [
    ("slurm", [*RUN, "--nodes=4", "--time=24:00:00", "--setup=module load cuda", "--setup=source .venv/bin/activate",
               "--config.size=7b", "--config.data.path=it's $HOME"]),
    ("slurm_container", [*RUN, "--gpus_per_node=4", "--cpus_per_gpu=12", "--partition=gpu", "--account=us",
                         "--qos=high", "--constraint=h100&ib", "--exclusive", "--srun=--container-image=me/mtp_jax:1",
                         "--python=python3", "--env=XLA_FLAGS=--a --b", "--output=/shared/logs/%x-%j.out",
                         "--grace_seconds=120", "--max_restarts=0"]),
    ("slurm_status", ["--action=status", "--name=paper-7b"]),
    ("slurm_delete", ["--action=delete", "--workdir=/shared/runs/paper_7b"])])
def test_the_exact_calls(name, arguments, capsys):
    recorded.check(name, ENGINE, arguments, capsys)


def test_several_jobs_are_one_array(fakes):
    (call,) = slurm.submit(JOBS, Options(at_once=2))
    assert call.argv == ("sbatch",) and "#SBATCH --array=0-2%2\n" in call.stdin
    assert "#SBATCH --job-name=n\n" in call.stdin and "#SBATCH --output=%x-%A_%a.out\n" in call.stdin
    assert "#SBATCH --output=o-%j\n" in slurm.script(JOBS, Options(output="o-%j"))
    fakes.add("srun")
    for task in (2, 0, 1):
        assert fakes.bash(call.stdin, SLURM_ARRAY_TASK_ID=str(task), SLURM_JOB_ID="7").returncode == 0
    assert [arguments[1:] for _, arguments, _ in fakes.calls()] == [list(JOBS[n].command()) for n in (2, 0, 1)]
    assert "24 GPUs" in slurm.describe(JOBS, Options()) and "scancel --me --name=n\n" in slurm.describe(
        JOBS, Options()) + "\n"


@pytest.mark.parametrize("statuses, ends, starts, queued", [
    ([0], 0, 1, 0), ([75, 0], 75, 1, 1), ([1, 1, 1, 0], 1, 3, 0), ([1, 143, 0], 0, 3, 0), ([1, 75], 75, 2, 1),
    ([130], 130, 1, 0)])
def test_75_is_queued_again_and_errors_start_again_a_few_times(fakes, statuses, ends, starts, queued):
    fakes.add("srun", statuses)
    (call,) = slurm.submit([JOB], Options(max_restarts=2))
    done = fakes.bash(call.stdin, SLURM_JOB_ID="42")
    calls = fakes.calls()
    assert done.returncode == ends, done.stderr
    assert [name for name, _, _ in calls] == ["srun"] * starts + ["scontrol"] * queued
    assert all(arguments == ["requeue", "42"] for name, arguments, _ in calls if name == "scontrol")


def test_a_run_of_an_hour_begins_a_new_row_of_errors(fakes):
    fakes.write(fakes.folder / "srun", "#!/bin/bash\necho run >> log\n"
                '[ "$(wc -l < log)" != 3 ] || sleep 2\nexit 1\n')
    script = slurm.script([JOB], Options(max_restarts=2))
    assert script.count("-lt 3600") == 1
    assert fakes.bash(script.replace("-lt 3600", "-lt 2")).returncode == 1  # an hour of two seconds
    assert (fakes.folder / "log").read_text().count("run") == 5


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=3), st.booleans())
def test_settings_survive_the_shell(tmp_path, values, several):
    fakes = Fakes(tmp_path / "programs")
    fakes.add("srun")
    before = len(fakes.calls())
    job = dataclasses.replace(JOB, settings=tuple(f"--config.a.b={value}" for value in values))
    text = slurm.script([JOBS[0], job] if several else [job], Options())
    assert fakes.bash(text, SLURM_ARRAY_TASK_ID="1", SLURM_JOB_ID="7").returncode == 0
    assert [arguments[1:] for _, arguments, _ in fakes.calls()[before:]] == [list(job.command())]


def test_a_set_up_that_fails_ends_the_job_and_one_that_works_is_the_runs(fakes):
    fakes.write(fakes.folder / "srun", '#!/bin/bash\necho "<$WHERE> <$XLA_FLAGS>"\n')
    options = Options(setup=("export WHERE=here", "true"), env=("XLA_FLAGS=--a '$b'",))
    assert "<here> <--a '$b'>" in fakes.bash(slurm.script([JOB], options)).stdout
    done = fakes.bash(slurm.script([JOB], dataclasses.replace(options, setup=("false",))))
    assert done.returncode == 1 and not done.stdout


@pytest.mark.parametrize("change, told", [
    ({"nodes": 0}, "nodes=0"), ({"gpus_per_node": 0}, "gpus_per_node=0"), ({"time": "1 day"}, "24:00:00"),
    ({"partition": "a b"}, "partition='a b'"), ({"output": "x'y"}, "output="), ({"constraint": "a;b"}, "constraint="),
    ({"setup": ("#SBATCH --mem=1G",)}, "too late"), ({"srun": ("image",)}, "--container-image"),
    ({"grace_seconds": 70000}, "65535"), ({"max_restarts": -1}, "max_restarts=-1"), ({"env": ("=",)}, "NAME=VALUE")])
def test_options_that_cannot_be_used(change, told):
    with pytest.raises(ValueError, match=told):
        slurm.submit([JOB], dataclasses.replace(Options(), **change))


@pytest.mark.parametrize("time", ["90", "24:00:00", "2-12", "1-00:00:00", "10:30"])
def test_time_limits_as_slurm_writes_them(time):
    assert f"#SBATCH --time={time}\n" in slurm.submit([JOB], Options(time=time))[0].stdin


def test_the_command_hands_the_script_to_sbatch(fakes, monkeypatch, capsys):
    fakes.add("sbatch", reads=True)
    monkeypatch.setenv("PATH", fakes.environment["PATH"])
    from launch import command

    assert command.main(ENGINE, ["launch", *RUN, "--config.size=7b"]) == 1 and fakes.calls() == []
    assert "8 GPUs, 1 x 8 a job" in capsys.readouterr().err
    assert command.main(ENGINE, ["launch", *RUN, "--config.size=7b", "--yes"]) == 0
    assert fakes.calls() == [["sbatch", [], slurm.script([JOB], Options())]]
