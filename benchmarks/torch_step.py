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
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._beside import Worker, beside_torch, interval, serve, take_turns

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
    """Runs in a process of its own."""
    step = STEPS[side](d_model)
    first = step()
    step()
    serve(step, {"first_loss": first})


def case(d_model: int, pairs: int, seconds: float, threads: int) -> dict[str, Any]:
    """Measures one shape."""
    sides = {name: Worker("benchmarks.torch_step", "--work", name, str(d_model), threads=threads) for name in STEPS}
    steps = {name: max(1, round(2 * seconds / side.turn(2)["seconds"])) for name, side in sides.items()}
    turns = take_turns(sides, steps, pairs)
    for side in sides.values():
        side.close()

    def rates(name: str, key: str) -> np.ndarray:
        return np.array([steps[name] * B * L / turn[key] for turn in turns[name]])

    ratios = rates("jax", "seconds") / rates("torch", "seconds")
    cpu_ratios = rates("jax", "cpu_seconds") / rates("torch", "cpu_seconds")
    low, high = interval(ratios)
    return {
        "benchmark": "torch_step", "d_model": d_model, "num_layers": LAYERS, "num_heads": 1, "batch_size": B,
        "seq_len": L, "vocab_size": V, "threads": threads, "pairs": pairs,
        "tokens_per_second": round(float(np.median(rates("jax", "seconds")))),
        "torch_tokens_per_second": round(float(np.median(rates("torch", "seconds")))),
        "ratio": round(float(np.median(ratios)), 3), "ratio_90": [round(low, 3), round(high, 3)],
        "ratio_by_cpu_time": round(float(np.median(cpu_ratios)), 3),
        "others_busy": round(float(np.median([t["others"] for side in turns.values() for t in side])), 3),
        "first_loss": round(sides["jax"].ready["first_loss"], 4),
        "torch_first_loss": round(sides["torch"].ready["first_loss"], 4),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "torch", "transformers")},
    }


def main(argv: list[str]) -> None:
    """Prints every case."""
    beside_torch(argv, work, case)


if __name__ == "__main__":
    main(sys.argv[1:])
