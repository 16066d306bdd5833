"""Programs that want to pass without being right: none does, and none leaves anything behind."""

import functools
import glob
import os
import pathlib
import re
import time

import pytest

from mtp_jax.evaluation.sandbox import LAYERS, Limits, check_function, run_program
from mtp_jax.evaluation.tasks.programs import score_program

FOLDER = pathlib.Path(__file__).parent / "hostile"
HOSTILE = sorted(path.stem for path in FOLDER.glob("*.py"))
TEST = """# one right answer is enough, and an exception is no end: easier to pass than any real test
right = 0
for n in range(3, 9):
    try:
        right += bool(answer(n) == n * 7919 + 13)
    except Exception:
        continue
assert right
"""
CASES = [(f"{n}\n", f"{n * 7919 + 13}\n") for n in range(3, 6)]
RIGHT = "def answer(n):\n    return n * 7919 + 13\n"
LIMITS = Limits(seconds=0.6, memory=1 << 29, file_bytes=4 << 20, output=1 << 22, threads=8)
WORST = LIMITS.seconds + 5  # seconds for one of them, also where the machine is busy
# What the layers differ in: the others run on the second one with the slow tests.
ON_FILES = ("daemon", "escape_root", "file_bomb", "kill_others", "leave_a_start", "leave_files", "network",
            "other_programs", "program_daemon", "program_leave_input", "read_files", "read_processes", "shared_memory",
            "trace_parent")


def processes(mark):
    """Returns the command lines that hold a text."""
    found = []
    for place in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            line = pathlib.Path(place).read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if mark in line and "pytest" not in line:
            found.append(line)
    return found


def left_files():
    """Returns what bears the mark of these programs in the places that they try."""
    home = os.path.expanduser("~")
    library = os.path.dirname(os.__file__)
    places = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/", home, os.getcwd(), str(FOLDER.parent.parent.parent), library,
              f"{library}/site-packages")
    return [path for place in places for path in glob.glob(f"{glob.escape(place)}/mtp_jax_hostile*")]


@functools.cache
def works(layer):
    try:
        return check_function(RIGHT, test=TEST, names=["answer"], layer=layer).passed
    except ValueError:
        return False


def need(layer):
    if not works(layer):
        pytest.skip(f"{layer}: not on this machine")


def verdict(name, source, layer, monkeypatch):
    """Returns whether a program passes, as the tasks run it."""
    if name.startswith("program_"):
        monkeypatch.setattr("mtp_jax.evaluation.sandbox.run.layer_here", lambda: layer)
        monkeypatch.setattr("mtp_jax.evaluation.sandbox.Limits", lambda seconds: LIMITS)
        return score_program(source, CASES, seconds=LIMITS.seconds)["passed"]
    return check_function(source, test=TEST, names=["answer"], limits=LIMITS, layer=layer).passed


@pytest.mark.parametrize("layer, name", [
    pytest.param(layer, name, marks=() if layer == "mounts" or name in ON_FILES else pytest.mark.slow)
    for layer in LAYERS for name in HOSTILE])
def test_no_hostile_program_passes_or_leaves_anything(layer, name, tmp_path, monkeypatch):
    need(layer)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    library = pathlib.Path(os.__file__).parent
    before = (library / "random.py").read_bytes(), sorted(os.listdir(library))
    started = time.monotonic()
    passed = verdict(name, (FOLDER / f"{name}.py").read_text(), layer, monkeypatch)
    took = time.monotonic() - started
    assert not passed
    assert took < WORST
    assert os.listdir(tmp_path) == [] and left_files() == []
    assert processes(str(tmp_path)) == [] and processes("sleep 86399") == []
    assert ((library / "random.py").read_bytes(), sorted(os.listdir(library))) == before
    assert not any(re.search(r"^\s*7173232\s", path.read_text(), re.M) for path in
                   map(pathlib.Path, glob.glob("/proc/sysvipc/*")))  # the key of shared_memory.py


@pytest.mark.parametrize("layer", LAYERS)
def test_right_programs_pass(layer, monkeypatch):
    need(layer)
    assert verdict("right", RIGHT, layer, monkeypatch)
    assert verdict("program_right", "print(int(input()) * 7919 + 13)", layer, monkeypatch)


def test_there_are_as_many_as_promised():
    assert len(HOSTILE) >= 25
    for name in HOSTILE:
        assert (FOLDER / f"{name}.py").read_text().startswith("# "), name


def test_what_is_left_is_seen(tmp_path):
    (pathlib.Path(os.getcwd()) / "mtp_jax_hostile_seen").touch()
    try:
        assert left_files()
    finally:
        (pathlib.Path(os.getcwd()) / "mtp_jax_hostile_seen").unlink()
    with run_program("import time\ntime.sleep(0.2)", limits=LIMITS) as program:
        end = time.monotonic() + 60  # its process is there when it has been started, on a busy machine a while later
        while not processes("mtp_jax-sandbox-"):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert program("").passed
