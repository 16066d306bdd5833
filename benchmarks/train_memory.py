"""Compiled memory of the train step over n: the fused loss beside the naive one.

    python -m benchmarks.train_memory [--full]

Prints one JSON line a case: XLA's own count of the temporaries of the compiled step, which no noise touches. V 32,768,
D 256, B 8, L 1,024, 12 layers. With --full also layers scanned, as on TPU and GPU, and more n.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import optax

from mtp_jax.config import ComputeConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from mtp_jax.objective import multi_token_targets
from mtp_jax.training.program import Program, build_program


def build(*, num_heads: int, remat: str, scan_layers: bool | None) -> Program:
    """Returns the program of a case, on one device."""
    config = Config(
        model=ModelConfig(num_heads=num_heads, num_layers=12, d_model=256, num_attention_heads=4, vocab_size=32_768),
        data=DataConfig(batch_size=8, seq_len=1_024),
        compute=ComputeConfig(remat=remat, scan_layers=scan_layers),
        optimizer=OptimizerConfig(warmup_steps=10))
    config.validate()
    return build_program(config, jax.devices()[:1])


def naive_step(program: Program):
    """Returns a gradient step as one writes it at first: heads by vmap, all logits, log-softmax, autodiff."""
    config, spec = program.config, program.spec
    execution = build(num_heads=config.model.num_heads, remat=config.compute.remat,
                      scan_layers=config.compute.scan_layers).execution

    def loss(params, batch):
        model = spec.bind(params)
        targets_NxBxL, mask_NxBxL = multi_token_targets(batch["tokens"], batch["segments"], batch["positions"],
                                                        config.model.num_heads)
        h_NxBxLxD = model(batch["tokens"], batch["segments"], batch["positions"], execution=execution)
        losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(h_NxBxLxD), targets_NxBxL)
        counts_N = jnp.sum(mask_NxBxL, axis=(1, 2))
        return jnp.sum(jnp.sum(jnp.where(mask_NxBxL, losses, 0), axis=(1, 2)) / counts_N)

    return jax.jit(jax.value_and_grad(loss))


def main(argv: list[str]) -> None:
    """Prints every case."""
    first: dict[tuple, int] = {}
    for scan_layers in (None, True) if "--full" in argv else (None,):
        for remat in ("none", "full"):
            for loss in ("fused", "naive"):
                for n in (1, 2, 4, 8) if loss == "fused" or "--full" in argv else (1, 8):
                    program = build(num_heads=n, remat=remat, scan_layers=scan_layers)
                    if loss == "fused":
                        lowered = program.train_step.lower(program.state, program.batch)
                    else:
                        lowered = naive_step(program).lower(program.state.params, program.batch)
                    temp = lowered.compile().memory_analysis().temp_size_in_bytes
                    key = (scan_layers, remat, loss)
                    first.setdefault(key, temp)
                    print(json.dumps({
                        "benchmark": "train_memory", "loss": loss, "remat": remat,
                        "layers": "unrolled" if program.execution.unroll else "scanned", "num_heads": n,
                        "params": program.spec.num_params, "temp_mib": round(temp / 2**20, 1),
                        "ratio_to_n1": round(temp / first[key], 3), "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
