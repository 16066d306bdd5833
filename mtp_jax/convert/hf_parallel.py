"""The format `hf_parallel`: all heads, for Hugging Face transformers with a model class of ours beside the weights.

AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True) runs it; see remote_code/modeling_mtp_parallel.py.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from mtp_jax.checkpoints.structure import Leaf, flatten
from mtp_jax.config import ConvertConfig, ModelConfig, nearest
from mtp_jax.convert.model import Index, Model
from mtp_jax.convert.safetensors_file import SafetensorsWriter, Tensors, open_folder
from mtp_jax.convert.table import (
    LLAMA,
    Entry,
    block_entries,
    check_covered,
    embedding_entry,
    infos,
    reader,
    stream,
    unembedding_entry,
)
from mtp_jax.convert.transforms import Linear
from mtp_jax.model import ModelSpec, num_trunk_layers
from mtp_jax.model.heads import get_head_kind

HEAD_KINDS = ("parallel", "causal", "anticausal", "linear", "medusa")
MODEL_TYPE = "mtp_parallel"
CODE = pathlib.Path(__file__).parent / "remote_code" / "modeling_mtp_parallel.py"
CONFIG = "config.json"


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format: Llama's names, with the heads as model.heads.{k} from 0."""
    lines = [embedding_entry(config, "model.embed_tokens.weight")]
    for i in range(num_trunk_layers(config)):
        lines += block_entries(config, LLAMA, prefix=f"model.layers.{i}.", path="trunk", index=i)
    kind = get_head_kind(config.head_kind)
    for k in range(config.num_heads - kind.first_own + 1):
        prefix = f"model.heads.{k}."
        if config.head_kind == "linear":
            lines.append(Entry(prefix + "weight", "heads/kernel", (k,), Linear()))
        elif config.head_kind == "medusa":
            lines += [Entry(f"{prefix}layers.{i}.weight", "heads/kernel", (k, i), Linear())
                      for i in range(config.medusa_layers)]
        else:
            lines += block_entries(config, LLAMA, prefix=prefix, path="heads", index=k)
    lines.append(Entry("model.norm.weight", "final_norm/scale"))
    if config.unembedding == "shared":
        return lines + unembedding_entry(config, "lm_head.weight")
    for k in range(config.num_heads):
        lines += unembedding_entry(config, f"lm_heads.{k}.weight", k + 1)
    return lines


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes weights, config.json, the model class, the tokenizer and a card.

    Raises:
      ValueError: the head kind cannot be cut to fewer heads, or a number is NaN or infinite.
    """
    config = model.config
    N = options.heads or config.num_heads
    if config.head_kind == "anticausal" and N < config.num_heads:
        raise ValueError(f"--heads={N} of {config.num_heads} cannot be had with heads of the kind 'anticausal', for "
                         "head 1 stacks on all others: leave out --heads.")
    config = _first(config, N)
    entries = table(config)
    check_covered(model.leaves, entries, lambda path, index: _is_further(config, path, index))
    announced = infos(model.leaves, entries, options.dtype)
    with SafetensorsWriter(folder, announced, shard_bytes=options.max_shard_megabytes * 10**6) as writer:
        for name, tensor in stream(model, entries, options.dtype):
            writer.write(name, tensor)
    dtype = str(announced["model.embed_tokens.weight"].dtype)
    (folder / CODE.name).write_bytes(CODE.read_bytes())
    (folder / CONFIG).write_text(json.dumps(config_json(config, model, dtype), indent=2) + "\n")
    return [f"model = AutoModelForCausalLM.from_pretrained({options.dst!r}, trust_remote_code=True)",
            f"model.generate(ids, max_new_tokens=64, heads={N})"]


def config_json(config: ModelConfig, model: Model, dtype: str) -> dict[str, Any]:
    """Returns what config.json says.

    Args:
      config: the model's shape, with the heads that are written.
      model: for its window and its tokenizer.
      dtype: of the weights.
    """
    kind = get_head_kind(config.head_kind)
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    ids = {} if model.tokenizer is None else {"bos_token_id": model.tokenizer.bos_id,
                                              "eos_token_id": model.tokenizer.eos_id,
                                              "pad_token_id": model.tokenizer.pad_id}
    return {
        "architectures": ["MTPParallelForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": f"{CODE.stem}.MTPParallelConfig",
                     "AutoModelForCausalLM": f"{CODE.stem}.MTPParallelForCausalLM"},
        "num_prediction_heads": config.num_heads,
        "head_kind": config.head_kind,
        "medusa_layers": config.medusa_layers,
        "replicated_unembedding": config.unembedding == "replicated",
        "qk_norm": config.qk_norm,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": num_trunk_layers(config) + kind.layers_per_head * config.num_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.attention_head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.window,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embedding,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_parameters": rope,
        **{name: ids.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "dtype": dtype,
        "torch_dtype": dtype,  # transformers 4
    }


def read(path: pathlib.Path, options: ConvertConfig) -> Model:
    """Opens what `write` wrote.

    Raises:
      ValueError: config.json is missing, of another model, or asks for what there is not here; or as `table.reader`.
    """
    fields = _fields(path / CONFIG)
    tensors = open_folder(path)
    config = _model_config(path / CONFIG, fields, tensors)
    shapes = flatten(ModelSpec.create(config).shapes)
    leaves = {name: Leaf(tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in shapes.items()}
    return Model(config, leaves, reader(leaves, table(config), tensors), int(fields["max_position_embeddings"]),
                 facts={"source": str(path)})


def _first(config: ModelConfig, heads: int) -> ModelConfig:
    """Returns the config of the trunk and the first heads alone."""
    taken = get_head_kind(config.head_kind).layers_per_head * (config.num_heads - heads)
    return dataclasses.replace(config, num_heads=heads, num_layers=config.num_layers - taken)


def _is_further(config: ModelConfig, path: str, index: Index) -> bool:
    """Tells whether an array of the whole model serves only heads that are not written."""
    first_own = get_head_kind(config.head_kind).first_own if path.startswith("heads/") else 1
    stacked = path.startswith("heads/") or (path == "unembedding/kernel" and config.unembedding == "replicated")
    return stacked and bool(index) and index[0] + first_own > config.num_heads


def _fields(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a config.json says.

    Raises:
      ValueError: it is not there, cannot be read, or is of another kind of model.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a folder that --dst_format=hf_parallel wrote.")
    try:
        fields = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): convert again.") from error
    if fields.get("model_type") != MODEL_TYPE:
        remedy = " Read it with --src_format=hf." if fields.get("model_type") == "llama" else ""
        raise ValueError(f"{path}: model_type is {fields.get('model_type')!r}, and hf_parallel is "
                         f"{MODEL_TYPE!r}.{remedy}")
    return fields


def _model_config(path: pathlib.Path, fields: dict[str, Any], tensors: Tensors) -> ModelConfig:
    """Returns the model's shape.

    Raises:
      ValueError: a field is missing, or asks for what there is not here.
    """
    for name, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if fields.get(name, only) != only:
            raise ValueError(f"{path}: {name} is {fields[name]!r}, and models here have {only!r} alone.")
    rope = fields.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or fields.get("rope_scaling"):
        raise ValueError(f"{path}: the rope scaling {rope.get('rope_type') or fields['rope_scaling']} is unknown here.")
    stored = {str(info.dtype) for info in tensors.infos.values()}
    dtype = stored.pop() if len(stored) == 1 and stored <= {"float64", "float32", "bfloat16"} else "float32"
    try:
        config = ModelConfig(
            num_heads=fields["num_prediction_heads"], num_layers=fields["num_hidden_layers"],
            d_model=fields["hidden_size"], num_attention_heads=fields["num_attention_heads"],
            num_kv_heads=fields["num_key_value_heads"], head_dim=fields["head_dim"],
            d_ff=fields["intermediate_size"], head_kind=fields["head_kind"], medusa_layers=fields["medusa_layers"],
            unembedding="replicated" if fields["replicated_unembedding"] else "shared",
            tie_embedding=fields["tie_word_embeddings"], vocab_size=fields["vocab_size"], qk_norm=fields["qk_norm"],
            rope_theta=float(rope.get("rope_theta") or fields["rope_theta"]), norm_eps=fields["rms_norm_eps"],
            init_std=fields["initializer_range"], param_dtype=dtype, dtype=dtype)
        config.validate()
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks or misstates a field ({error}): convert again.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if config.head_kind not in HEAD_KINDS:
        raise ValueError(f"{path}: head_kind={config.head_kind!r} is not one of {HEAD_KINDS}."
                         f"{nearest(config.head_kind, HEAD_KINDS)}")
    return config
