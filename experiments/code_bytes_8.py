"""What do eight heads with an unembedding each do on bytes of code? The paper's best n for bytes is 8 (Table 1).

Hardware: 2 CPU cores, about five minutes. The corpus is the running Python's own standard library.

    python -m experiments.code_bytes_8 --workdir=runs/code_bytes_8

Expected: see docs/benchmarks.md for the loss of each head on the machine named there.
"""

from mtp_jax import train
from mtp_jax.config import default_config


def get_config():
    """Returns the settings of the experiment."""
    config = default_config()
    config.model.num_heads = 8
    config.model.num_layers = 12
    config.model.d_model = 128
    config.model.unembedding = "replicated"  # as the paper's byte models
    config.data.source = "stdlib"
    config.data.batch_size = 8
    config.data.seq_len = 256
    config.data.validation_batches = 16
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 60
    config.train.num_steps = 1000
    config.train.checkpoint_every = 200
    config.train.validate_every = 100
    return config


if __name__ == "__main__":
    train.main(get_config)
