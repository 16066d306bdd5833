"""Workdirs as training leaves them, made without training."""

import numpy as np

from mtp_jax import config as configs
from mtp_jax.checkpoints import Checkpointer
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.training import workdir as workdirs


def write_workdir(folder, model, params, *, seq_len, tokenizer_hash=ByteTokenizer.hash, **data):
    """Saves parameters as a run does; returns its folder.

    Args:
      folder: made here.
      model: its ModelConfig.
      params: {step: parameters}.
      seq_len: what it was trained on.
      tokenizer_hash: of its tokenizer.
      data: further fields of config.data.
    """
    config = configs.Config(model=model, data=configs.DataConfig(seq_len=seq_len, **data))
    extra = {"config": configs.to_dict(config), "corpus_hash": "c", "tokenizer_hash": tokenizer_hash}
    with Checkpointer(folder / "checkpoints", config.checkpoint) as checkpointer:
        for step, values in params.items():
            checkpointer.save(step, {"step": np.int32(step), "params": values}, extra)
    workdirs.write_config(folder, config, corpus_hash="c", tokenizer_hash=tokenizer_hash)
    return folder
