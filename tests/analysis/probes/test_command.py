"""`python -m mtp_jax.probe`: its probes, their flags, and what makes no sense of them."""

import dataclasses
import importlib
import subprocess
import sys
import time

import pytest

from mtp_jax.analysis.probes import arm, arm_command, insertion
from mtp_jax.analysis.probes.insertion_command import Options, run
from mtp_jax.analysis.probes.registry import PROBES
from tests.training.small_runs import ROOT


def probe(*arguments):
    return subprocess.run([sys.executable, "-m", "mtp_jax.probe", *arguments], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_has_explained_options(name):
    module = importlib.import_module(PROBES[name])
    fields = dataclasses.fields(module.Options)
    assert "workdir" in [field.name for field in fields] and all(field.metadata["help"] for field in fields)
    assert callable(module.run)


def test_help_of_all_and_of_one():
    told = probe("--help")
    assert told.returncode == 0 and all(name in told.stdout for name in PROBES)
    clock = time.perf_counter()
    told = probe("insert", "--help")
    assert "--meaningful" in told.stdout and time.perf_counter() - clock < 20  # noisy machines; about 0.3 s


def test_an_unknown_probe_names_the_nearest():
    told = probe("insrt", "--workdir=x")
    assert told.returncode == 1 and told.stderr.startswith("error: ") and 'Did you mean "insert"' in told.stderr


@pytest.mark.parametrize("flags, message", [
    (dict(workdir=""), "--workdir is missing"),
    (dict(task=""), "--task is missing: .* polynomial"),
    (dict(task="polynomal"), 'Did you mean "polynomial"'),
    (dict(task="piqa"), "--task=piqa has no questions that are answered in text"),
    (dict(k=("-3",)), "--k=-3 must be a whole number, 0 or above"),
    (dict(k=("ten",)), "--k=ten must be a whole number"),
    (dict(k=("5", "5")), "has a value twice"),
    (dict(position=("behind",)), "--position='behind' is not one of"),
    (dict(position=("betwen",)), 'Did you mean "between"'),
    (dict(condition=("meaningles",)), '--condition.*Did you mean "meaningless"'),
    (dict(condition=("none",)), "none alone inserts nothing"),
    (dict(meaningless=""), "empty: give --meaningless=TEXT"),
    (dict(bar_k=56), "--bar_k=56 is none of the lengths"),
    (dict(sentences="nowhere.txt"), "--sentences=nowhere.txt is no file"),
    (dict(batch_size=0), "--batch_size=0 must be at least 1"),
    (dict(set=("shot=3",)), 'Did you mean "shots"'),
    (dict(data="nowhere.jsonl"), "--data=nowhere.jsonl does not exist"),
    (dict(workdir="nowhere", data=__file__), "The workdir nowhere does not exist"),
])
def test_flags_that_make_no_sense_are_told(flags, message):
    with pytest.raises(ValueError, match=message):
        insertion.measure(Options(**{**dict(workdir="runs/none", task="gsm8k", data=__file__), **flags}))


@pytest.mark.parametrize("flags, message", [
    (dict(out="table.csv"), "--out=table.csv must end in .json"),
    (dict(beside=("nowhere.json",)), "--beside=nowhere.json cannot be read"),
    (dict(beside=("mtp_jax/py.json",)), "cannot be read"),
])
def test_files_that_make_no_sense_are_told_before_anything_runs(flags, message, monkeypatch):
    monkeypatch.setattr(insertion, "measure", lambda options: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        run(Options(**{**dict(workdir="runs/none", task="gsm8k"), **flags}))


class Loaded(Exception):
    """What a probe loads."""


@pytest.mark.parametrize("name", ["insert", "arm"])
def test_the_loops_of_a_looped_trunk_are_those_asked_for(name, monkeypatch):
    def load_model(workdir, **asked):
        raise Loaded(asked["exit_threshold"], asked["loops"])

    monkeypatch.setattr("mtp_jax.decoding.load.load_model", load_model)
    flags = dict(workdir="nowhere", task="gsm8k", data=__file__, exit_threshold=0.75, loops=3)
    with pytest.raises(Loaded) as asked:
        if name == "insert":
            insertion.measure(Options(**flags))
        else:
            options = arm_command.Options(**flags)
            arm.measure(options, options.settings())
    assert asked.value.args == (0.75, 3)


def test_lengths_and_bars_have_defaults():
    assert Options().lengths == (0, 10, 25, 40, 55, 70) and Options().bars == 55
    assert Options(k=("3", "9")).bars == 9 and Options(k=("60", "90")).bars == 90 and Options(bar_k=10).bars == 10
    assert [condition.unit for condition in Options().conditions] == ["/", "he ", ""]
