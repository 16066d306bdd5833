"""The format `fast_llm`: the MTPLlamaForCausalLM of ServiceNow's Fast-LLM, which trains parallel heads too.

Llama's names, where the last of `model.layers` is head 1's layer; `model.mtp_heads.{i}` are the layers of heads 2, 3,
and so on, on the same trunk. Each head has a final norm there, `model.mtp_norms.{i}` from head 1 on; ours have one
together, so it is written n times, and read where all are equal.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from mtp_jax.config import ConvertConfig, ModelConfig
from mtp_jax.convert import head_one, hf_config, rope, tokenizer_files
from mtp_jax.convert.fields import count, number, switch
from mtp_jax.convert.meta import check_tokenizer, first_heads, is_further
from mtp_jax.convert.model import Model
from mtp_jax.convert.safetensors_file import Tensors, open_folder
from mtp_jax.convert.table import (
    LLAMA,
    Entry,
    block_entries,
    check_covered,
    leaves_of,
    reader,
    stored_dtype,
    write_safetensors,
)

HEAD_KINDS = ("parallel",)
CONFIG, MODEL_TYPE = "config.json", "mtp_llama"
CODE = ("configuration_mtp_llama.py", "modeling_mtp_llama.py")  # Fast-LLM's, in fast_llm_external_models/mtp_llama
NORM = "model.mtp_norms.{}.weight"


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format; the final norm has a line a head."""
    lines = head_one.entries(config, LLAMA, embedding="model.embed_tokens.weight", layer="model.layers.{}.",
                             norm=NORM.format(0), unembedding="lm_head.weight")
    for k in range(1, config.num_heads):
        lines += block_entries(config, LLAMA, prefix=f"model.mtp_heads.{k - 1}.", path="heads", index=k)
        lines.append(Entry(NORM.format(k), "final_norm/scale"))
    return lines


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes config.json, the tensors, and the tokenizer's files.

    Raises:
      ValueError: the model has what the format cannot say, or a number is NaN or infinite.
    """
    config = first_heads(model.config, options.heads or model.config.num_heads)
    for field, value, able in (("unembedding", config.unembedding, ("shared",)), ("qk_norm", config.qk_norm, (False,)),
                               ("rope_scaling", config.rope_scaling, ("none", "llama3"))):
        if value not in able:
            raise ValueError(f"model.{field}={value!r} cannot be said in Fast-LLM's mtp_llama, which has "
                             f"{' and '.join(map(str, able))} alone: choose --dst_format=hf_parallel.")
    entries = table(config)
    check_covered(model.leaves, entries, lambda path, index: is_further(config, path, index))
    dtype = write_safetensors(model, entries, folder, options)
    hf_config.dump(folder / CONFIG, config_json(config, model, dtype))
    tokenizer_files.write(model, folder)
    return [f"Fast-LLM reads {options.dst} as the checkpoint format mtp_llama.",
            f"For transformers copy {CODE[0]} and {CODE[1]} of Fast-LLM (fast_llm_external_models/mtp_llama) into it: "
            "its config.json names them.",
            f"AutoModelForCausalLM.from_pretrained({options.dst!r}, trust_remote_code=True)(ids, "
            "return_all_prediction_heads=True)"]


def config_json(config: ModelConfig, model: Model, dtype: str) -> dict[str, Any]:
    """Returns what config.json says; `num_hidden_layers` counts the trunk and head 1's layer.

    Fast-LLM refuses fields that it does not know.
    """
    fields = hf_config.to_fields(model, config, dtype)
    del fields["dtype"]
    return {
        **fields,
        "architectures": ["MTPLlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": "configuration_mtp_llama.MTPLlamaConfig",
                     "AutoModel": "modeling_mtp_llama.MTPLlamaModel",
                     "AutoModelForCausalLM": "modeling_mtp_llama.MTPLlamaForCausalLM"},
        "prediction_heads": config.num_heads,
    }


def read(path: pathlib.Path, options: ConvertConfig) -> Model:
    """Opens a checkpoint that Fast-LLM exported.

    Raises:
      ValueError: config.json or the tensors are missing, damaged or do not fit each other, or the heads' norms differ.
    """
    fields, tensors = _fields(path / CONFIG), open_folder(path)
    config = _config(path / CONFIG, fields, tensors, options)
    window = count(fields, "max_position_embeddings", str(path / CONFIG), optional=True) or 2048
    leaves = leaves_of(config, tensors)
    read_leaf = reader(leaves, table(config), tensors)
    first = tensors.read(NORM.format(0))
    for k in range(1, config.num_heads):
        if not np.array_equal(tensors.read(NORM.format(k)), first):
            raise ValueError(f"{path}: {NORM.format(k)} differs from {NORM.format(0)}, and the heads here have one "
                             f"norm together: convert head 1 alone, with prediction_heads 1 in {CONFIG} and without "
                             "the tensors of the other heads.")
    tokenizer, files = tokenizer_files.read(path, options.tokenizer)
    if tokenizer is not None:
        check_tokenizer(tokenizer, config, path)
    return Model(config, leaves, read_leaf, window, tokenizer, files, {"source": str(path)})


def _fields(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a config.json says.

    Raises:
      ValueError: it is not there, cannot be read, or is of another kind of model.
    """
    fields = hf_config.read_fields(path.parent)
    if fields.get("model_type") != MODEL_TYPE:
        remedy = " Read it with --src_format=hf." if fields.get("model_type") == "llama" else ""
        raise ValueError(f"{path}: model_type is {fields.get('model_type')!r}, and Fast-LLM's is "
                         f"{MODEL_TYPE!r}.{remedy}")
    return fields


def _config(path: pathlib.Path, fields: dict[str, Any], tensors: Tensors, options: ConvertConfig) -> ModelConfig:
    """Returns the model's shape.

    Raises:
      ValueError: a field is missing, or asks for what there is not here.
    """
    place = str(path)
    for name, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if fields.get(name, only) != only:
            raise ValueError(f"{path}: {name} is {fields[name]!r}, and models here have {only!r} alone.")
    if options.head_kind != "parallel":
        raise ValueError(f"--head_kind={options.head_kind}: the heads of this format are parallel; leave it out.")
    dtype = stored_dtype(tensors)
    heads, layers, d_model, attention_heads, d_ff, vocabulary = (count(fields, name, place) for name in (
        "prediction_heads", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
        "vocab_size"))
    config = ModelConfig(
        num_heads=heads, num_layers=layers + heads - 1, d_model=d_model, num_attention_heads=attention_heads,
        num_kv_heads=count(fields, "num_key_value_heads", place, optional=True),
        head_dim=count(fields, "head_dim", place, optional=True), d_ff=d_ff, vocab_size=vocabulary,
        tie_embedding=switch(fields, "tie_word_embeddings", place),
        norm_eps=number(fields, "rms_norm_eps", place, default=1e-6),
        init_std=number(fields, "initializer_range", place, default=0.02), param_dtype=dtype, dtype=dtype,
        **rope.from_fields(fields, place))
    try:
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path} tells of a model that cannot be: {error}") from error
    return config
