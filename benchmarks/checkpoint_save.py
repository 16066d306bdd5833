"""Question: for how long does saving a checkpoint stop the training loop?

Saves the state of a model of at least 100 MB (three times that with AdamW's moments) in pairs, one asynchronous and one
synchronous, in turns, so that both see the same machine. `blocked` is the time until `Checkpointer.save` returns; an
asynchronous save is waited for outside it before the next one starts. The target is a median of at most 5 % of a
synchronous save. On a CPU the writer reads the state's own buffers, and the next step copies what it cannot take over:
`next_step` beside `plain_step` shows what that and the writing threads cost a step that only touches the whole state.

    python -m benchmarks.checkpoint_save [--megabytes=100] [--pairs=10] [--directory=DIR]

Prints one JSON line a save kind, then one with their ratio.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import pathlib
import platform
import shutil
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import optax

from mtp_jax.checkpoints import Checkpointer
from mtp_jax.config import CheckpointConfig

TARGET = 0.05


def make_state(megabytes: int) -> dict:
    """Returns parameters of at least `megabytes` and AdamW's moments, of random floats (hard to compress)."""
    layers, width = 8, 512
    depth = math.ceil(megabytes * 1e6 / 4 / (layers * width * width))
    keys = jax.random.split(jax.random.key(0), layers)
    params = {f"layer_{i}": jax.random.normal(key, (depth, width, width)) for i, key in enumerate(keys)}
    opt_state = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape, x.dtype) if x.ndim else x,
                             optax.adamw(1e-3).init(params))
    return {"step": jnp.int32(0), "params": params, "opt_state": opt_state}


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state: dict) -> dict:
    """Changes every array and takes over its buffer, as training does."""
    return jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)


def timed_step(state: dict) -> tuple[float, dict]:
    """Returns the seconds of one step, and the state after it."""
    start = time.perf_counter()
    state = jax.block_until_ready(train_step(state))
    return time.perf_counter() - start, state


def measure(directory: pathlib.Path, state: dict, *, asynchronous: bool) -> tuple[dict[str, float], dict]:
    """Saves once, takes a step that donates the buffers being written, and waits; returns seconds, and the state."""
    with Checkpointer(directory, CheckpointConfig(keep_last=1, asynchronous=asynchronous)) as checkpointer:
        checkpointer.save(1, {"tiny": jnp.zeros(())}, {})  # makes the manager, as a run's first save does
        checkpointer.wait()
        plain, state = timed_step(state)
        start = time.perf_counter()
        checkpointer.save(2, state, {"row": 2})
        blocked = time.perf_counter() - start
        following, state = timed_step(state)
        checkpointer.wait()
        whole = time.perf_counter() - start
    return {"blocked": blocked, "good_after": whole, "plain_step": plain, "next_step": following}, state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100, help="least size of the parameters, 10^6 bytes")
    parser.add_argument("--pairs", type=int, default=10, help="saves of each kind")
    parser.add_argument("--directory", default=None, help="where to write; default: the temporary folder")
    arguments = parser.parse_args()
    state = train_step(make_state(arguments.megabytes))
    size, params = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (state, state["params"]))
    times: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    root = pathlib.Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        for pair in range(arguments.pairs + 1):
            for asynchronous in (True, False) if pair % 2 else (False, True):
                directory = root / f"{pair}-{asynchronous}"
                seconds, state = measure(directory, state, asynchronous=asynchronous)
                shutil.rmtree(directory)
                if pair:  # the first pair warms up
                    times[asynchronous].append(seconds)
    finally:
        shutil.rmtree(root)
    for asynchronous, cases in times.items():
        medians = {f"{name}_seconds_median": round(statistics.median(case[name] for case in cases), 4)
                   for name in cases[0]}
        print(json.dumps({"benchmark": "checkpoint_save", "asynchronous": asynchronous, "params_bytes": params,
                          "state_bytes": size, "saves": len(cases), **medians,
                          "blocked_seconds_max": round(max(case["blocked"] for case in cases), 4)}))
    ratio = (statistics.median(case["blocked"] for case in times[True])
             / statistics.median(case["blocked"] for case in times[False]))
    print(json.dumps({
        "benchmark": "checkpoint_save", "ratio": round(ratio, 4), "target": TARGET, "met": ratio <= TARGET,
        "platform": jax.default_backend(), "machine": platform.machine(), "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2), "jax": jax.__version__}))


if __name__ == "__main__":
    main()
