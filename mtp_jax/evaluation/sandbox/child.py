"""What runs in the sandbox's own processes; run.py starts it with this folder on the path, so that mtp_jax's other
modules, which take seconds to import, stay out: there is the standard library alone.

    guard      sets the walls up, then only waits
      checker  process 1 of a process namespace: starts the program, asks it, decides; kills what is left by ending
        program  runs the code that nobody trusts, under all limits

The program is forked off before the checker has read what it checks, and holds no descriptor but its own.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NoReturn

import kernel
import leavings
import wire

JOB_BYTES = 1 << 30  # what comes from the harness is bounded by memory alone
_INBOX, _OUTBOX = 60, 61  # descriptors that a function under test is called by
_SENTENCE = 300  # characters of an error's text that are kept


def main() -> None:
    """Is the guard, and the processes forked from it."""
    kernel.die_with_parent()
    inbox, outbox = _move(0), _move(1)
    job = wire.receive(inbox, JOB_BYTES)
    try:
        isolate(job)
    except OSError as error:
        wire.send(outbox, {"outcome": "unavailable", "detail": str(error)})
        return
    kernel.die_with_parent()  # the kernel forgot it when the user changed
    kernel.adopt_orphans()
    if os.fork():
        os.close(inbox)
        os.close(outbox)
        with contextlib.suppress(ChildProcessError):
            while True:  # also the program, where the checker was killed: nothing is left to a process 1 that waits not
                os.wait()
        return
    kernel.die_with_parent()
    kernel.be_unreadable()
    kernel.adopt_orphans()
    kernel.drop_privileges()
    if job["mode"] == "function":
        check_function(job, inbox, outbox)
    run_cases(job, inbox, outbox)


def _move(place: int) -> int:
    """Returns a copy of a descriptor above the usual ones, and puts nothing in its place."""
    copy = os.dup(place)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, place)
    os.close(null)
    return copy


def isolate(job: dict[str, Any]) -> None:
    """Sets up the layer of walls that the job names, before anything of the program is compiled.

    Raises:
      OSError: this machine refuses it.
    """
    os.umask(0o022)
    if job["layer"] == "landlock":
        os.chdir(job["folder"])
        kernel.landlock(readable=job["single"], listed=job["listed"], writable=job["folder"])
        return
    user, group = os.getuid(), os.getgid()
    spaces = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
    owner = None
    try:
        kernel.unshare(spaces)
        owner = 2_000_000_000 + os.getpid()  # nobody's: root is bound by no limit on processes
    except PermissionError:
        kernel.unshare(spaces | kernel.NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    kernel.private_root(job["folder"], readable=job["readable"], hidden=job["hidden"],
                        size=job["file_bytes"], owner=owner)
    if owner is not None:
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)


def become_program(job: dict[str, Any], keep: dict[int, int]) -> None:
    """Makes this process, just forked, the one that may run the program.

    Args:
      job: what to run, and its limits.
      keep: descriptor -> the number it gets; every other one is closed.
    """
    kernel.die_with_parent()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for place, number in keep.items():
        os.dup2(place, number)
    for number in range(3, 256):
        if number not in keep.values():
            with contextlib.suppress(OSError):
                os.close(number)
    cpu = int(job["seconds"]) + 1
    limits = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: job["memory"], resource.RLIMIT_FSIZE: job["file_bytes"],
              resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0}
    if job["layer"] == "mounts":  # else it would count what the user runs elsewhere
        limits[resource.RLIMIT_NPROC] = job["threads"] + 2
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much is an OSError that the program sees
    kernel.filter_calls([os.getpid()], attributes=job["layer"] == "landlock")
    sys.path[:] = sys.path[1:] + job["packages"]
    sys.argv[:] = ["program"]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # what site would have put there
    os.environ.clear()
    os.environ.update(job["environment"])


def run_source(source: str, name: str) -> dict[str, Any]:
    """Runs a program as a module of this name and returns its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # where dataclasses and others look for a class' module
    exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


# A function under test: the program answers calls.

def serve(job: dict[str, Any], inbox: int, outbox: int) -> NoReturn:
    """Is the program: defines what its source defines, then does what the checker asks until it is killed."""
    held: list[Any] = []
    numbers: dict[int, int] = {}

    def refer(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(held)
            held.append(value)
        return numbers[id(value)]

    def do(what: str, *rest: Any) -> Any:
        if what == "name":
            return [rest[0] in names, refer(names.get(rest[0]))]
        target, *given = (wire.decode(tree, held.__getitem__) for tree in rest)
        if what == "call":
            return target(*given[0], **given[1])
        return simple[what](target, *given)

    simple: dict[str, Callable[..., Any]] = {"get": getattr, "set": setattr, "iter": iter, "next": next, "len": len,
                                             "bool": bool, "item": lambda owner, key: owner[key]}
    names: dict[str, Any] = {}
    answer: Any = None
    question: Any = None
    while True:
        try:
            if question is None:
                names = run_source(job["source"], "program")
                answer = ["value", None]
            else:
                value = do(*question)
                answer = ["value", value if question[0] == "name" else wire.encode(value, refer)]
        except BaseException as error:  # the checker raises it in its turn
            answer = ["raise", [kind.__name__ for kind in type(error).__mro__], str(error)[:_SENTENCE]]
        wire.send(outbox, answer)
        question = wire.receive(inbox, JOB_BYTES)


class Remote:
    """Stands, in the checker, for an object that the program keeps: a class, a generator, a node of a tree.

    It is equal to itself alone, and has no order: a program cannot answer a comparison.
    """

    __slots__ = ("_ask", "_number")

    def __init__(self, ask: Any, number: int):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):  # what libraries ask for; numpy reads memory by one of them
            raise AttributeError(f"a test cannot ask the program for {name}")
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", self, key)

    def __iter__(self) -> Any:
        return self._ask("iter", self)

    def __next__(self) -> Any:
        return self._ask("next", self)

    def __len__(self) -> Any:
        return self._ask("len", self)

    def __bool__(self) -> Any:
        return self._ask("bool", self)


class ProgramError(Exception):
    """The program raised something of its own making."""


def check_function(job: dict[str, Any], inbox: int, outbox: int) -> NoReturn:
    """Is the checker of a function: forks the program, then reads the test and runs it against what it answers."""
    questions, answers = os.pipe(), os.pipe()
    program = os.fork()
    if not program:
        become_program(job, {questions[0]: _INBOX, answers[1]: _OUTBOX})
        serve(job, _INBOX, _OUTBOX)
    os.close(questions[0])
    os.close(answers[1])

    def finish(outcome: str, detail: str = "") -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        os.kill(program, signal.SIGKILL)
        _, status = os.waitpid(program, 0)
        if outcome == "ended" and os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            detail = f"signal {os.WTERMSIG(status)}"
        wire.send(outbox, {"outcome": outcome, "detail": detail[:_SENTENCE]})
        os._exit(0)

    signal.signal(signal.SIGALRM, lambda *_: finish("timeout"))
    signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (int(job["seconds"]) + 1,) * 2)  # where one step takes all the time
    kernel.filter_calls([os.getpid(), program], attributes=True)
    known: dict[int, Remote] = {}

    def find(number: int) -> Remote:
        return known.setdefault(number, Remote(ask, number))

    def refer(value: Any) -> int:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_number")
        raise wire.NotData(f"a test passes a {type(value).__name__}, which is neither data nor the program's")

    def listen() -> Any:
        kind, *rest = wire.receive(answers[0], job["output"])
        if kind == "value":
            return rest[0]
        found = [getattr(builtins, name, None) for name in rest[0] if isinstance(name, str)]
        for error in found:
            if isinstance(error, type) and issubclass(error, Exception) and error is not Exception:
                try:
                    known_error = error(str(rest[1]))
                except TypeError:
                    continue  # one that takes more than a text
                raise known_error
        raise ProgramError(f"{str(rest[0][0])[:60]}: {str(rest[1])[:_SENTENCE]}")

    def ask(what: str, *rest: Any) -> Any:
        try:
            wire.send(questions[1], [what, *(wire.encode(value, refer) for value in rest)])
            return wire.decode(listen(), find)
        except wire.Ended:
            finish("ended")  # at once: a test may catch everything
        except StopIteration as error:
            if what == "next":
                raise
            raise RuntimeError("the program raised StopIteration") from error  # else it would end a test's map()

    try:
        listen()  # the program has run to its end
        check = wire.receive(inbox, JOB_BYTES)
        namespace: dict[str, Any] = {"__name__": "check"}
        exec(compile(check["prelude"], "<prelude>", "exec", dont_inherit=True), namespace)
        for name in check["names"]:
            wire.send(questions[1], ["name", name])
            there, number = listen()
            namespace.pop(name, None)
            if there is True:
                namespace[name] = find(int(number))
        exec(compile(check["test"], "<test>", "exec", dont_inherit=True), namespace)
    except AssertionError as error:
        finish("failed", str(error))
    except (wire.Ended, SystemExit):
        finish("ended")
    except Exception as error:  # the test's, the program's, or an answer that is none
        finish("error", f"{type(error).__name__}: {error}")
    finish("passed")


# A program that reads and writes text: the expected output stays with the harness.

def run_cases(job: dict[str, Any], inbox: int, outbox: int) -> None:
    """Is the checker of a whole program: forks it once for each input that comes, and sends back what it wrote.

    Returns only in the program.
    """
    while True:
        try:
            case = wire.receive(inbox, JOB_BYTES)
        except wire.Ended:
            os._exit(0)  # the harness has heard enough
        text = os.memfd_create("input")
        with open(os.dup(text), "wb") as file:
            file.write(case["input"].encode())
        os.lseek(text, 0, os.SEEK_SET)
        reads, writes = os.pipe()
        program = os.fork()
        if not program:
            del case
            become_program(job, {text: 0, writes: 1})
            run_source(job["source"], "__main__")
            return  # and end as programs end: threads, what is to be done at exit, buffers
        os.close(text)
        os.close(writes)
        wire.send(outbox, _follow(job, program, reads))
        os.close(reads)
        leavings.empty(os.getcwd())  # so that no input's run sees another's


def _follow(job: dict[str, Any], program: int, reads: int) -> dict[str, Any]:
    """Reads what a program writes until it ends or breaks a limit."""
    deadline = time.monotonic() + job["seconds"]
    parts, size, outcome = [], 0, ""
    while not outcome:
        ready, _, _ = select.select([reads], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(reads, 1 << 16) if ready else b""
        parts.append(part)
        size += len(part)
        if not ready or time.monotonic() > deadline:
            outcome = "timeout"
        elif size > job["output"]:
            outcome = "output"
        elif not part:
            break
    status = None
    while not outcome and status is None:
        done, code = os.waitpid(program, os.WNOHANG)
        if done:
            status = code
        elif time.monotonic() > deadline:
            outcome = "timeout"
        else:
            time.sleep(0.0005)
    if status is None:
        os.kill(program, signal.SIGKILL)
        os.waitpid(program, 0)
    elif os.WIFSIGNALED(status):
        outcome = "timeout" if os.WTERMSIG(status) == signal.SIGKILL else "ended"  # the limit on CPU time kills
    elif status:
        outcome = "error"
    detail = f"status {os.waitstatus_to_exitcode(status)}" if status else ""
    output = b"".join(parts)[:job["output"]].decode(errors="replace") if not outcome else ""
    return {"outcome": outcome or "passed", "detail": detail, "output": output}
