"""Jobs: what is refused before anything is started, and TPU slices by either of their names."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import job, tpus
from launch.job import Job
from tests.launch.fakes import ROOT

GOOD = Job("paper-7b", "experiments.paper", "gs://bucket/runs/paper_7b", ("--config.size=7b",))


def test_the_command_of_a_host():
    GOOD.validate()
    assert GOOD.command() == ("python", "-m", "experiments.paper", "--workdir=gs://bucket/runs/paper_7b",
                              "--config.size=7b")


@pytest.mark.parametrize("field, value, told", [
    ("name", "Paper_7b", "name it 'paper-7b'"), ("name", "", "lower-case"), ("name", "a" * 41, "at most 40"),
    ("name", "7b", "name it 'run-7b'"), ("name", "a-", "end with a letter"),
    ("module", "paper", "such as experiments.paper"), ("module", "experiments.a b", "not a module"),
    ("workdir", "", "neither empty"), ("workdir", "-x", "./-x"), ("workdir", "a\0b", "NUL"),
    ("settings", ("config.x=1",), "--config.PATH=VALUE"), ("settings", ("--workdir=x",), "--config.PATH=VALUE"),
    ("settings", ("--config.x=\udcff",), "UTF-8"), ("settings", ("",), "neither empty")])
def test_what_cannot_be_started_is_refused(field, value, told):
    with pytest.raises(ValueError, match=f"(?s)^{field}=.*{told}"):
        dataclasses.replace(GOOD, **{field: value}).validate()


@pytest.mark.parametrize("workdir, bucket, told", [
    ("runs/x", True, "gs://BUCKET"), ("/shared/x", True, "gs://BUCKET"), ("gs://bucket", True, "gs://BUCKET"),
    ("s3://bucket/x", True, "gs://BUCKET"), ("runs/x", False, "must be absolute"), ("/tmp/x", False, "each host"),
    ("gs://b/x", True, None), ("gs://b/x", False, None), ("/shared/x", False, None), ("/tmpx/y", False, None)])
def test_every_host_must_reach_the_workdir(workdir, bucket, told):
    jobs = [dataclasses.replace(GOOD, workdir=workdir)]
    if told is None:
        job.check_jobs(jobs, bucket=bucket)
    else:
        with pytest.raises(ValueError, match=told):
            job.check_jobs(jobs, bucket=bucket)


@pytest.mark.parametrize("change, told", [({}, "name='paper-7b' is that of 2 jobs"),
                                          ({"name": "b"}, "workdir='gs://.*' is that of 2 jobs")])
def test_jobs_share_neither_name_nor_workdir(change, told):
    with pytest.raises(ValueError, match=told):
        job.check_jobs([GOOD, dataclasses.replace(GOOD, **change)], bucket=True)


def test_no_jobs_are_refused():
    with pytest.raises(ValueError, match="nothing to start"):
        job.check_jobs([], bucket=True)


@given(st.text(max_size=60))
def test_any_text_makes_a_valid_name(text):
    dataclasses.replace(GOOD, name=job.name_from(text)).validate()


def test_settings_are_told_from_the_launchers_flags():
    argv = ["launch", "--name=a", "--config.x=1", "--noconfig.y", "--config.z= a=b ", "--dry_run"]
    assert job.split_settings(argv) == (["launch", "--name=a", "--dry_run"],
                                        ("--config.x=1", "--noconfig.y", "--config.z= a=b "))
    for wrong in ("-config.x=1", "--config=x", "--config.x-y=1"):
        with pytest.raises(ValueError, match="--config.PATH=VALUE"):
            job.split_settings(["launch", wrong])


def test_experiments_are_found_by_name():
    assert job.experiment_module("paper") == job.experiment_module("experiments.paper") == "experiments.paper"
    with pytest.raises(ValueError, match='not among .*code_bytes.*Did you mean "paper"'):
        job.experiment_module("papr")
    with pytest.raises(ValueError, match="no folder nowhere/"):
        job.experiment_module("nowhere.paper")


@pytest.mark.parametrize("name, slice, chips, hosts", [
    ("v5p:4x4x4", "v5p:4x4x4", 64, 16), ("v5p-128", "v5p:4x4x4", 64, 16), ("v4-8", "v4:2x2x1", 4, 1),
    ("v5litepod-16", "v5e:4x4", 16, 4), ("v5e-16", "v5e:4x4", 16, 4), ("v5e:2x4", "v5e:2x4", 8, 1),
    ("v6e-1", "v6e:1x1", 1, 1), ("v5p:4x8x12", "v5p:4x8x12", 384, 96), ("tpu7x:4x4x8", "tpu7x:4x4x8", 128, 32),
    ("v5p:16x16x24", "v5p:16x16x24", 6144, 1536)])
def test_slices_by_either_name(name, slice, chips, hosts):
    found = tpus.parse(name)
    assert (found.name, found.chips, found.hosts()) == (slice, chips, hosts)


@pytest.mark.parametrize("name, told", [
    ("v5p:4x4x5", '2x2x1, .*16x16x16 or multiples of 4.*Did you mean "4x4x8"'), ("v5p:4x4", "has no topology '4x4'"),
    ("v5p:8x4x4", "ascending order"), ("v5e:4x5", '1x1, 2x2, .*16x16. Did you mean "4x8"'), ("v5e:0x4", "no topology"),
    ("v5p:16x24x24", "no topology"), ("v5:4x4", 'not among v4, v5e, v5p, v6e, tpu7x. Did you mean "v5p"'),
    ("v5p-130", "v5p-128, .*named by it, such as v5p:4x4x12"), ("v6e-128x", "neither GENERATION:TOPOLOGY"),
    ("", "neither GENERATION"), ("v5p:0x4x4", "no topology")])
def test_a_slice_that_does_not_exist_is_told_with_those_that_do(name, told):
    with pytest.raises(ValueError, match=told):
        tpus.parse(name)


def test_hosts_of_another_machine_type():
    assert [tpus.parse("v6e:2x4").hosts(per_host) for per_host in (0, 8, 4, 1)] == [1, 1, 2, 8]
    with pytest.raises(ValueError, match="chips_per_host=8 does not divide the 4 chips"):
        tpus.parse("v6e:2x2").hosts(8)


@pytest.mark.parametrize("names, common", [
    (["a-n-1"], "a-n-1"), (["a-n-1", "a-n-2"], "a-n"), (["a-n-1-r2", "a-n-2-r2"], "a-n-r2"),
    (["a-n-1-r2", "a-n-2-r3"], "a-n"), (["a-rate-0-1", "a-rate-0-2"], "a-rate"), (["a", "b"], "a"),
    (["heads-1", "header-1"], "heads-1"), (["a-1-x", "a-1"], "a"), (["a-r2", "b-r2"], "a-r2")])
def test_what_several_jobs_are_called_together(names, common):
    jobs = [dataclasses.replace(GOOD, name=name) for name in names]
    assert job.common_name(jobs) == common
    dataclasses.replace(GOOD, name=common).validate()


def test_a_launcher_imports_nothing_heavy():
    code = ("import sys, launch.queued_resources, launch.gke, launch.slurm\n"
            "print(*{name.split('.')[0] for name in sys.modules})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    heavy = {"mtp_jax", "jax", "numpy", "yaml", "etils", "ml_collections"}
    assert done.returncode == 0 and not heavy & set(done.stdout.split()), done.stderr
