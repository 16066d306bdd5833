"""The format `hf`: a plain LlamaForCausalLM of Hugging Face, which is our trunk and head 1."""

from __future__ import annotations

import pathlib

from mtp_jax.config import ConvertConfig, ModelConfig
from mtp_jax.convert import head_one
from mtp_jax.convert.model import Model
from mtp_jax.convert.safetensors_file import SafetensorsWriter
from mtp_jax.convert.table import LLAMA, Entry, check_covered, infos, stream

HEAD_KINDS = head_one.HEAD_KINDS


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format."""
    return head_one.entries(config, LLAMA, embedding="model.embed_tokens.weight", layer="model.layers.{}.",
                            norm="model.norm.weight", unembedding="lm_head.weight")


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes the folder that transformers reads."""
    entries = table(model.config)
    check_covered(model.leaves, entries, lambda path, index: head_one.further_heads(model.config, path, index))
    with SafetensorsWriter(folder, infos(model.leaves, entries, options.dtype),
                           shard_bytes=options.max_shard_megabytes * 10**6) as writer:
        for name, tensor in stream(model, entries, options.dtype):
            writer.write(name, tensor)
    return []
