"""Starts the sandbox and hears its verdict: the harness' side."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import select
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import util
from typing import Any

from mtp_jax.evaluation.sandbox import leavings, wire

LAYERS = ("mounts", "landlock")  # the stronger first
_START = "import sys; sys.path.insert(0, sys.argv[1]); import child; child.main()"
_GRACE = 10.0  # seconds that the sandbox itself may take to start and to end
_VISIBLE = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
_PACKAGES = ("numpy",)  # what programs may import beside the standard library, where it is installed


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
      seconds: of wall time, for all calls of a function or for one input of a program; CPU time is cut a second later.
      memory: bytes of address space of the one process that it is.
      file_bytes: of one file, and with mounts of all its files together.
      output: bytes that it may write or return at once.
      threads: beside its first.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    file_bytes: int = 16 << 20
    output: int = 16 << 20
    threads: int = 32

    def validate(self) -> None:
        """Checks the limits.

        Raises:
          ValueError: one is not positive.
        """
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"the sandbox' limit {name} is {value}, which leaves nothing: give more than 0")


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
      outcome: "passed", "failed" (an assertion), "error" (an exception, or an exit status), "timeout", "output" (too
        much of it), "ended" (it ended, or was killed, before it had answered).
      detail: a sentence on it.
      output: what it wrote, of a program that reads and writes text.
    """

    outcome: str
    detail: str = ""
    output: str = ""

    @property
    def passed(self) -> bool:
        """Tells whether it did what it should; of a program that reads and writes: whether it ran to its end."""
        return self.outcome == "passed"


def check_function(source: str, *, test: str, names: Sequence[str], prelude: str = "", limits: Limits | None = None,
                   layer: str | None = None) -> Verdict:
    """Runs a test against what a program defines; the test runs in another process than the program.

    Args:
      source: the program, in Python.
      test: statements; one that raises fails the program.
      names: those of the program's names that the test uses.
      prelude: statements to run before the test, in its process: imports and helpers that are no part of the program.
      limits: what it may use.
      layer: one of LAYERS; None for the strongest that works here.

    Returns:
      The verdict.

    Raises:
      ValueError: this machine has no layer that the sandbox can stand on.
    """
    with _start(source, "function", limits, layer) as talk:
        return talk({"test": test, "names": list(names), "prelude": prelude})


@contextlib.contextmanager
def run_program(source: str, *, limits: Limits | None = None, layer: str | None = None) -> Iterator[Any]:
    """Gives a callable from a program's input to a Verdict with its output; each call is a run of its own.

    Args:
      source: the program, in Python.
      limits: what each run may use.
      layer: one of LAYERS; None for the strongest that works here.

    Raises:
      ValueError: as check_function.
    """
    with _start(source, "program", limits, layer) as talk:
        yield lambda text: talk({"input": text})


@functools.cache
def layer_here() -> str:
    """Returns the strongest layer that works on this machine.

    Raises:
      ValueError: none does.
    """
    reasons = []
    for layer in LAYERS if sys.platform == "linux" else ():
        try:
            verdict = check_function("f = int", test="assert f('1') == 1", names=["f"], layer=layer)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if verdict.passed:
            return layer
        reasons.append(f"{layer}: {verdict.outcome} {verdict.detail}")
    raise ValueError("code of a model is run only inside a sandbox, and none can be built on this machine "
                     f"({'; '.join(reasons) or sys.platform}): use Linux 5.13 or newer, on x86_64 or aarch64, with "
                     "user namespaces or Landlock switched on, or generate here and score there with --completions")


@contextlib.contextmanager
def _start(source: str, mode: str, limits: Limits | None, layer: str | None) -> Iterator[Any]:
    """Runs a sandbox; gives what sends it a message and returns the verdict on it."""
    limits = limits or Limits()
    limits.validate()
    layer = layer or layer_here()
    folder = os.path.realpath(tempfile.mkdtemp(prefix="mtp_jax-sandbox-"))
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/box" if layer == "mounts" else folder,
                   "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = environment["HOME"]
    job = {"source": source, "mode": mode, "layer": layer, "folder": folder, "environment": environment,
           **asdict(limits), **_places()}
    process = subprocess.Popen([sys.executable, "-s", "-S", "-P", "-c", _START, str(pathlib.Path(__file__).parent),
                                folder],  # the last tells people whose processes these are
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder,
                               env=environment, start_new_session=True, bufsize=0)
    assert process.stdin is not None and process.stdout is not None  # they are pipes
    inbox, outbox = process.stdout.fileno(), process.stdin.fileno()
    try:
        with contextlib.suppress(wire.Ended):  # then it answers nothing either
            wire.send(outbox, job)

        def talk(message: Mapping[str, Any]) -> Verdict:
            with contextlib.suppress(wire.Ended):  # it ended, and may have said why
                wire.send(outbox, message)
            try:
                if not select.select([inbox], [], [], limits.seconds + _GRACE)[0]:
                    return Verdict("timeout", "the sandbox did not answer")
                answer = wire.receive(inbox, 8 * limits.output)
            except wire.Ended:
                return Verdict("ended", "the sandbox was killed")
            if answer["outcome"] == "unavailable":
                raise ValueError(f"{layer}: {answer['detail']}")
            return Verdict(**answer)

        yield talk
    finally:
        _end(process)
        leavings.empty(folder)
        os.rmdir(folder)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends every process of a sandbox and returns when none is left."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()  # the checker ends when nobody talks to it
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # no call to leave the group is open to a program
        except ProcessLookupError:
            break
        process.poll()
        time.sleep(0.001)
    process.wait()


@functools.cache
def _places() -> dict[str, list[str]]:
    """Returns the folders that a program may see: Python's library, the system's, and a few packages."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    above = os.path.dirname(library)
    hidden = [f"{library}/site-packages", f"{library}/dist-packages", "/usr/lib/python3/dist-packages",
              *(path for path in map(os.path.realpath, site.getsitepackages()) if path.startswith(above + "/"))]
    readable = [*_VISIBLE, above]
    # Landlock only adds rights: what is not hidden has to be named one by one.
    single = [path for path in _VISIBLE if path != "/usr/lib" and not os.path.islink(path)]
    for folder, left_out in (("/usr/lib", ("python3",)), (library, ("site-packages", "dist-packages"))):
        if os.path.isdir(folder):
            single += [entry.path for entry in os.scandir(folder) if entry.name not in left_out]
    single += [path for path in map(str, pathlib.Path(above).glob("*.so*")) if os.path.exists(path)]
    packages = []
    for name in _PACKAGES:
        found = util.find_spec(name)
        if found is None or found.origin is None:
            continue
        folder = os.path.dirname(os.path.dirname(os.path.realpath(found.origin)))
        own = [path for path in (f"{folder}/{name}", f"{folder}/{name}.libs") if os.path.isdir(path)]
        packages.append(folder)
        readable += own
        single += own
    there = {"readable": readable, "hidden": hidden, "single": sorted(set(single)), "packages": packages,
             "listed": [library, f"{library}/lib-dynload", *packages]}
    return {kind: [path for path in paths if os.path.exists(path)] for kind, paths in there.items()}
