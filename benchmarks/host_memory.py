"""Question: does a host of several hold the whole model, when a run starts, saves or goes on from a checkpoint?

Starts a run of four processes (gloo, one CPU device each, fsdp:4) with a model of which parameters and AdamW's moments
are at least 1.2 GB, saves it, and starts again from that checkpoint: with four processes, with two on tensor:2, with
two on data:2 (each then holds all of it, as asked) and with one. The same is done with a tiny model of as many layers,
and each process is compared with its twin there. `peak` is VmHWM of /proc/self/status, the most that the process had
in memory at any time since its birth: imports, compiling and what was freed again included. At a save it is the most
since the save began. No train step is taken: its temporaries are those of `benchmarks.train_memory`.

The target for four processes, at start and at restore: every process grows over its twin by at most 1.2 times a quarter
of the state plus 200 MB. CPU seconds are of all threads of a process, and feel other work on the machine less.

    python -m benchmarks.host_memory [--d_model=1024] [--num_layers=8] [--directory=DIR]

Prints one JSON line a case. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED_RATIO, ALLOWED_BYTES = 1.2, 200e6
TINY = 64  # D of the model that is compared with
BOUNDED = 4  # processes that the target is for
# (what, processes, mesh): the first makes the checkpoint that the others read.
CASES = (("start", 4, "fsdp:4"), ("restore", 4, "fsdp:4"), ("restore", 2, "fsdp:1,tensor:2"),
         ("restore", 2, "data:2"), ("restore", 1, "data:1"))


def memory(name: str) -> int:
    """Returns VmHWM (the peak) or VmRSS of this process, bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


class Clock:
    """Time since it was made, of the wall and of all threads of this process."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Returns {"seconds", "cpu_seconds"}."""
        return {"seconds": time.perf_counter() - self._start[0], "cpu_seconds": time.process_time() - self._start[1]}


def work(task: dict[str, Any]) -> None:
    """One process: makes or reads the state as training does, prints what it took, and saves a new state."""
    from mtp_jax.config import from_dict
    from mtp_jax.parallel import distributed, host_memory

    host_memory.keep_freed_memory()
    config = from_dict({
        "model": {"num_heads": 2, "num_layers": task["num_layers"], "d_model": task["d_model"]},
        "data": {"source": "files", "path": task["corpus"], "batch_size": 4, "seq_len": 64},
        "parallel": {"mesh": task["mesh"], "start_timeout_seconds": 60}, "logging": {"compile_cache": "off"}})
    distributed.start(config.parallel, coordinator_address=task["address"], num_processes=task["processes"],
                      process_id=task["process"])
    import jax

    from mtp_jax.checkpoints import Checkpointer
    from mtp_jax.training import prepare
    from mtp_jax.training import workdir as workdirs

    run = prepare.prepare(config, task["workdir"])
    with Checkpointer(run.workdir / workdirs.CHECKPOINTS, config.checkpoint) as checkpointer:
        before = memory("VmRSS")
        clock = Clock()
        state, step, _ = run.initial_state(checkpointer)
        jax.block_until_ready(state)
        took = clock.read()
        if step != (1 if task["what"] == "restore" else 0):
            raise RuntimeError(f"{task['what']} is at step {step}")
        found = {"process": task["process"], "peak": memory("VmHWM"), "before": before, "resident": memory("VmRSS"),
                 **took, "parameters": run.program.spec.num_params,
                 "state": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
                 "share": sum(shard.data.nbytes for leaf in jax.tree.leaves(state)
                              for shard in leaf.addressable_shards)}
        if task["what"] == "start":
            if run.is_first_process:
                workdirs.write_config(run.workdir, run.config, corpus_hash=run.corpus.hash,
                                      tokenizer_hash=run.corpus.tokenizer.hash)
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
            clock = Clock()
            checkpointer.save(1, state, {"data": {"next_row": 4}})
            checkpointer.wait()
            found |= {"save_peak": memory("VmHWM"), **{f"save_{name}": value for name, value in clock.read().items()}}
    print(json.dumps(found))


def start(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs the processes of a case to their end; returns what each found."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        task = {**task, "address": f"localhost:{free.getsockname()[1]}"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    running = [subprocess.Popen([sys.executable, "-m", "benchmarks.host_memory",
                                 f"--task={json.dumps({**task, 'process': number})}"],
                                env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
               for number in range(task["processes"])]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    if any(process.returncode for process in running):
        raise RuntimeError(f"{task}: a process ended with status {[process.returncode for process in running]}")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def line(what: str, mesh: str, big: list[dict], tiny: list[dict], prefix: str = "") -> dict[str, Any]:
    """Returns the JSON of one case from what the processes and their twins found."""
    growth = max(one[f"{prefix}peak"] - other[f"{prefix}peak"] for one, other in zip(big, tiny, strict=True))
    allowed = ALLOWED_RATIO * big[0]["state"] / BOUNDED + ALLOWED_BYTES
    target = {"allowed_mb": round(allowed / 1e6, 1), "met": growth <= allowed} if len(big) == BOUNDED else {}
    return {"benchmark": "host_memory", "case": what, "processes": len(big), "mesh": mesh,
            "params": big[0]["parameters"], "state_mb": round(big[0]["state"] / 1e6, 1),
            "share_mb": round(max(one["share"] for one in big) / 1e6, 1),
            "tiny_peak_mb": round(max(one[f"{prefix}peak"] for one in tiny) / 1e6, 1),
            "peak_mb": round(max(one[f"{prefix}peak"] for one in big) / 1e6, 1),
            "growth_mb": round(growth / 1e6, 1), **target,
            **{name: round(max(one[f"{prefix}{name}"] for one in big), 2) for name in ("seconds", "cpu_seconds")}}


def measure(directory: pathlib.Path, d_model: int, num_layers: int, cases: Sequence[tuple[str, int, str]] = CASES
            ) -> Iterator[dict[str, Any]]:
    """Runs all cases with the model and its tiny twin; yields a JSON object a case."""
    corpus = directory / "corpus"
    corpus.mkdir()
    for number in range(8):
        (corpus / f"{number}.txt").write_text(f"document {number} says what {number + 1} said before\n" * 40)
    for what, processes, mesh in cases:
        big, tiny = (start({"what": what, "processes": processes, "mesh": mesh, "d_model": size, "corpus": str(corpus),
                            "num_layers": num_layers, "workdir": str(directory / str(size))})
                     for size in (d_model, TINY))
        yield line(what, mesh, big, tiny)
        if what == "start":
            yield line("save", mesh, big, tiny, "save_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d_model", type=int, default=1024, help="D of the model")
    parser.add_argument("--num_layers", type=int, default=8, help="layers of both models")
    parser.add_argument("--directory", default=None, help="where checkpoints lie; default: the temporary folder")
    parser.add_argument("--task", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        work(json.loads(arguments.task))
        return
    directory = pathlib.Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        for case in measure(directory, arguments.d_model, arguments.num_layers):
            print(json.dumps({**case, "machine": platform.machine(), "cores": os.cpu_count(),
                              "load_average": round(os.getloadavg()[0], 2)}), flush=True)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
