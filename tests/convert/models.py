"""Small models in memory and in workdirs, to convert."""

import numpy as np

from mtp_jax import config as configs
from mtp_jax.checkpoints import structure
from mtp_jax.checkpoints.structure import Leaf
from mtp_jax.config import ModelConfig
from mtp_jax.convert.model import Model
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.model import ModelSpec
from tests.decoding.workdirs import write_workdir

WINDOW = 32


def make_config(**changes):
    """Returns a model of bytes: five layers, three of them heads, grouped KV heads, a vocabulary that is padded."""
    values = {"num_heads": 3, "num_layers": 5, "d_model": 16, "num_attention_heads": 4, "num_kv_heads": 2, "d_ff": 24,
              "vocab_size": ByteTokenizer.vocab_size, "vocab_multiple": 32}
    return ModelConfig(**{**values, **changes})


def make_arrays(config, seed=0):
    """Returns random parameters, {golden path: array}; those of padded ids are zeros, as converters leave them."""
    random, arrays = np.random.default_rng(seed), {}
    for path, leaf in structure.flatten(ModelSpec.create(config).shapes).items():
        array = (random.standard_normal(leaf.shape) * 0.2 + path.endswith("scale")).astype(leaf.dtype)
        if path in ("embedding/embedding", "unembedding/kernel"):
            array[..., config.vocab_size:, :] = 0
        arrays[path] = array
    return arrays


def make_model(config, arrays=None, **fields):
    """Returns a model whose arrays lie in memory."""
    arrays = make_arrays(config) if arrays is None else arrays
    return Model(config, {path: Leaf(array.shape, array.dtype) for path, array in arrays.items()},
                 lambda path, index: arrays[path][index], WINDOW, ByteTokenizer(), **fields)


def make_workdir(folder, config, arrays=None, **data):
    """Returns the workdir of a run, made without training."""
    arrays = make_arrays(config) if arrays is None else arrays
    return write_workdir(folder, config, {7: structure.nest(arrays)}, seq_len=WINDOW, **data)


def read_all(model):
    """Returns all arrays of a model, {golden path: array}."""
    return {path: model.read(path, ()) for path in model.leaves}


def assert_same(arrays, others):
    """Asserts that two sets of arrays are equal bit for bit."""
    assert arrays.keys() == others.keys()
    for path, array in arrays.items():
        assert array.dtype == others[path].dtype and array.shape == others[path].shape, path
        assert array.tobytes() == others[path].tobytes(), path


def options(src, dst, dst_format, **fields):
    """Returns the settings of a conversion."""
    return configs.ConvertConfig(src=str(src), dst=str(dst), dst_format=dst_format, **fields)
