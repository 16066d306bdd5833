"""Starts a run of several processes on this machine, watches them, and starts them again where one was killed.

    python -m launch.local --processes=2 --experiment=NAME --workdir=DIR [--config.PATH=VALUE ...]

Each process is `python -m experiments.NAME`; what is no flag of this command is passed on to it. On CPU a process has
one device, or --devices_per_process. Where nvidia-smi finds GPUs they are dealt out evenly; JAX_PLATFORMS=cpu leaves
them alone. Lines begin with the number of their process: all that process 0 prints, and the errors of the others.

Ctrl-C and SIGTERM are passed on once: all processes save the same step and end. A second Ctrl-C kills them.

Exit status: 0 all steps done; 75 saved and unfinished, after SIGTERM; 130 the same after Ctrl-C; 1 an error, or a
process was killed.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TextIO

from absl import flags

from launch.job import experiment_module

DONE, ERROR, UNFINISHED, INTERRUPTED = 0, 1, 75, 130  # of a process and of this command
_POLL_SECONDS = 0.05
_NOISE = re.compile(r"\[Gloo\] Rank")
_STACKS = re.compile(r"\*\*\* Check failure stack trace|Fatal Python error: Aborted")  # nothing else comes after them
_OF_A_RUN = ("dry_run", "coordinator_address", "num_processes", "process_id")  # flags of mtp_jax.train
_DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=\d+")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is started, and how often.

    Attributes:
      command: argv of every process.
      processes: how many.
      devices_per_process: fake devices of a process on CPU.
      max_restarts: how often all are started again.
      restart_delay_seconds: pause before that.
      grace_seconds: how long the others may take to end by themselves after one has died.
    """

    command: tuple[str, ...]
    processes: int = 2
    devices_per_process: int = 1
    max_restarts: int = 0
    restart_delay_seconds: float = 1.0
    grace_seconds: float = 30.0

    def validate(self) -> None:
        """Raises ValueError where a number is too small."""
        for name, least in (("processes", 1), ("devices_per_process", 1), ("max_restarts", 0),
                            ("restart_delay_seconds", 0), ("grace_seconds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least {least}.")


class Launcher:
    """Starts the processes of a run and waits for them.

    Args:
      options: validated.
    """

    def __init__(self, options: Options):
        self._options = options
        self._stop: int | None = None  # the first signal that asked to stop
        self._kill = False
        self._told = False  # the processes were told to stop
        self._printing = threading.Lock()

    def run(self) -> int:
        """Runs to the end, with as many restarts as there may be; returns the exit status."""
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._run()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        """See `run`."""
        restarts = 0
        while True:
            status, again = self._once()
            if not again or self._stop is not None or restarts >= self._options.max_restarts:
                if again and self._stop is None and self._options.max_restarts:
                    self._say(f"all {self._options.max_restarts} restarts are used.")
                return status
            restarts += 1
            self._say(f"starting all processes again, restart {restarts} of {self._options.max_restarts}; the run goes "
                      "on from its last checkpoint.")
            until = time.monotonic() + self._options.restart_delay_seconds
            while time.monotonic() < until and self._stop is None:
                time.sleep(_POLL_SECONDS)
            if self._stop is not None:
                return INTERRUPTED if self._stop == signal.SIGINT else UNFINISHED

    def _once(self) -> tuple[int, bool]:
        """Starts all processes once; returns the exit status and whether another start may help."""
        processes = self._start()
        readers = [threading.Thread(target=self._pass_on, args=(number, stream, stream is process.stderr), daemon=True)
                   for number, process in enumerate(processes) for stream in (process.stdout, process.stderr)]
        for reader in readers:
            reader.start()
        try:
            died = self._watch(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        for reader in readers:
            reader.join(timeout=5.0)
        statuses = [process.returncode for process in processes]
        if died is not None:
            return ERROR, statuses[died] < 0
        if self._stop is not None and any(statuses):
            return (INTERRUPTED if self._stop == signal.SIGINT else UNFINISHED), False
        return max(statuses), max(statuses) == UNFINISHED

    def _start(self) -> list[subprocess.Popen]:
        """Starts the processes, each in a session of its own: Ctrl-C in a terminal reaches this command alone."""
        options = self._options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        processes: list[subprocess.Popen] = []
        environments = [environment(number, options, address, os.environ) for number in range(options.processes)]
        for each in environments:
            processes.append(subprocess.Popen(options.command, env=each, stdin=subprocess.DEVNULL, text=True,
                                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
                                              start_new_session=True))
        self._say(f"started {options.processes} processes: "
                  + ", ".join(f"{number} is pid {process.pid}" for number, process in enumerate(processes)))
        return processes

    def _watch(self, processes: Sequence[subprocess.Popen]) -> int | None:
        """Waits until all have ended; returns the number of the one that died first, or None if none did."""
        died: int | None = None
        deadline = float("inf")
        running = set(range(len(processes)))
        self._told = False
        while running:
            ended = sorted((number for number in running if processes[number].poll() is not None),
                           key=lambda number: _rank(processes[number].returncode))
            for number in ended:
                running.discard(number)
                status = processes[number].returncode
                if died is None and not self._is_fine(status):
                    died, deadline = number, time.monotonic() + self._options.grace_seconds
                    self._say(f"process {number} (pid {processes[number].pid}) {_ending(status)}"
                              + (f"; the others cannot go on without it and have {self._options.grace_seconds:g} s to "
                                 "end." if running else "."))
            if self._stop is not None and not self._told:
                self._told = True
                self._say(f"{signal.Signals(self._stop).name}: the processes save and end.")
                _signal(processes, running, signal.SIGTERM)
            if running and (self._kill or time.monotonic() > deadline):
                self._say(f"killing process {', '.join(map(str, sorted(running)))}.")
                _signal(processes, running, signal.SIGKILL)
                deadline, self._kill = float("inf"), False
            time.sleep(_POLL_SECONDS)
        return died

    def _is_fine(self, status: int) -> bool:
        """Tells whether a process ended as it should."""
        stopped = self._told and status in (-signal.SIGTERM, -signal.SIGKILL)  # before it could save, or by us
        return stopped or status in (DONE, UNFINISHED, INTERRUPTED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals to this command."""
        del frame
        self._kill = self._stop is not None and number == signal.SIGINT
        self._stop = self._stop or number

    def _pass_on(self, number: int, stream, is_error: bool) -> None:
        """Prints what a process says."""
        out = sys.stderr if is_error else sys.stdout
        shown = number == 0 or is_error
        with stream:
            for line in stream:  # to the end, for a full pipe would stop the process
                shown = shown and not _STACKS.match(line)
                if shown and not _NOISE.match(line):
                    self._print(f"[{number}] {line.rstrip()}", out)

    def _say(self, text: str) -> None:
        """Prints a word of this command's own."""
        self._print(f"launch.local: {text}", sys.stderr)

    def _print(self, text: str, out: TextIO) -> None:
        """Prints a line. Where nobody reads any more (`| head`) it is lost, like all after it, and the run goes on."""
        with self._printing:
            try:
                print(text, file=out, flush=True)
            except BrokenPipeError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, out.fileno())  # also for what Python still holds and writes at its end
                os.close(nowhere)


def environment(number: int, options: Options, address: str, own: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a process.

    Args:
      number: the process's, from 0.
      options: of the launch.
      address: HOST:PORT of process 0.
      own: this command's environment.

    Raises:
      ValueError: there are fewer GPUs than processes, or they cannot be dealt out evenly.
    """
    made = {**own, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(options.processes),
            "JAX_PROCESS_ID": str(number), "PYTHONUNBUFFERED": "1",
            "MTP_JAX_COMMAND": shlex.join(["python", "-m", "launch.local", *sys.argv[1:]])}
    found = gpus(own)
    if found:
        share, left = divmod(len(found), options.processes)
        if left:
            raise ValueError(f"--processes={options.processes}: {len(found)} GPUs cannot be dealt out evenly; choose a "
                             "divisor of it, name some in CUDA_VISIBLE_DEVICES, or set JAX_PLATFORMS=cpu.")
        made["CUDA_VISIBLE_DEVICES"] = ",".join(found[number * share : (number + 1) * share])
        return made
    made.setdefault("JAX_PLATFORMS", "cpu")
    rest = _DEVICE_COUNT.sub("", own.get("XLA_FLAGS", "")).strip()
    count = f"--xla_force_host_platform_device_count={options.devices_per_process}"
    made["XLA_FLAGS"] = f"{rest} {count}".strip() if options.devices_per_process > 1 else rest
    return made


def gpus(own: Mapping[str, str]) -> list[str]:
    """Returns the GPUs that the processes may use, by CUDA_VISIBLE_DEVICES or else nvidia-smi."""
    if own.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in own:
        return [name for name in own["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def _signal(processes: Sequence[subprocess.Popen], numbers: collections.abc.Set[int], what: int) -> None:
    """Sends a signal to those processes."""
    for number in numbers:
        processes[number].send_signal(what)


def _rank(status: int) -> int:
    """Orders processes that ended at about the same time: one that was killed before those that fell with it."""
    return 2 if status == -signal.SIGABRT else 0 if status < 0 else 1


def _ending(status: int) -> str:
    """Returns how a process ended, in words."""
    if status == -signal.SIGABRT:
        return "was ended by SIGABRT, with which JAX ends a process when another one gives no sign of life"
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"was killed by {name}"
    return f"ended with status {status}"


def parse(argv: Sequence[str]) -> Options | str:
    """Returns the options that a command line tells, or the page of --help.

    Raises:
      ValueError: a flag is missing, has a wrong value, or is nearly one of this command.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("experiment", "", "Name of the experiment, such as paper for experiments/paper.py.",
                        flag_values=values)
    flags.DEFINE_string("workdir", "", "Folder of the run.", flag_values=values)
    told = (("processes", "Processes of the run."),
            ("devices_per_process", "Devices of a process on CPU; above 1 they are fake ones that share its cores."),
            ("max_restarts", "How often all processes are started again, after one was killed or was told to stop by "
             "another than this command. An error that a process tells (status 1) is not tried again."))
    for name, text in told:
        flags.DEFINE_integer(name, getattr(Options, name), text, flag_values=values)
    for name, text in (("restart_delay_seconds", "Pause before a restart."),
                       ("grace_seconds", "How long the others may take to end by themselves after one has died.")):
        flags.DEFINE_float(name, getattr(Options, name), text, flag_values=values)
    if {"--help", "-h", "-help", "-?"} & set(argv[1:]):
        return f"{__doc__}\nFlags:\n{values.get_help()}"
    try:
        rest = values(list(argv), known_only=True)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error
    _check_names(rest, list(values))
    for name in ("experiment", "workdir"):
        if not values[name].value:
            raise ValueError(f"--{name} is needed, such as "
                             f"{'--experiment=code_bytes' if name == 'experiment' else '--workdir=runs/two'}.")
    names = [field.name for field in dataclasses.fields(Options) if field.name != "command"]
    command = (sys.executable, "-m", experiment_module(values.experiment), f"--workdir={values.workdir}", *rest)
    options = Options(command, **{name: values[name].value for name in names})
    options.validate()
    return options


def _check_names(rest: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError where a flag for the processes is nearly one of this command, before they start."""
    for argument in rest:
        found = re.match(r"--?([a-z]\w*)(=|$)", argument)  # --config.PATH is none
        if found and found[1] not in _OF_A_RUN and (near := difflib.get_close_matches(found[1], known, 1, 0.75)):
            raise ValueError(f"{argument}: neither this command nor a run has such a flag. Did you mean --{near[0]}?")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    try:
        options = parse(argv)
        if isinstance(options, str):
            print(options)
            return DONE
        return Launcher(options).run()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv))
