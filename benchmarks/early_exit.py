"""Time of decoding with a looped trunk that every token leaves after the same loop, beside that without a gate.

    python -m benchmarks.early_exit [--rounds=24]

Prints one JSON line a case. One row, head 1 alone, 4 loops of 4 layers, D 256, V 256, fp32, random parameters; the
gate's bias and the threshold are such that all tokens leave after loop 1, 2, 3, or never. In each round all cases
continue one prompt by 64 tokens, right after each other, so that the machine's other load falls on all; the interval is
a bootstrap over rounds of the median ratio.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._beside import interval
from mtp_jax.config import ModelConfig
from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.model import ModelSpec

LOOPS, NEW = 4, 64
# lambda = 1/2 after every loop: 1 - S_t is 0.5, 0.75 and 0.875.
THRESHOLDS = {"no gate": None, "never": 0.95, "after loop 3": 0.8, "after loop 2": 0.6, "after loop 1": 0.4}


def main(argv: list[str]) -> None:
    """Prints every case."""
    rounds = int(next((a.split("=")[1] for a in argv if a.startswith("--rounds=")), 24))
    spec = ModelSpec.create(ModelConfig(num_heads=1, num_layers=5, d_model=256, num_attention_heads=4, vocab_size=256,
                                        trunk_kind="looped", loops=LOOPS))
    params = spec.init(jax.random.key(0))
    params["gate"] = jax.tree.map(jnp.zeros_like, params["gate"])
    models = {name: DecodingModel.from_params(spec, params, window=128, exit_threshold=q)
              for name, q in THRESHOLDS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    loops = {}
    for turn in range(rounds + 1):
        for name, model in models.items():
            found = generate(model, [list(range(1, 17))], max_new_tokens=NEW, stop=[])
            loops[name] = found.loops_per_token
            if turn:  # the first one compiles
                seconds[name].append(found.seconds - found.prompt_seconds)
    for name, times in seconds.items():
        ratios = np.array(times) / np.array(seconds["no gate"])
        low, high = interval(ratios)
        print(json.dumps({"benchmark": "early_exit", "leaves": name, "loops_per_token": loops[name], "rounds": rounds,
                          "ms_per_token": round(1e3 * float(np.median(times)) / NEW, 4),
                          "ratio": round(float(np.median(ratios)), 3), "ratio_90": [round(low, 3), round(high, 3)],
                          "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
