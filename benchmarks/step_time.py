"""Time of a train step over n, beside what its matmul FLOPs alone would give.

    python -m benchmarks.step_time [--pairs=24]

Prints one JSON line a case. 12 layers, D 256, V 256 and 4,096, B 4, L 256, fp32; every n has the same number of
parameters. Each pair times a step of n = 1 and one of n right after each other, in turn first and second, so that the
machine's other load falls on both; the interval is a bootstrap over pairs of the median ratio.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import numpy as np

from benchmarks._beside import interval
from mtp_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from mtp_jax.training.program import Program, build_program


class Stepper:
    """A compiled train step with its state and one batch."""

    def __init__(self, *, num_heads: int, vocab_size: int):
        config = Config(
            model=ModelConfig(num_heads=num_heads, num_layers=12, d_model=256, num_attention_heads=4,
                              vocab_size=vocab_size),
            data=DataConfig(batch_size=4, seq_len=256), optimizer=OptimizerConfig(warmup_steps=10))
        config.validate()
        self.program: Program = build_program(config, jax.devices()[:1])
        B, L = config.data.batch_size, config.data.seq_len
        tokens = np.random.default_rng(0).integers(0, vocab_size, (B, L)).astype(np.int32)
        self.batch = self.program.put({"tokens": tokens, "segments": np.ones((B, L), np.int32),
                                       "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1))})
        self.state = self.program.init(jax.random.key(0))
        for _ in range(2):
            self.seconds()

    def seconds(self) -> float:
        """Runs one step and returns its time."""
        start = time.perf_counter()
        self.state, metrics = self.program.train_step(self.state, self.batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Prints every case."""
    pairs = int(next((a.split("=")[1] for a in argv if a.startswith("--pairs=")), 24))
    for vocab_size in (256, 4_096):
        one = Stepper(num_heads=1, vocab_size=vocab_size)
        for n in (2, 4, 8):
            other = Stepper(num_heads=n, vocab_size=vocab_size)
            times = []
            for pair in range(pairs):
                if pair % 2:
                    b, a = other.seconds(), one.seconds()
                else:
                    a, b = one.seconds(), other.seconds()
                times.append((a, b))
            first, second = np.array(times).T
            ratios = second / first
            low, high = interval(ratios)
            flops = other.program.executed_flops_per_token / one.program.executed_flops_per_token
            print(json.dumps({
                "benchmark": "step_time", "vocab_size": vocab_size, "num_heads": n, "pairs": pairs,
                "params_n1": one.program.spec.num_params, "params": other.program.spec.num_params,
                "seconds_n1": round(float(np.median(first)), 4), "seconds": round(float(np.median(second)), 4),
                "ratio": round(float(np.median(ratios)), 3), "ratio_90": [round(low, 3), round(high, 3)],
                "flops_ratio": round(flops, 3), "bound": round(1.05 * flops, 3), "within": low < 1.05 * flops,
                "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
