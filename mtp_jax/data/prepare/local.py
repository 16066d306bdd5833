"""Preparing a corpus with the processes of this machine."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mtp_jax import files
from mtp_jax.data.manifest import Manifest
from mtp_jax.data.prepare.folder import begin, finish, finished, sweep, tidy
from mtp_jax.data.prepare.plan import Plan, Settings, Shard
from mtp_jax.data.prepare.progress import Progress
from mtp_jax.data.prepare.shard import WORK, Dropped, digests, find_duplicates, replacing, write_shard

DUPLICATES = "duplicates.json"  # in WORK: what the pass that looks for them found
POLL_SECONDS = 0.2


class WorkerDied(RuntimeError):
    """A worker process ended without a word."""


def prepare(plan: Plan, output: str | os.PathLike[str], *, processes: int | None = None) -> Manifest:
    """Writes a prepared corpus, or goes on with one that was stopped; the result does not depend on either.

    Worker processes are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
      plan: of the corpus.
      output: folder to write; may lie in a bucket.
      processes: that read and tokenize; None: one a core.

    Returns:
      The manifest; also of a folder that was finished before.

    Raises:
      ValueError: the source or a document of it cannot be used, or the folder is of another corpus.
      OSError: the disk is full, or the folder cannot be written. What is done stays.
      WorkerDied: a worker process was killed. What is done stays.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"--processes={processes} must be 1 or more.")
    done = finished(plan, output)
    if done is not None:
        tidy(output)  # it may have been stopped between the two
        return done
    with alone(output):
        shards = begin(plan, output)
        processes = processes or os.cpu_count() or 1
        dropped: dict[int, frozenset[int]] = {}
        if plan.settings.config.drop_duplicates and shards:
            dropped = _duplicates(plan, output, processes)
        tasks = [(shard, {piece.number: dropped[piece.number] for piece in shard.pieces if piece.number in dropped})
                 for shard in shards]
        with Progress("tokenizing", total=plan.size) as progress:
            left = sum(shard.size for shard in shards)
            try:
                for _ in _run(_write, [(plan.settings, shard, drop, output) for shard, drop in tasks], processes,
                              lambda size: progress.update(plan.size - left + size)):
                    pass
            finally:
                sweep(output)  # after what workers had begun when another failed
        return finish(plan, output)


def _duplicates(plan: Plan, output: Any, processes: int) -> dict[int, frozenset[int]]:
    """Returns the documents to leave out; found once, then kept beside the shards."""
    from etils import epath

    path = epath.Path(output) / WORK / DUPLICATES
    if not path.exists():
        found: dict[int, bytes] = {}
        with Progress("looking for duplicates", total=plan.size) as progress:
            for part in _run(_digest, [(plan.settings, shard) for shard in plan.shards], processes, progress.update):
                found.update(part)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({number: sorted(places) for number, places in
                                             find_duplicates(found).items()}))
    return {int(number): frozenset(places) for number, places in json.loads(path.read_text()).items()}


def _run(task: Callable[..., Any], arguments: Sequence[tuple], processes: int,
         show: Callable[[int], None]) -> Iterator[Any]:
    """Yields the results of `task(*one)` of all arguments as they come, computed in worker processes.

    Args:
      task: function at the top level of a module.
      arguments: of each call.
      processes: to start, at most.
      show: is called with the bytes of the source that are done.

    Raises:
      WorkerDied: a process was killed.
      Exception: what a task raised; the others are then stopped.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    before = set(multiprocessing.active_children())
    executor = futures.ProcessPoolExecutor(max(min(processes, len(arguments)), 1), context, _start_worker, (counter,))
    try:
        # Ctrl-C reaches all processes of a terminal. Workers inherit what is blocked here; the parent ends them.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting = {executor.submit(task, *one) for one in arguments}  # starts them
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        while waiting:
            done, waiting = futures.wait(waiting, POLL_SECONDS, futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
            show(counter.value)
        executor.shutdown()
    except BrokenProcessPool as error:
        raise WorkerDied("a worker process was killed, most often because memory ran out (each holds about five times "
                         "the text of a shard): run the same command again, with fewer --processes.") from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
            process.join()


_COUNTER: Any = None  # of a worker process: bytes of the source that all workers have done


def _start_worker(counter: Any) -> None:
    """Makes a worker process end with its parent, however that ends, and only then."""
    global _COUNTER
    _COUNTER = counter
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is a process for every core
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def exit_with(parent: Any) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _report(size: int) -> None:
    with _COUNTER.get_lock():
        _COUNTER.value += size


def _write(settings: Settings, shard: Shard, dropped: Dropped, output: Any) -> None:
    write_shard(settings, shard, dropped, output, _report)


def _digest(settings: Settings, shard: Shard) -> dict[int, bytes]:
    return digests(settings, shard, _report)


def alone(output: Any) -> contextlib.AbstractContextManager[tuple[int, ...]]:
    """Makes the folder, and keeps a second command out of it while this one writes.

    Raises:
      ValueError: another command is writing, or the folder is a file.
    """
    return files.alone(output, flag="--output", other="command",
                       busy="is being written by another command: wait for it, or name another folder.")
