"""What do eight heads with an unembedding each do on bytes of code? The paper's best n for bytes is 8 (Table 1).

Hardware: 2 CPU cores, about six minutes. The corpus is the running Python's own standard library.

    python -m experiments.code_bytes_8 --workdir=runs/code_bytes_8

Expected: 2.93, 3.54, 3.84, 4.03, 4.14, 4.22, 4.28 and 4.32 bits per held-out byte for heads 1 to 8, on the library of
Python 3.11.7.
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
