"""The commands of launch/README.md are such as the launchers take."""

import importlib
import re
import shlex

import pytest

from launch import command
from tests.launch.fakes import ROOT

PAGE = (ROOT / "launch/README.md").read_text().replace("\\\n", " ").replace("ZONE", "us-east5-a")
COMMANDS = re.findall(r"^ {4}python -m launch\.(queued_resources|gke|slurm) (.*)", PAGE, re.MULTILINE)


def test_the_page_shows_every_engine():
    assert sorted({engine for engine, _ in COMMANDS}) == ["gke", "queued_resources", "slurm"] and len(COMMANDS) == 5


@pytest.mark.parametrize("engine, arguments", COMMANDS)
def test_a_command_of_the_page_is_taken(engine, arguments, capsys):
    module = importlib.import_module(f"launch.{engine}")
    status = command.main(module.ENGINE, ["launch", *shlex.split(arguments, comments=True), "--dry_run"])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert out.startswith(("gcloud ", "kubectl ", "sbatch "))


def test_every_flag_that_the_page_names_exists():
    known = {"processes", "max_restarts", "experiment", "workdir", "yes", "dry_run", "help", "action", "name", "delete",
             "requeue", "dry-run", "format", "output", "topology", "size"}
    for engine in ("queued_resources", "gke", "slurm"):
        known |= {*importlib.import_module(f"launch.{engine}").Options.__dataclass_fields__}
    named = set(re.findall(r"--([a-z][\w-]*)", PAGE)) - {"config", "xla_gpu_enable_latency_hiding_scheduler",
                                                          "container-image"}
    assert named <= known
