"""config.json and generation_config.json of Hugging Face for the plain transformer, both ways."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mtp_jax.config import ModelConfig, nearest
from mtp_jax.convert import head_one, rope
from mtp_jax.convert.fields import count, number, read_object, switch
from mtp_jax.convert.model import Model

CONFIG = "config.json"
# Architectures that are read: what their fields are where config.json is silent.
_COMMON: dict[str, Any] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
                           "initializer_range": 0.02, "attention_bias": False, "mlp_bias": False,
                           "num_key_value_heads": None, "head_dim": None}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**_COMMON, "model_type": "llama", "max_position_embeddings": 2048},
    "MistralForCausalLM": {**_COMMON, "model_type": "mistral", "num_key_value_heads": 8,
                           "max_position_embeddings": 131072, "sliding_window": 4096},
    "Qwen3ForCausalLM": {**_COMMON, "model_type": "qwen3", "num_key_value_heads": 32, "head_dim": 128,
                         "max_position_embeddings": 32768},
}
# Fields whose other values make another model: what they must be, and which models have that.
_REQUIRED = {"attention_bias": (False, "without biases"), "mlp_bias": (False, "without biases"),
             "hidden_act": ("silu", "with SwiGLU"), "sliding_window": (None, "with full attention"),
             "quantization_config": (None, "with plain numbers")}
_SIZES = {"vocab_size": "vocab_size", "hidden_size": "d_model", "intermediate_size": "d_ff",
          "num_attention_heads": "num_attention_heads"}
# Heads that a plain model becomes; the first of a linear one would have to be a map that leaves its input as it is.
PLAIN_KINDS = ("parallel", "causal", "anticausal", "sequential", "medusa")


def to_fields(model: Model, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns what config.json says; where transformers 4 and 5 differ, in the words of both.

    Args:
      model: for its window and its tokenizer.
      config: its shape.
      dtype: of the weights.
    """
    architecture = "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"
    return {
        "architectures": [architecture],
        "model_type": ARCHITECTURES[architecture]["model_type"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": len(head_one.layers(config)),
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.attention_head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.window,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": head_one.ties(config),
        "attention_bias": False,
        "attention_dropout": 0.0,
        **({"use_sliding_window": False, "sliding_window": None} if config.qk_norm else {"mlp_bias": False}),
        **rope.to_fields(config),
        **special_ids(model),
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def special_ids(model: Model) -> dict[str, int | None]:
    """Returns the ids of BOS, EOS and PAD by their names there; None where there is no tokenizer."""
    tokenizer = model.tokenizer
    return {f"{kind}_token_id": None if tokenizer is None else getattr(tokenizer, f"{kind}_id")
            for kind in ("bos", "eos", "pad")}


def write(model: Model, config: ModelConfig, dtype: str, folder: pathlib.Path) -> None:
    """Writes config.json and generation_config.json."""
    dump(folder / CONFIG, to_fields(model, config, dtype))
    dump(folder / "generation_config.json", special_ids(model))


def dump(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes a file of JSON."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_fields(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a folder's config.json.

    Raises:
      ValueError: it is missing or damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} has no {CONFIG}: name the folder of a checkpoint of Hugging Face.")
    return read_object(path)


def from_fields(fields: Mapping[str, Any], place: str, *, head_kind: str, dtype: str) -> tuple[ModelConfig, int]:
    """Returns the shape of a plain transformer with one head, and its window.

    Args:
      fields: of config.json.
      place: the file, for messages.
      head_kind: what the model becomes: its last layer is head 1, or all of it the trunk.
      dtype: of the weights, as we keep them.

    Raises:
      ValueError: another architecture, or a field that makes it another model than ours.
    """
    known = _defaults(fields, place)
    given = {**known, **fields, "model_type": known["model_type"]}
    slides = {"mistral": True, "qwen3": given.get("use_sliding_window")}.get(given["model_type"])
    for name, (wanted, which) in _REQUIRED.items():
        if given.get(name, wanted) != wanted and (name != "sliding_window" or slides):
            raise ValueError(f"{place}: {name}={json.dumps(given[name])}, and only models {which} "
                             f"({name}={json.dumps(wanted)}) can be read.")
    kinds = given.get("layer_types") or []
    other = [kind for kind in kinds if kind != "full_attention"] if isinstance(kinds, list) else [kinds]
    if other:
        raise ValueError(f"{place}: layer_types has {other[0]}, and only full_attention can be read.")
    sizes = {ours: count(given, name, place) for name, ours in _SIZES.items()}
    config = ModelConfig(
        num_heads=1, num_layers=count(given, "num_hidden_layers", place), head_kind=head_kind,
        num_kv_heads=count(given, "num_key_value_heads", place, optional=True),
        head_dim=count(given, "head_dim", place, optional=True),
        qk_norm=given["model_type"] == "qwen3", tie_embedding=switch(given, "tie_word_embeddings", place),
        norm_eps=number(given, "rms_norm_eps", place), init_std=number(given, "initializer_range", place),
        param_dtype=dtype, dtype=dtype, **sizes, **rope.from_fields(fields, place))
    try:
        config.validate()
    except ValueError as error:
        raise ValueError(f"{place} tells of a model that cannot be: {error}") from error
    return config, count(given, "max_position_embeddings", place)


def _defaults(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Returns the fields that an architecture has where config.json is silent.

    Raises:
      ValueError: it is another than those that can be read.
    """
    names = fields.get("architectures") or [name for name, known in ARCHITECTURES.items()
                                            if known["model_type"] == fields.get("model_type")]
    name = str(names[0] if isinstance(names, list) and names else names or fields.get("model_type"))
    if name not in ARCHITECTURES:
        ours = name == "MTPParallelForCausalLM"
        hint = " Read it with --src_format=hf_parallel." if ours else nearest(name, ARCHITECTURES)
        raise ValueError(f"{place} is of the architecture {name!r}, and those that can be read are "
                         f"{', '.join(ARCHITECTURES)}.{hint}")
    return ARCHITECTURES[name]
