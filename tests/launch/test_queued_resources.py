"""Queued resources: the calls of gcloud as recorded, and the startup script run by bash with fake programs."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch import command, queued_resources
from launch.job import Job
from launch.queued_resources import ENGINE, Options
from tests.launch import recorded
from tests.launch.fakes import ROOT, Fakes

JOB = Job("paper-7b", "experiments.paper", "gs://bucket/runs/paper_7b", ("--config.size=7b",))
OPTIONS = Options(accelerator="v5p:4x4x4", zone="us-east5-a", code="gs://bucket/code.tar.gz")
PLACE = ["--zone=us-east5-a", "--project=mine"]
RUN = ["--experiment=paper", "--workdir=gs://bucket/runs/paper_7b", "--code=gs://bucket/code.tar.gz", *PLACE]


@pytest.mark.parametrize("name, arguments", [
    ("queued_resources", [*RUN, "--accelerator=v5p:4x4x4", "--config.size=7b", "--config.data.path=it's here"]),
    ("queued_resources_spot", [*RUN, "--accelerator=v5litepod-256", "--slices=2", "--spot", "--name=seven",
                               "--config.parallel.dcn_mesh=data:2", "--delete_when_done", "--valid_until=6h",
                               "--env=LIBTPU_INIT_ARGS=--a=1 --b=2", "--max_restarts=0"]),
    ("queued_resources_git", [*RUN[:2], *PLACE, "--code=https://git.example.org/me/mtp_jax.git", "--revision=v1.2",
                              "--accelerator=v6e:2x4", "--reserved", "--runtime_version=own", "--network=n",
                              "--subnetwork=s", "--service_account=a@b", "--python=3.13"]),
    ("queued_resources_status", ["--action=status", "--name=paper-7b", *PLACE]),
    ("queued_resources_logs", ["--action=logs", "--workdir=gs://bucket/runs/paper_7b", "--slices=2", *PLACE]),
    ("queued_resources_delete", ["--action=delete", "--name=paper-7b", *PLACE])])
def test_the_exact_calls(name, arguments, capsys):
    recorded.check(name, ENGINE, arguments, capsys)


def test_each_job_has_a_queued_resource_of_its_own():
    jobs = [dataclasses.replace(JOB, name=f"n-{n}", workdir=f"gs://b/n{n}") for n in (1, 2, 4)]
    calls = queued_resources.submit(jobs, OPTIONS)
    assert [call.argv[5] for call in calls] == ["n-1", "n-2", "n-4"]
    assert all(f"--workdir={job.workdir}" in call.stdin for job, call in zip(jobs, calls))
    plan = queued_resources.describe(jobs, OPTIONS)
    assert "192 TPU chips" in plan and plan.count("queued-resources delete n-") == 3 and "bills" in plan


@pytest.mark.parametrize("change, told", [
    ({"accelerator": ""}, "--accelerator is needed"), ({"zone": ""}, "--zone is needed"),
    ({"code": ""}, "--code is needed"), ({"accelerator": "tpu7x:4x4x4"}, "python -m launch.gke"),
    ({"zone": "us-east5"}, "us-east5-a"), ({"code": "."}, "cannot read this machine's files"),
    ({"code": "gs://b/code.zip"}, "tar.gz"), ({"revision": "v1"}, "is an archive; leave it out"),
    ({"code": "https://h/x.git", "revision": "--upload-pack=x"}, "starts like a flag"), ({"python": "3.10"}, "3.11"),
    ({"spot": True, "reserved": True}, "exclude each other"), ({"slices": 0}, "slices=0"),
    ({"max_restarts": -1}, "max_restarts=-1"), ({"valid_until": "tomorrow"}, "6h"),
    ({"env": ("a b=c",)}, "NAME=VALUE")])
def test_options_that_cannot_be_used(change, told):
    with pytest.raises(ValueError, match=told):
        queued_resources.submit([JOB], dataclasses.replace(OPTIONS, **change))


@pytest.mark.parametrize("arguments, told", [
    ([], "--experiment is needed"), (["--experiment=paper"], "--workdir is needed"),
    (["--experiment=papr", "--workdir=gs://b/x"], 'Did you mean "paper"'),
    (["--acelerator=v5p-8"], "Did you mean: accelerator"), (["--slices=two"], "slices"), (["more"], "unexpected"),
    (["--experiment=paper", "--workdir=runs/x", *RUN[2:], "--accelerator=v5p-8"], "workdir='runs/x' is not"),
    (["--config.x", "1"], "unexpected arguments 1"), (["--action=logs"], "needs --name"),
    (["--action=status", "--name=a"], "--zone is needed"),
    ([*RUN, "--accelerator=v5p-8", "--config.size=7bb"], 'Did you mean "7b"?'),
    ([*RUN, "--accelerator=v5p-8", "--config.model.num_hea=2"], 'Did you mean "num_heads"'),
    ([*RUN, "--accelerator=v5p-8", "--config.model.num_heads=0"], "model.num_heads=0 must be at least 1"),
    (["--experiment=launch.job", *RUN[1:], "--accelerator=v5p-8"], "has no get_config()")])
def test_errors_are_one_line(arguments, told, capsys):
    assert command.main(ENGINE, ["launch", *arguments]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and told in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("missing, checked", [("mtp_jax", False), ("ml_collections", False), ("jax", True)])
def test_settings_are_checked_where_mtp_jax_is_installed_and_without_jax(missing, checked, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # an import of it fails
    status = command.main(ENGINE, ["launch", *RUN, "--accelerator=v5p-8", "--dry_run", "--config.size=7bb"])
    out, err = capsys.readouterr()
    assert (status, "Did you mean" in err, out.startswith("gcloud ")) == (int(checked), checked, not checked)
    assert ("launch: the settings were not checked" in err) is not checked


@pytest.mark.parametrize("engine", ["queued_resources", "gke", "slurm"])
def test_help_is_quick_and_names_every_flag(engine):
    begin = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # not by the clock: other tests run beside this one
    done = subprocess.run([sys.executable, "-m", f"launch.{engine}", "--help"], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin
    assert seconds < 1 and done.returncode == 0 and not done.stderr
    module = __import__(f"launch.{engine}", fromlist=["Options"])
    names = [field.name for field in dataclasses.fields(module.Options)]
    assert all(f"--{name}:" in done.stdout or f"--[no]{name}:" in done.stdout
               for name in ["experiment", "workdir", "yes", "dry_run", *names])


# The startup script, in bash.

@pytest.fixture
def host(tmp_path):
    """A host where the code is installed already, with a fake interpreter."""
    return Host(tmp_path)


class Host(Fakes):
    """A host's root folder beside the fake programs."""

    def __init__(self, tmp_path):
        super().__init__(tmp_path / "programs")
        self.root = tmp_path / "host"
        self.root.mkdir(exist_ok=True)
        self.environment["MTP_JAX_ROOT"] = str(self.root)

    def install(self, statuses=()):
        """Puts the interpreter in place; it ends with these statuses."""
        (self.root / "installed").touch()
        self.add("python", statuses, folder=self.root / "code/.venv/bin")

    def start(self, job=JOB, options=OPTIONS):
        """Runs the startup script."""
        return self.bash(queued_resources.startup_script(job, options))


@pytest.mark.parametrize("statuses, ends, starts", [
    ([0], 0, 1), ([75, 75, 75, 0], 0, 4), ([1, 1, 1], 1, 3), ([1, 75, 1, 1, 0], 0, 5), ([134, 1, 137, 0], 1, 3),
    ([75, 1, 1, 75, 1, 1, 1, 0], 1, 7), ([130, 0], 130, 1)])
def test_75_starts_again_and_errors_a_few_times_in_a_row(host, statuses, ends, starts):
    host.install(statuses)
    done = host.start(options=dataclasses.replace(OPTIONS, max_restarts=2))
    assert (done.returncode, len(host.calls())) == (ends, starts), done.stderr
    assert all(arguments == list(JOB.command()[1:]) for _, arguments, _ in host.calls())
    assert ("is not started again" in done.stderr) is (ends == 1)


def test_a_run_of_an_hour_begins_a_new_row_of_errors(host):
    host.install()
    log = host.root / "log"
    host.write(host.root / "code/.venv/bin/python", f"#!/bin/bash\necho run >> {log}\n"
               f'[ "$(wc -l < {log})" != 3 ] || sleep 2\nexit 1\n')
    script = queued_resources.startup_script(JOB, dataclasses.replace(OPTIONS, max_restarts=2))
    assert script.count("-lt 3600") == 1
    assert host.bash(script.replace("-lt 3600", "-lt 2")).returncode == 1  # an hour of two seconds
    assert log.read_text().count("run") == 5


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=3))
def test_settings_survive_the_shell(tmp_path, values):
    host = Host(tmp_path)
    host.install()
    before = len(host.calls())
    job = dataclasses.replace(JOB, settings=tuple(f"--config.a.b={value}" for value in values))
    assert host.start(job).returncode == 0
    assert [arguments for _, arguments, _ in host.calls()[before:]] == [list(job.command()[1:])]


def test_the_environment_is_the_runs(host):
    host.install()
    host.write(host.root / "code/.venv/bin/python", '#!/bin/bash\necho "<$LIBTPU_INIT_ARGS>"\n')
    done = host.start(options=dataclasses.replace(OPTIONS, env=("LIBTPU_INIT_ARGS=--a='b c' $HOME",)))
    assert "<--a='b c' $HOME>" in done.stdout


def test_a_shutdown_lets_the_run_save_and_starts_nothing(host):
    host.install()
    begun = host.root / "begun"
    host.write(host.root / "code/.venv/bin/python",
               f"#!/bin/bash\ntrap 'echo saved; exit 75' TERM\necho >> {begun}\nwhile true; do sleep 0.05; done\n")
    process = subprocess.Popen(["bash", "-c", queued_resources.startup_script(JOB, OPTIONS)], env=host.environment,
                               stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            if begun.exists():
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75 and "saved" in out and "stopped by SIGTERM" in out
    assert begun.read_text().count("\n") == 1


@pytest.mark.parametrize("worker, statuses, deleted", [("0", [75, 0], True), ("1", [0], False), ("0", [1], False)])
def test_the_first_host_gives_the_tpus_back_when_the_run_is_done(host, worker, statuses, deleted):
    host.install(statuses)
    host.add("gcloud")
    host.write(host.folder / "curl", f"#!/bin/bash\necho -n {worker}\n")
    host.start(options=dataclasses.replace(OPTIONS, delete_when_done=True, max_restarts=0))
    delete = queued_resources.delete(JOB.name, OPTIONS)[0].argv
    assert [[name, *arguments] for name, arguments, _ in host.calls() if name == "gcloud"] == (
        [[*delete, "--async"]] if deleted else [])


@pytest.mark.parametrize("options", [OPTIONS, dataclasses.replace(OPTIONS, code="https://h/x.git", revision="v1")])
def test_the_code_is_installed_once(host, options, tmp_path):
    # The archive's bytes are those of a folder; git clones it. pip and uv are python3's, and make the interpreter.
    made = tmp_path / "made"
    host.write(made / "constraints.txt", "")
    subprocess.run(["tar", "-czf", tmp_path / "code.tar.gz", "-C", made, "."], check=True)
    host.write(host.folder / "gcloud", f"#!/bin/bash\necho gcloud \"$@\" >> log\ncat {tmp_path}/code.tar.gz\n")
    host.write(host.folder / "git", '#!/bin/bash\necho git "$@" >> log\n[ "$1" = -C ] || mkdir "${@: -1}"\n')
    log = host.root / "log"
    for name in ("gcloud", "git"):
        path = host.folder / name
        path.write_text(path.read_text().replace(">> log", f">> {log}"))
    host.write(host.folder / "python3", f"""#!/bin/bash
echo python3 "$@" >> {log}
if [ "$3" = venv ]; then mkdir -p .venv/bin && ln -s {host.folder}/run .venv/bin/python; fi
""")
    host.write(host.folder / "run", f"#!/bin/bash\necho run in ${{PWD##*/}} >> {log}\n")
    first, second = host.start(options=options), host.start(options=options)
    assert first.returncode == second.returncode == 0, first.stderr
    fetched = (["git clone --quiet -- https://h/x.git code", "git -C code checkout --quiet v1"]
               if options.revision else ["gcloud storage cat gs://bucket/code.tar.gz"])
    assert log.read_text().splitlines() == [
        *fetched, "python3 -m pip install --quiet uv", "python3 -m uv venv --quiet --clear --python 3.12 .venv",
        "python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt -e .[tpu]", "run in code",
        "run in code"]


def test_code_that_cannot_be_installed_is_tried_three_times(host):
    host.add("gcloud", [1] * 9)
    done = host.start()
    assert done.returncode == 1 and len(host.calls()) == 3 and "could not be installed" in done.stderr


def test_the_script_is_sound_bash():
    for options in (OPTIONS, dataclasses.replace(OPTIONS, delete_when_done=True, env=("A=b c",))):
        done = subprocess.run(["bash", "-n"], input=queued_resources.startup_script(JOB, options), text=True,
                              capture_output=True)
        assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("shown", [False, True])
def test_gcloud_gets_the_script_from_the_command_or_from_what_it_shows(shown, host, monkeypatch, capsys):
    host.add("gcloud")
    monkeypatch.setenv("PATH", host.environment["PATH"])
    command_line = ["launch", *RUN, "--accelerator=v5p-128", "--config.size=7b"]
    assert command.main(ENGINE, command_line) == 1 and host.calls() == []
    assert "Asks for 64 TPU chips" in capsys.readouterr().err
    if shown:
        assert command.main(ENGINE, [*command_line, "--dry_run"]) == 0
        assert host.bash(capsys.readouterr().out).returncode == 0
    else:
        assert command.main(ENGINE, [*command_line, "--yes"]) == 0
    options = dataclasses.replace(OPTIONS, accelerator="v5p-128", project="mine")
    (call,) = queued_resources.submit([JOB], options)
    assert host.calls() == [["gcloud", list(call.argv[1:]), queued_resources.startup_script(JOB, options)]]


def test_what_ends_something_needs_yes_and_what_looks_does_not(host, monkeypatch, capsys):
    host.add("gcloud")
    monkeypatch.setenv("PATH", host.environment["PATH"])
    assert command.main(ENGINE, ["launch", "--action=delete", "--name=paper-7b", *PLACE]) == 1 and host.calls() == []
    assert command.main(ENGINE, ["launch", "--action=status", "--name=paper-7b", *PLACE]) == 0
    assert command.main(ENGINE, ["launch", "--action=delete", "--name=paper-7b", *PLACE, "--yes"]) == 0
    assert [arguments[3] for _, arguments, _ in host.calls()] == ["describe", "delete"]
