"""The paper's models and training, by size (Gloeckle et al. 2024, Tables S13 and S14): what do n heads do at scale?

Hardware: accelerators, from one for the smallest sizes to a pod; parameters and optimizer state are spread over all
devices. The numbers of both tables, and which size goes with which recipe, are in mtp_jax/presets.py.

    python -m experiments.paper --workdir=runs/paper_0.3b --config.size=0.3b
    python -m experiments.paper --workdir=runs/paper_7b_1 --config.size=7b --config.recipe=code_7b_1t \\
        --config.model.num_heads=1

Sizes: 0.3b, 0.6b, 1.3b, 3b, 6.7b (or 7b), 13b; 1m, 3m, 10m, 30m, 100m, 300m, 1b.

The paper's corpora are not public. As it stands this reads the running Python's standard library as bytes, so that it
starts at once; name yours, best prepared before (see docs/data.md), with a tokenizer of at most 32,000 ids:

    --config.data.source=prepared --config.data.path=gs://BUCKET/CORPUS --config.data.tokenizer=tokenizer.model

A batch is 8 million tokens from 0.3b on, a quarter of a million below: --config.compute.microbatches=64 takes it in 64
parts, where the line `memory` names more than a device has.

To look at one step on a small machine, make batch and rows small and end the warm-up:

    python -m experiments.paper --workdir=runs/look --config.size=1m --config.data.batch_size=2 \\
        --config.data.seq_len=256 --config.optimizer.warmup_steps=2 --config.train.num_steps=20

Expected: of the paper's own, MBPP pass@1 26.0 at n = 4 against 23.9 at n = 1 (6.7B, Table S7). None of these runs has
been trained here.
"""

from mtp_jax import presets, train
from mtp_jax.config import default_config

SMALL = ("1m", "3m", "10m", "30m", "100m")  # float32, activations kept


def get_config(size="0.3b", recipe=""):
    """Returns the settings of a size.

    Args:
      size: the model's shape, such as 0.3b, 7b or 10m; see mtp_jax/presets.py.
      recipe: length, batch and learning rate by name, such as code_7b_1t; empty: the one that goes with the size.
    """
    config = default_config()
    recipe = recipe or presets.get_shape(size).recipe
    presets.apply_shape(config, size)
    presets.apply_recipe(config, recipe)
    # The paper compares n = 2 with n = 1 on induction, and found 4 best for tokens of code, 8 for bytes.
    config.model.num_heads = 2 if recipe.startswith("induction") else 8 if recipe == "bytes_7b" else 4
    if size.lower() not in SMALL:
        config.model.dtype = "bfloat16"
        config.compute.remat = "full"
        config.parallel.mesh = "data:1,fsdp:-1,tensor:1,pred_heads:1"
    config.data.source = "stdlib"
    config.data.tokenizer = "bytes"
    config.train.checkpoint_every = 1000
    config.train.validate_every = 1000
    return config


if __name__ == "__main__":
    train.main(get_config)
