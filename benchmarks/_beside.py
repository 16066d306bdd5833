"""What benchmarks share that time two things beside each other: worker processes that take turns, and intervals."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """Returns the 90 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.05, 0.95])
    return float(low), float(high)


def serve(work: Callable[[], object], ready: dict[str, Any]) -> None:
    """Runs in the worker: says `ready`, then for every number on stdin works that often, one JSON line each."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(int(line)):
            work()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}), flush=True)


class Worker:
    """A process that runs `serve`, on as many cores as it has threads.

    Args:
      arguments: of `python -m`; the first is the module.
      threads: cores to give it.
    """

    def __init__(self, *arguments: str, threads: int):
        self.name = " ".join(arguments)
        cores = sorted(os.sched_getaffinity(0))[:threads]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"The worker {self.name!r} ended with status {self.process.wait()}.")
        return json.loads(line)

    def turn(self, times: int) -> dict[str, float]:
        """Works `times` times; returns seconds, CPU seconds, and the share of the cores that others took meanwhile."""
        before = _busy_seconds()
        assert self.process.stdin
        print(times, file=self.process.stdin, flush=True)
        run = self._answer()
        others = _busy_seconds() - before - run["cpu_seconds"]
        return {**run, "others": max(0.0, others) / run["seconds"] / (os.cpu_count() or 1)}

    def close(self) -> None:
        """Ends the worker."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def take_turns(workers: dict[str, Worker], times: dict[str, int], pairs: int) -> dict[str, list[dict[str, float]]]:
    """Returns the turns of each worker: one works while the others sleep, and who begins changes."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for pair in range(pairs):
        for name in sorted(workers, reverse=bool(pair % 2)):
            turns[name].append(workers[name].turn(times[name]))
    return turns


def _busy_seconds() -> float:
    """Returns the CPU seconds that this machine has spent on processes since it started."""
    with open("/proc/stat") as file:
        fields = [int(x) for x in file.readline().split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def beside_torch(argv: list[str], work: Callable[[str, int], None],
                 case: Callable[[int, int, float, int], dict[str, Any]]) -> None:
    """Prints a case for each width: what the benchmarks beside PyTorch do as commands.

    Args:
      argv: `--work SIDE WIDTH` in a worker, else --pairs=, --seconds=, --threads=, --d_model=.
      work: (side, width) serves as one side.
      case: (width, pairs, seconds of a turn, threads) measures.
    """
    if argv[:1] == ["--work"]:
        work(argv[1], int(argv[2]))
        return
    options = {"pairs": "9", "seconds": "3", "threads": "2", "d_model": "128,256"}
    for argument in argv:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in options or not value:
            sys.exit(f"error: unknown option {argument!r}; there are --" + "=, --".join(options) + "=")
        options[name] = value
    for d_model in map(int, options["d_model"].split(",")):
        print(json.dumps(case(d_model, int(options["pairs"]), float(options["seconds"]), int(options["threads"]))),
              flush=True)
