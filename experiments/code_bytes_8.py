"""What do eight heads with an unembedding each do on bytes of code? The paper's best n for bytes is 8 (Table 1).

Hardware: 2 CPU cores, about six minutes. The corpus is the running Python's own standard library.

    python -m experiments.code_bytes_8 --workdir=runs/code_bytes_8

Expected: EXPECTED
"""

from experiments import code_bytes
from mtp_jax import train


def get_config():
    """Returns the demo's settings with eight heads on a trunk of as many layers."""
    config = code_bytes.get_config()
    config.model.num_heads = 8
    config.model.num_layers = 12
    config.model.unembedding = "replicated"  # as the paper's byte models
    return config


if __name__ == "__main__":
    train.main(get_config)
