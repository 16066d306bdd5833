"""The format `medusa`: Medusa heads as vLLM reads them, a draft model in a folder of its own.

The folder holds heads 2..N alone (vLLM's `blocks.0` is head 2). The model that they draft for is written by the format
`hf`, into another folder. Names as in vLLM's model_executor/models/medusa.py.
"""

from __future__ import annotations

import json
import pathlib

from mtp_jax.config import ConvertConfig, ModelConfig
from mtp_jax.convert.model import Model
from mtp_jax.convert.table import Entry, embedding_entry, unembedding_entry, write_safetensors
from mtp_jax.convert.transforms import Linear

HEAD_KINDS = ("medusa",)
# vLLM looks for this one where all heads share an unembedding, and for lm_heads.1, .. where they do not.
UNEMBEDDING = "lm_heads.{}.weight"


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format: nothing of the trunk, nothing of head 1 that is not shared."""
    lines = []
    for j in range(config.num_heads - 1):
        lines += [Entry(f"blocks.{j}.layers.{i}.weight", "heads/kernel", (j, i), Linear())
                  for i in range(config.medusa_layers)]
    if config.tie_embedding:
        return [*lines, embedding_entry(config, UNEMBEDDING.format(0))]
    if config.unembedding == "shared":
        return lines + unembedding_entry(config, UNEMBEDDING.format(0))
    for j in range(config.num_heads - 1):
        lines += unembedding_entry(config, UNEMBEDDING.format(j), head=j + 2)
    return lines


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes config.json and the tensors of heads 2..N.

    Raises:
      ValueError: there is no head 2, or a number is NaN or infinite.
    """
    config, heads = model.config, options.heads or model.config.num_heads
    if heads < 2:
        raise ValueError(f"--heads={heads}: this format holds heads 2, 3, .. and there is none. Head 1 is the plain "
                         "model, --dst_format=hf.")
    entries = [entry for entry in table(config) if _number(config, entry) <= heads]
    facts = {"architectures": ["MedusaModel"], "model_type": "medusa", "hidden_size": config.d_model,
             "vocab_size": config.vocab_size, "truncated_vocab_size": config.vocab_size, "num_heads": heads - 1,
             "num_hidden_layers": config.medusa_layers, "medusa_fc_bias": False,
             "original_lm_head": config.unembedding == "shared"}
    facts["torch_dtype"] = write_safetensors(model, entries, folder, options)
    (folder / "config.json").write_text(json.dumps(facts, indent=2) + "\n")
    source = f"--src={options.src}" + (f" --step={options.step}" if options.step is not None else "")
    return [f"The heads alone; the model that they draft for: python -m mtp_jax.convert {source} --dst=TARGET "
            "--dst_format=hf",
            f"vllm.LLM(model='TARGET', speculative_config={{'model': {options.dst!r}, 'num_speculative_tokens': "
            f"{heads - 1}}})"]


def _number(config: ModelConfig, entry: Entry) -> int:
    """Returns which head a tensor is of; 0 where it is of all."""
    if entry.path == "heads/kernel":
        return entry.index[0] + 2
    return entry.index[0] + 1 if config.unembedding == "replicated" else 0
