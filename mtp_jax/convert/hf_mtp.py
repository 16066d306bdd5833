"""The format `hf_mtp`: sequential heads as modules that Hugging Face transformers drafts with, generate(use_mtp=True).

The plain transformer has Llama's layout, or Qwen3's where the model has norms on queries and keys. Head k lies behind
its L layers, in DeepSeek-V3's names:

    model.layers.{L + k - 2}.{enorm,hnorm,eh_proj,shared_head.norm}.weight, and the names of a layer

Which tensors are modules transformers tells by a pattern of the model's class, so that a class of ours lies beside the
weights (remote_code/modeling_mtp.py). One module with norms on queries and keys needs none: it is a Mellum, of which
transformers has the class, in whose names

    mtp.{pre_fc_norm_embedding,pre_fc_norm_hidden,fc,norm}.weight, mtp.layers.0.<names of a layer>
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from mtp_jax.config import ConvertConfig, ModelConfig
from mtp_jax.convert import head_one, hf_card, hf_config, tokenizer_files
from mtp_jax.convert.model import Model
from mtp_jax.convert.table import LLAMA, Entry, block_entries, check_covered, write_safetensors
from mtp_jax.convert.transforms import Copy, Linear

HEAD_KINDS = ("sequential",)
CODE = pathlib.Path(__file__).parent / "remote_code" / "modeling_mtp.py"
# What is a module's own, of ours: their names in DeepSeek-V3 and in Mellum. The embedding's half of the projection is
# first in all three.
_OWN = (("embedding_norm/scale", "enorm.weight", "pre_fc_norm_embedding.weight", Copy()),
        ("state_norm/scale", "hnorm.weight", "pre_fc_norm_hidden.weight", Copy()),
        ("projection", "eh_proj.weight", "fc.weight", Linear()),
        ("norm/scale", "shared_head.norm.weight", "norm.weight", Copy()))


def is_mellum(config: ModelConfig) -> bool:
    """Tells whether transformers has a class for the model."""
    return config.qk_norm and config.num_heads == 2


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format."""
    lines = head_one.entries(config, LLAMA, embedding="model.embed_tokens.weight", layer="model.layers.{}.",
                             norm="model.norm.weight", unembedding="lm_head.weight")
    for row in range(config.num_heads - 1):
        if is_mellum(config):
            lines += module(config, "mtp.", row, block="mtp.layers.0.", names=2)
        else:
            lines += module(config, f"model.layers.{len(head_one.layers(config)) + row}.", row)
    return lines


def module(config: ModelConfig, prefix: str, row: int, *, block: str = "", names: int = 1) -> list[Entry]:
    """Returns the lines of one module.

    Args:
      config: the model's shape.
      prefix: of its tensors.
      row: of our stack, 0 for head 2.
      block: prefix of those of its layer; empty: the same.
      names: column of `_OWN`, 1 for DeepSeek's.
    """
    return [*(Entry(prefix + str(line[names]), f"heads/{line[0]}", (row,), line[3]) for line in _OWN),
            *block_entries(config, LLAMA, prefix=block or prefix, path="heads/block", index=row)]


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes weights, configs, the model class where it takes one, the tokenizer and a card; returns the lines of
    Python that run the model.

    Raises:
      ValueError: there is no head that drafts, the heads have unembeddings of their own, or a number is NaN or
        infinite.
    """
    N = options.heads or model.config.num_heads
    if N == 1:
        where = "--heads=1" if options.heads else "The model has one head"
        raise ValueError(f"{where}, and --dst_format=hf_mtp is for heads that draft: choose hf.")
    config = dataclasses.replace(model.config, num_heads=N)
    if config.unembedding == "replicated":
        raise ValueError("model.unembedding='replicated' gives each head an unembedding of its own, and in "
                         "--dst_format=hf_mtp all share head 1's: choose hf, or train with 'shared'.")
    entries = table(config)
    check_covered(model.leaves, entries, lambda path, index: path.startswith("heads/") and index[:1] >= (N - 1,))
    dtype = write_safetensors(model, entries, folder, options)
    hf_config.dump(folder / hf_config.CONFIG, to_fields(model, config, dtype))
    hf_config.dump(folder / "generation_config.json", hf_config.special_ids(model))
    if not is_mellum(config):
        (folder / CODE.name).write_bytes(CODE.read_bytes())
    has_tokenizer = tokenizer_files.write(model, folder)
    text = hf_card.card(
        model, config, options, dtype, has_tokenizer, running=_running(config, has_tokenizer),
        loaded=f"the trunk with head 1, which predicts the next token, and, where it drafts, the {N - 1} "
               f"module{'s' if N > 2 else ''} behind")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return python_lines(options.dst, config, has_tokenizer)


def to_fields(model: Model, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns what config.json says.

    Args:
      model: for its window and its tokenizer.
      config: its shape, with the heads that are written.
      dtype: of the weights.
    """
    fields, modules = hf_config.to_fields(model, config, dtype), config.num_heads - 1
    layers = fields["num_hidden_layers"]
    kinds = {"layer_types": ["full_attention"] * layers, "mtp_layer_types": ["full_attention"] * modules}
    if not is_mellum(config):
        name = f"MTP{fields['architectures'][0]}"
        return {**fields, "num_mtp_layers": modules, **(kinds if config.qk_norm else {}),
                "auto_map": {"AutoModelForCausalLM": f"{CODE.stem}.{name}"}}
    for name in ("rope_theta", "rope_scaling", "use_sliding_window"):
        del fields[name]
    return {**fields, "architectures": ["MellumForCausalLM"], "model_type": "mellum", **kinds,
            "num_nextn_predict_layers": modules, "mlp_layer_types": ["dense"] * layers,
            "mtp_mlp_layer_types": ["dense"] * modules,
            "rope_parameters": {"full_attention": fields["rope_parameters"]}}


def python_lines(place: str, config: ModelConfig, has_tokenizer: bool) -> list[str]:
    """Returns the lines of Python that run an exported model."""
    trust = "" if is_mellum(config) else ", trust_remote_code=True"
    model = f"model = AutoModelForCausalLM.from_pretrained({place!r}{trust})"
    if not has_tokenizer:
        return ["from transformers import AutoModelForCausalLM", model,
                "print(model.generate(ids, max_new_tokens=64, use_mtp=True))"]
    return ["from transformers import AutoModelForCausalLM, AutoTokenizer", model,
            f"tokenizer = AutoTokenizer.from_pretrained({place!r})",
            'ids = tokenizer("def ", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64, use_mtp=True)[0]))"]


def _running(config: ModelConfig, has_tokenizer: bool) -> str:
    """Returns the card's part on how the model is run."""
    text = ["## Running it", "", "In this folder, by transformers 5.23 or later:", "", "```python",
            *python_lines(".", config, has_tokenizer), "```", "",
            "With `use_mtp=True` the modules draft and head 1 verifies: the text is that of head 1 alone (to rounding) "
            "in fewer forwards. It takes one text at a time. Without it, head 1 writes a token a forward."]
    if not is_mellum(config):
        text += ["", f"`trust_remote_code=True` runs {CODE.name} of this folder; read it first. Without it, "
                 "transformers loads head 1 and tells that it does not know the modules' tensors."]
    return "\n".join(text)
