"""The sandbox: values come back as they are, objects stay where they are, limits hold, and nothing is inherited."""

import ctypes
import datetime
import decimal
import fractions
import os
import socket
import subprocess
import sys
import time
from collections import Counter, OrderedDict, defaultdict, deque

import pytest

from mtp_jax.evaluation import sandbox
from mtp_jax.evaluation.sandbox import Limits, check_function, leavings, run, run_program, wire

QUICK = Limits(seconds=1.0, memory=1 << 29, output=1 << 20)


def refuse(value):
    raise wire.NotData("no")


@pytest.mark.parametrize("value", [
    None, True, 0, -1, 2**63, -(10**4000), 1.5, float("inf"), -0.0, 1e-320, 2 - 3j, "", "é\ud800\n", b"\0\xff",
    bytearray(b"x"), [], [1, [2, (3, {4})]], (), {1: {2: 3}, "a": None}, {True: 1.0, (1, 2): "x"}, frozenset({1}),
    range(3, 9, 2), decimal.Decimal("1.10"), fractions.Fraction(1, 3), datetime.date(2020, 1, 2), deque([1, 2]),
    datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.timedelta(1, 2, 3), OrderedDict(b=1, a=2), int, list])
def test_data_pass_as_they_are(value):
    passed = wire.decode(wire.encode(value, refuse), refuse)
    assert passed == value and type(passed) is type(value) and repr(passed) == repr(value)


@pytest.mark.parametrize("value, plain", [
    (Counter("aab"), {"a": 2, "b": 1}), (defaultdict(list, {1: [2]}), {1: [2]}), ({1: 2}.keys(), {1}),
    (type("Text", (str,), {"__str__": lambda self: "y"})("x"), "x"),
    (type("Number", (int,), {"__index__": lambda self: 7, "__eq__": lambda a, b: True})(3), 3),
    (type("Many", (list,), {"__iter__": lambda self: iter([9])})([1, 2]), [1, 2])])
def test_subclasses_pass_as_what_they_are_made_of(value, plain):
    passed = wire.decode(wire.encode(value, refuse), refuse)
    assert passed == plain and type(passed) is type(plain)


@pytest.mark.parametrize("tree", [{"a": 1}, 1.5, ["?"], ["f"], ["i", "zz"], ["n", "eval"], ["d", 1], ["w", "x", "y"],
                                  ["v", "1/3", None], ["v", 1, "3"],
                                  [], [["l"]], ["s", ["l"]]])
def test_what_is_no_value_is_refused(tree):
    with pytest.raises((ValueError, TypeError, KeyError, IndexError)):
        wire.decode(tree, refuse)


@pytest.mark.parametrize("source, test, outcome", [
    ("def f(x):\n    return x + 1", "assert f(1) == 2", "passed"),
    ("def f(x):\n    return x", "assert f(1) == 2, 'one'", "failed"),
    ("def f(x):\n    return y", "assert f(1) == 2", "error"),
    ("def f(x:\n", "assert f(1) == 2", "error"),
    ("", "assert f(1) == 2", "error"),
    ("import os\ndef f(x):\n    os._exit(0)", "assert f(1) == 2", "ended"),
    ("def f(x):\n    while True: pass", "assert f(1) == 2", "timeout"),
    ("def f(x):\n    return 'x' * (1 << 21)", "assert f(1)", "error"),
    ("class f:\n    def __init__(self, a):\n        self.a = a\n    def double(self):\n        return self.a * 2",
     "x = f(2)\nx.a = 5\ny = f(x)\nassert x.double() == 10 and y.a is x and y.a.a == 5 and x != f(5) and x == x",
     "passed"),
    ("def f(x):\n    yield from range(x)", "assert list(f(3)) == [0, 1, 2] and f(3) != [0, 1, 2]", "passed"),
    ("def f(x):\n    raise KeyError(x)", "try:\n    f('a')\nexcept KeyError:\n    pass\nelse:\n    assert False",
     "passed"),
    ("class E(ValueError): pass\ndef f(x):\n    raise E(x)",
     "try:\n    f('a')\nexcept ValueError:\n    x = 1\nassert x", "passed"),
    ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert f() == 1 and f() == 2", "passed"),
    ("def f(x):\n    return {'a': len}", "assert f(1)['a']([1, 2]) == 2", "passed"),
    ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef f(x):\n    return A(x)",
     "assert f(3).x == 3", "passed"),
    ("f = 1\nif __name__ == '__main__':\n    1 / 0", "assert f", "passed"),
    ("import numpy\ndef f(x):\n    return [numpy.int64(x), numpy.float32(0.5), numpy.bool_(True)]",
     "assert f(3) == [3, 0.5, True]", "passed"),
    ("def f(g):\n    return g(1)", "f(lambda x: x)", "error"),
    ("def f():\n    return '\\ud83d' + '\\ude00'", "assert len(f()) == 2", "passed"),
    ("import os\ndef f(x):\n    os._exit(0)", "try:\n    f(1)\nexcept:\n    pass", "ended"),
    ("def f(x):\n    raise StopIteration", "assert all(map(lambda x: f(x) == 3 * x, [1, 2]))", "error"),
    ("def f(x):\n    yield x", "g = f(1)\nassert next(g) == 1 and next(g, None) is None", "passed"),
    ("class f:\n    def __getattr__(self, name):\n        return 3", "assert not hasattr(f(), '__array__')", "passed"),
])
def test_functions(source, test, outcome):
    assert check_function(source, test=test, names=["f"], limits=QUICK).outcome == outcome


def test_the_program_cannot_replace_what_the_prelude_defines():
    source = "def helper(x):\n    return 0\n\ndef f(x):\n    return 5"
    test = "assert helper(f(1)) == 10"
    assert check_function(source, test=test, names=["f"], prelude="def helper(x):\n    return 2 * x").passed


@pytest.mark.parametrize("source, text, outcome, output", [
    ("print(int(input()) * 2)", "21\n", "passed", "42\n"),
    ("import sys\nsys.stdout.write(sys.stdin.read())", "é\n" * 10**5, "passed", "é\n" * 10**5),
    ("import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(input()))).start()", "late",
     "passed", "late\n"),
    ("import atexit\natexit.register(print, 'last')\nexit()", "", "passed", "last\n"),
    ("class A:\n    pass\nif __name__ == '__main__':\n    print(A.__module__)", "", "passed", "__main__\n"),
    ("print(1)\nraise ValueError", "", "error", ""),
    ("print(1)\nexit(3)", "", "error", ""),
    ("print(1, flush=True)\nimport time\ntime.sleep(9)", "", "timeout", ""),
    ("print('x' * (1 << 21))", "", "output", ""),
    ("import os\nos.kill(os.getpid(), 15)", "", "ended", ""),
    ("import resource\nprint(resource.getrlimit(resource.RLIMIT_FSIZE)[1])\n"
     "try:\n    open('x', 'wb').write(bytes(20 << 20))\nexcept OSError:\n    print('no')", "", "passed",
     "16777216\nno\n"),
    ("try:\n    bytearray(1 << 30)\nexcept MemoryError:\n    print('no')", "", "passed", "no\n"),
])
def test_programs(source, text, outcome, output):
    with run_program(source, limits=QUICK) as program:
        verdict = program(text)
    assert (verdict.outcome, verdict.output) == (outcome, output)


def test_each_input_is_a_run_of_its_own():
    source = "import os\nprint(os.path.exists('x'))\nos.mkdir('x')\nopen('x/y', 'w').close()\nopen('z', 'w').close()"
    with run_program(source, limits=QUICK) as program:
        assert [program("").output for _ in range(3)] == ["False\n"] * 3


@pytest.mark.parametrize("layer", sandbox.LAYERS)
def test_nothing_is_inherited(layer, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_TOKEN", "told")
    (tmp_path / "own.txt").write_text("told")
    source = ("import os, sys\ntry:\n    print(open(PATH).read())\nexcept OSError:\n    print('closed')\n"
              "print(os.environ.get('SECRET_TOKEN'), len(os.environ), len(os.listdir('.')), sys.argv)\n"
              "for place in range(3, 256):\n    try:\n        os.fstat(place)\n        print(place)\n"
              "    except OSError:\n        pass\n").replace("PATH", repr(str(tmp_path / "own.txt")))
    try:
        with run_program(source, limits=QUICK, layer=layer) as program:
            output = program("").output
    except ValueError as error:
        pytest.skip(str(error))
    assert output == "closed\nNone 7 0 ['program']\n"


def test_a_machine_without_walls_runs_nothing(monkeypatch):
    run.layer_here.cache_clear()
    monkeypatch.setattr(run, "LAYERS", ("landlock", "mounts"))
    monkeypatch.setattr(run, "_places", lambda: {"readable": ["/"], "hidden": [], "packages": [], "listed": [],
                                                 "single": ["/not/there"]})
    try:
        with pytest.raises(ValueError, match="none can be built on this machine.*--completions"):
            sandbox.layer_here()
    finally:
        run.layer_here.cache_clear()


def test_a_sandbox_that_is_killed_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_START", "import os; os._exit(0)")
    for source in ("f = int", "f = int" + " " * (1 << 20)):  # more than a pipe holds
        assert check_function(source, test="", names=["f"], layer="mounts").outcome == "ended"
    monkeypatch.setattr(run, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(run, "_GRACE", 0.2)
    started = time.monotonic()
    assert check_function("f = int", test="", names=["f"], layer="mounts", limits=QUICK).outcome == "timeout"
    assert time.monotonic() - started < 5


def test_limits_are_checked():
    with pytest.raises(ValueError, match="limit memory is 0"):
        check_function("", test="", names=[], limits=Limits(memory=0))


def test_the_hidden_packages_stay_hidden():
    source = "def f(name):\n    import importlib.util\n    return importlib.util.find_spec(name) is None"
    assert check_function(source, test="assert f('pytest') and f('jax') and not f('json')", names=["f"]).passed
    assert os.path.exists(pytest.__file__)


@pytest.mark.parametrize("layer", sandbox.LAYERS)
def test_other_processes_of_the_user_hear_nothing(layer, tmp_path):
    libc = ctypes.CDLL(None, use_errno=True)
    sleeper = subprocess.Popen(["sleep", "60"])
    memory = libc.shmget(0, 4096, 0o1600)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.bind(str(tmp_path / "here"))
    here.setblocking(False)
    source = """import ctypes, fcntl, os, socket
def f(process, memory, place):
    reads, writes = os.pipe()
    fcntl.fcntl(reads, fcntl.F_SETFL, os.O_ASYNC)
    ours = lambda kind: socket.socketpair(socket.AF_UNIX, kind)[0]
    done = []
    for step in (lambda: fcntl.fcntl(reads, 10, 9), lambda: fcntl.fcntl(reads, fcntl.F_SETOWN, process),
                 lambda: os.write(writes, b"x"), lambda: ours(socket.SOCK_DGRAM).sendto(b"x", place),
                 lambda: ours(socket.SOCK_SEQPACKET), lambda: os.sched_setaffinity(process, {0}),
                 lambda: ours(socket.SOCK_STREAM)):
        try:
            step()
            done.append(1)
        except OSError:
            done.append(0)
    ctypes.CDLL(None).shmctl(memory, 0, None)
    return done"""
    test = f"r = f({sleeper.pid}, {memory}, {str(tmp_path / 'here')!r})\nassert r == [0, 0, 1, 0, 0, 0, 1], r"
    try:
        verdict = check_function(source, test=test, names=["f"], limits=QUICK, layer=layer)
        time.sleep(0.05)
        assert sleeper.poll() is None
        with pytest.raises(BlockingIOError):
            here.recv(10)
        assert libc.shmctl(memory, 0, None) == 0  # it was there until now
        assert verdict.passed, verdict
    except ValueError as error:
        pytest.skip(str(error))
    finally:
        libc.shmctl(memory, 0, None)
        sleeper.kill()
        sleeper.wait()
        here.close()


@pytest.mark.skipif(sys.platform != "linux", reason="follows descriptors of folders")
def test_whatever_lies_in_a_folder_is_removed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "stays").touch()
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "out").symlink_to(outside)
    (folder / "a" / "b" / "closed").mkdir(0)
    (folder / "none").symlink_to("nowhere")
    open(os.fsencode(folder) + b"/\xff\n", "w").close()
    place = os.open(folder / "a" / "b", os.O_RDONLY)
    for _ in range(1100):  # deeper than Python recurses, and than a path is long
        os.mkdir("deeper", dir_fd=place)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    os.chmod(folder / "a", 0)
    os.chmod(folder, 0)
    leavings.empty(str(folder))
    assert os.listdir(folder) == [] and os.listdir(outside) == ["stays"]


def test_no_process_is_left_where_the_first_one_waits_for_none(tmp_path):
    script = """import ctypes, os
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # orphans come here, and nobody waits for them
from mtp_jax.evaluation.sandbox import Limits, check_function
try:
    print(check_function("def f():\\n    return range(10**12)", test="sum(f())", names=["f"], layer="landlock",
                         limits=Limits(0.5)).outcome)
except ValueError:
    print("ended")
try:
    print(os.waitpid(-1, 0))
except ChildProcessError:
    print("none left")"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ended\nnone left\n", done
