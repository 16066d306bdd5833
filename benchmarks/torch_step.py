"""Tokens per second of our train step beside PyTorch's, on CPU.

    python -m benchmarks.torch_step [--pairs=9] [--seconds=3] [--threads=2] [--d_model=128,256]

In an environment with torch and transformers (the extra `interop`). Prints one JSON line a case: n = 1, fp32, 6 layers,
B 16, L 256, V 256, AdamW and clipping, against LlamaForCausalLM with its default attention. Each side has a process of
its own, set up as its users run it, and they take turns: one works while the other sleeps. A pair is a turn of each,
right after each other; the ratio is the median over pairs, the interval a bootstrap of it. `others_busy` is the share
of the cores that other processes took meanwhile: where it is not near 0, the figures are not worth much (PyTorch's
threads wait for each other by spinning, and lose more than ours where cores are contended). On a busy machine,
--threads=1 and the ratio by CPU time say more.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LAYERS, ATTENTION_HEADS, B, L, V = 6, 4, 16, 256, 256


def jax_step(d_model: int) -> Callable[[], float]:
    """Returns a function that runs one step of the package's own training program and returns the loss."""
    from mtp_jax.parallel.host_memory import keep_freed_memory

    keep_freed_memory()  # as the train command does, before JAX starts

    import jax

    from mtp_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
    from mtp_jax.training.program import build_program

    config = Config(
        model=ModelConfig(num_heads=1, num_layers=LAYERS, d_model=d_model, num_attention_heads=ATTENTION_HEADS,
                          d_ff=3 * d_model, vocab_size=V),
        data=DataConfig(batch_size=B, seq_len=L),
        optimizer=OptimizerConfig(schedule="constant", warmup_steps=0))
    config.validate()
    program = build_program(config, jax.devices()[:1])
    tokens = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
    batch = program.put({"tokens": tokens, "segments": np.ones((B, L), np.int32),
                         "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1))})
    state = program.init(jax.random.key(0))

    def step() -> float:
        nonlocal state
        state, metrics = program.train_step(state, batch)
        return float(metrics.loss)

    return step


def torch_step(d_model: int) -> Callable[[], float]:
    """Returns a function that runs one step of a plain PyTorch loop and returns the loss."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=d_model, intermediate_size=3 * d_model, num_hidden_layers=LAYERS,
        num_attention_heads=ATTENTION_HEADS, num_key_value_heads=ATTENTION_HEADS, max_position_embeddings=L,
        rms_norm_eps=1e-5, tie_word_embeddings=False, use_cache=False)).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, V, (B, L)))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


STEPS = {"jax": jax_step, "torch": torch_step}


def work(side: str, d_model: int) -> None:
    """Runs in a process of its own: for every line "steps" on stdin, one JSON line of what they took."""
    step = STEPS[side](d_model)
    first = step()
    step()
    print(json.dumps({"first_loss": first}), flush=True)
    for line in sys.stdin:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}), flush=True)


class Side:
    """A worker process and what it has measured."""

    def __init__(self, name: str, d_model: int, threads: int, seconds: float):
        self.name = name
        cores = sorted(os.sched_getaffinity(0))[:threads]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.torch_step", "--work", name, str(d_model)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        self.first_loss = self._answer()["first_loss"]
        self.steps = max(1, round(2 * seconds / self._run(2)["seconds"]))

    def _answer(self) -> dict[str, float]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"The worker of {self.name!r} ended with status {self.process.wait()}.")
        return json.loads(line)

    def _run(self, steps: int) -> dict[str, float]:
        assert self.process.stdin
        print(steps, file=self.process.stdin, flush=True)
        return self._answer()

    def turn(self) -> dict[str, float]:
        """Runs one turn; returns tokens per second of time and of CPU time, and how busy others kept the cores."""
        before = _busy_seconds()
        run = self._run(self.steps)
        tokens = self.steps * B * L
        others = _busy_seconds() - before - run["cpu_seconds"]
        return {"rate": tokens / run["seconds"], "cpu_rate": tokens / run["cpu_seconds"],
                "others": max(0.0, others) / run["seconds"] / (os.cpu_count() or 1)}

    def close(self) -> None:
        """Ends the worker."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def _busy_seconds() -> float:
    """Returns the CPU seconds that this machine has spent on processes since it started."""
    with open("/proc/stat") as file:
        fields = [int(x) for x in file.readline().split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """Returns the 90 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.05, 0.95])
    return float(low), float(high)


def case(d_model: int, pairs: int, seconds: float, threads: int) -> dict[str, Any]:
    """Measures one shape."""
    sides = {name: Side(name, d_model, threads, seconds) for name in STEPS}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in STEPS}
    for pair in range(pairs):
        for name in sorted(STEPS, reverse=bool(pair % 2)):
            turns[name].append(sides[name].turn())
    for side in sides.values():
        side.close()

    def values(name: str, key: str) -> np.ndarray:
        return np.array([turn[key] for turn in turns[name]])

    ratios = values("jax", "rate") / values("torch", "rate")
    low, high = interval(ratios)
    return {
        "benchmark": "torch_step", "d_model": d_model, "num_layers": LAYERS, "num_heads": 1, "batch_size": B,
        "seq_len": L, "vocab_size": V, "threads": threads, "pairs": pairs,
        "tokens_per_second": round(float(np.median(values("jax", "rate")))),
        "torch_tokens_per_second": round(float(np.median(values("torch", "rate")))),
        "ratio": round(float(np.median(ratios)), 3), "ratio_90": [round(low, 3), round(high, 3)],
        "ratio_by_cpu_time": round(float(np.median(values("jax", "cpu_rate") / values("torch", "cpu_rate"))), 3),
        "others_busy": round(float(np.median([t["others"] for side in turns.values() for t in side])), 3),
        "first_loss": round(sides["jax"].first_loss, 4), "torch_first_loss": round(sides["torch"].first_loss, 4),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "torch", "transformers")},
    }


def main(argv: list[str]) -> None:
    """Prints every case."""
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


if __name__ == "__main__":
    main(sys.argv[1:])
