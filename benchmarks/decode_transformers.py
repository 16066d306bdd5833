"""Tokens per second of our greedy autoregressive decoding beside transformers' generate, batch 1, on CPU.

    python -m benchmarks.decode_transformers [--pairs=9] [--seconds=3] [--threads=2] [--d_model=128,256]

In an environment with torch and transformers (the extra `interop`). Prints one JSON line a case: a Llama of 6 layers,
V 256, fp32, random weights; 128 tokens of prompt and 128 new ones, no token stops. Ours decodes with head 1 alone, on
LlamaForCausalLM's side a cache is used. Each side has a process of its own and they take turns, as in `torch_step`; a
turn is several whole calls, the prompt's forward included, compiling and loading left out. PyTorch's threads lose more
than ours where cores are contended: where `others_busy` is not near 0, --threads=1 says more.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._beside import Worker, beside_torch, interval, serve, take_turns

LAYERS, ATTENTION_HEADS, V, PROMPT, NEW = 6, 4, 256, 128, 128
PROMPT_IDS = np.random.default_rng(0).integers(0, V, PROMPT).astype(np.int32)


def jax_generate(d_model: int) -> tuple[Callable[[], int], int]:
    """Returns a function that generates with the package and tells how many tokens, and the number of parameters."""
    from mtp_jax.parallel.host_memory import keep_freed_memory

    keep_freed_memory()  # as the command does, before JAX starts

    import jax

    from mtp_jax.config import ModelConfig
    from mtp_jax.decoding import DecodingModel, generate
    from mtp_jax.model import ModelSpec

    spec = ModelSpec.create(ModelConfig(num_heads=1, num_layers=LAYERS, d_model=d_model, d_ff=3 * d_model,
                                        num_attention_heads=ATTENTION_HEADS, vocab_size=V))
    params = jax.jit(spec.init)(jax.random.key(0))
    model = DecodingModel.from_params(spec, params, window=PROMPT + NEW)
    return lambda: generate(model, [PROMPT_IDS], max_new_tokens=NEW, stop=()).lengths[0], spec.num_params


def torch_generate(d_model: int) -> tuple[Callable[[], int], int]:
    """Returns the same for transformers."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=d_model, intermediate_size=3 * d_model, num_hidden_layers=LAYERS,
        num_attention_heads=ATTENTION_HEADS, num_key_value_heads=ATTENTION_HEADS, max_position_embeddings=PROMPT + NEW,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)).float().eval()
    prompt = torch.from_numpy(PROMPT_IDS[None].astype(np.int64))
    mask = torch.ones_like(prompt)

    def generate() -> int:
        ids = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=True)
        return ids.shape[1] - PROMPT

    return generate, sum(leaf.numel() for leaf in model.parameters())


SIDES = {"jax": jax_generate, "torch": torch_generate}


def work(side: str, d_model: int) -> None:
    """Runs in a process of its own."""
    generate, params = SIDES[side](d_model)
    tokens = generate()
    generate()
    serve(generate, {"tokens": tokens, "params": params})


def case(d_model: int, pairs: int, seconds: float, threads: int) -> dict[str, Any]:
    """Measures one shape."""
    sides = {name: Worker("benchmarks.decode_transformers", "--work", name, str(d_model), threads=threads)
             for name in SIDES}
    calls = {name: max(1, round(seconds / side.turn(1)["seconds"])) for name, side in sides.items()}
    turns = take_turns(sides, calls, pairs)
    for name, side in sides.items():
        side.close()
        if side.ready["tokens"] != NEW:
            raise RuntimeError(f"The side {name!r} generated {side.ready['tokens']} tokens instead of {NEW}.")

    def rates(name: str, key: str) -> np.ndarray:
        return np.array([calls[name] * NEW / turn[key] for turn in turns[name]])

    ratios = rates("jax", "seconds") / rates("torch", "seconds")
    cpu_ratios = rates("jax", "cpu_seconds") / rates("torch", "cpu_seconds")
    low, high = interval(ratios)
    return {
        "benchmark": "decode_transformers", "d_model": d_model, "num_layers": LAYERS, "vocab_size": V, "batch": 1,
        "prompt_tokens": PROMPT, "new_tokens": NEW, "threads": threads, "pairs": pairs,
        "params": sides["jax"].ready["params"], "torch_params": sides["torch"].ready["params"],
        "tokens_per_second": round(float(np.median(rates("jax", "seconds")))),
        "torch_tokens_per_second": round(float(np.median(rates("torch", "seconds")))),
        "ratio": round(float(np.median(ratios)), 2), "ratio_90": [round(low, 2), round(high, 2)],
        "ratio_by_cpu_time": round(float(np.median(cpu_ratios)), 2), "target": 3.0,
        "others_busy": round(float(np.median([t["others"] for side in turns.values() for t in side])), 3),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "torch", "transformers")},
    }


def main(argv: list[str]) -> None:
    """Prints every case."""
    beside_torch(argv, work, case)


if __name__ == "__main__":
    main(sys.argv[1:])
