"""The format `meta`: the layout of Meta's multi-token prediction release, params.json and consolidated.pth.

`layers` are the trunk with head 1's layer behind it, `extra_heads` the layers of heads 2..n; `n_layers` counts both.
Every head reads the trunk's output, so the last of `layers` is not part of what the extra heads read. Norm and output
are shared. Rotary pairs are neighbours.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

from mtp_jax.config import ConvertConfig, ModelConfig, nearest
from mtp_jax.convert import head_one, tokenizer_files
from mtp_jax.convert.fields import count, number, read_object
from mtp_jax.convert.model import Model
from mtp_jax.convert.pth import PthWriter, open_pth
from mtp_jax.convert.safetensors_file import SafetensorsWriter, Tensors, open_file
from mtp_jax.convert.table import (
    META,
    Entry,
    block_entries,
    check_covered,
    embedding_entry,
    infos,
    leaves_of,
    reader,
    stored_dtype,
    stream,
)
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.model import num_trunk_layers

HEAD_KINDS = ("parallel",)
PLAIN_KINDS = ("parallel", "causal", "anticausal", "sequential", "medusa")  # what a model with one head may become
PARAMS, PTH, SAFETENSORS = "params.json", "consolidated.pth", "consolidated.safetensors"
WINDOW = 4096  # of Llama 2 and of the release; params.json does not say it
IGNORED = "rope.freqs"  # a buffer that follows from params.json


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format. A tied embedding is written twice, for `output` is there always."""
    lines = head_one.entries(config, META, embedding="tok_embeddings.weight", layer="layers.{}.", norm="norm.weight",
                             unembedding="output.weight", interleaved=True)
    if config.tie_embedding:
        lines.append(embedding_entry(config, "output.weight"))
    for k in range(1, config.num_heads):
        lines += block_entries(config, META, prefix=f"extra_heads.{k - 1}.", path="heads", index=k, interleaved=True)
    return lines


def first_heads(config: ModelConfig, heads: int) -> ModelConfig:
    """Returns the shape of the trunk and the first parallel heads alone."""
    return dataclasses.replace(config, num_heads=heads, extra_trunk_layers=0,
                               num_layers=num_trunk_layers(config) + heads)


def is_further(config: ModelConfig, path: str, index: tuple[int, ...]) -> bool:
    """Tells whether an array of a model belongs to a head after those of `config`."""
    return path.startswith("heads/") and bool(index) and index[0] >= config.num_heads


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes params.json, the tensors both as consolidated.pth and as consolidated.safetensors, and the tokenizer.

    Raises:
      ValueError: the model has what the format cannot say, or a number is NaN or infinite.
    """
    config = first_heads(model.config, options.heads or model.config.num_heads)
    facts = params_json(config)
    entries = table(config)
    check_covered(model.leaves, entries, lambda path, index: is_further(config, path, index))
    (folder / PARAMS).write_text(json.dumps(facts, indent=2) + "\n")
    with (SafetensorsWriter(folder, infos(model.leaves, entries, options.dtype), shard_bytes=2**62, name=SAFETENSORS,
                            metadata={"window": str(model.window)}) as safetensors, PthWriter(folder / PTH) as pth):
        for name, tensor in stream(model, entries, options.dtype):
            safetensors.write(name, tensor)
            pth.write(name, tensor)
    tokenizer_files.write(model, folder)
    return [f"{options.dst}/{PTH} and {SAFETENSORS} hold the same tensors: keep the one that your tool reads.",
            f"torch.load({f'{options.dst}/{PTH}'!r}, weights_only=True)  # layers.*, extra_heads.*, norm, output"]


def params_json(config: ModelConfig) -> dict[str, Any]:
    """Returns what params.json says of a model.

    Raises:
      ValueError: the format has no word for a setting.
    """
    for field, value, only in (("unembedding", config.unembedding, "shared"), ("qk_norm", config.qk_norm, False),
                               ("rope_scaling", config.rope_scaling, "none"),
                               ("head_dim", config.attention_head_dim, config.d_model / config.num_attention_heads)):
        if value != only:
            raise ValueError(f"model.{field}={value!r} cannot be said in {PARAMS}, which knows {only!r} alone: choose "
                             "--dst_format=hf_parallel.")
    base, width = int(2 * 4 * config.d_model / 3), config.mlp_dim
    multiple, multiplier = width, None
    if width >= base:  # the customary multiples first, for the reader's eye
        multiple = next(m for m in (256, config.d_ff_multiple, width) if math.ceil(base / m) * m == width)
    else:
        multiple, multiplier = 1, (width + 0.5) / base
    return {"dim": config.d_model, "n_layers": num_trunk_layers(config) + config.num_heads,
            "n_heads": config.num_attention_heads, "n_kv_heads": config.kv_heads, "vocab_size": config.vocab_size,
            "multiple_of": multiple, "ffn_dim_multiplier": multiplier, "norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta, "n_future_tokens": config.num_heads}


def read(path: pathlib.Path, options: ConvertConfig) -> Model:
    """Opens a folder of the release, or of a plain Llama in Meta's layout.

    Raises:
      ValueError: params.json or the tensors are missing, damaged or do not fit each other, or the pickle names what
        weights have no need of.
    """
    tensors = _open(path)
    tokenizer, files = _tokenizer(path, options.tokenizer)
    config = _config(path / PARAMS, tensors, options)
    if tokenizer is not None:
        check_tokenizer(tokenizer, config, path)
    leaves = leaves_of(config, tensors)
    read_leaf = reader(leaves, table(config), tensors, ignored=lambda name: name == IGNORED)
    return Model(config, leaves, read_leaf, int(tensors.metadata.get("window", WINDOW)), tokenizer, files,
                 {"source": str(path)})


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, path: pathlib.Path) -> None:
    """Raises ValueError where a tokenizer has ids that a model lacks."""
    if tokenizer.vocab_size > (config.vocab_size or 0):
        raise ValueError(f"The tokenizer has {tokenizer.vocab_size} ids, more than the vocabulary of "
                         f"{config.vocab_size} of {path}: name the model's own, --tokenizer=FILE.")


def _open(folder: pathlib.Path) -> Tensors:
    """Returns the folder's tensors.

    Raises:
      ValueError: there are none, or they are cut in parts.
    """
    for name in (SAFETENSORS, PTH, "consolidated.00.pth"):
        if (folder / name).exists():
            if name == "consolidated.00.pth" and (folder / "consolidated.01.pth").exists():
                raise ValueError(f"{folder} is cut in parts for several devices (consolidated.00.pth, .01.pth, ..): "
                                 "join them first; the release's folders hold one file each.")
            return open_file(folder / name) if name == SAFETENSORS else open_pth(folder / name)
    raise ValueError(f"{folder} has neither {PTH} nor {SAFETENSORS}: name a folder of the release, such as 7B_1T_4.")


def _tokenizer(folder: pathlib.Path, name: str) -> tuple[Tokenizer | None, dict[str, bytes]]:
    """Returns the tokenizer and its files: named, in the folder, or one above it, as in the release."""
    above = folder.absolute().parent / tokenizer_files.SENTENCEPIECE
    found = tokenizer_files.read(folder, name)
    return tokenizer_files.read(folder, str(above)) if found[0] is None and above.exists() else found


def _config(path: pathlib.Path, tensors: Tensors, options: ConvertConfig) -> ModelConfig:
    """Returns the model's shape.

    Raises:
      ValueError: params.json is missing, damaged, or says what there is not here or what the tensors do not have.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: it says the model's shape, so copy it beside the tensors.")
    facts, place = read_object(path), str(path)
    dim, layers, heads = (count(facts, name, place) for name in ("dim", "n_layers", "n_heads"))
    future = count(facts, "n_future_tokens", place, optional=True) or 1
    multiple = count(facts, "multiple_of", place, optional=True) or 256
    multiplier = number(facts, "ffn_dim_multiplier", place, default=1.0)
    kv_heads = count(facts, "n_kv_heads", place, optional=True) or heads
    eps, theta = number(facts, "norm_eps", place, default=1e-5), number(facts, "rope_theta", place, default=10_000.0)
    vocabulary = None if facts.get("vocab_size") == -1 else count(facts, "vocab_size", place, optional=True)
    if facts.get("use_scaled_rope"):
        raise ValueError(f"{path}: use_scaled_rope is a rope scaling that this format is not read with: convert the "
                         "model's Hugging Face form, --src_format=hf.")
    if vocabulary is None:  # Llama 2 leaves it to the tokenizer
        vocabulary = _rows(tensors, "tok_embeddings.weight")
    width = multiple * -(-int(multiplier * int(2 * 4 * dim / 3)) // multiple)
    rows = _rows(tensors, "layers.0.feed_forward.w1.weight")
    if rows != width:
        raise ValueError(f"{tensors.place}: layers.0.feed_forward.w1.weight has {rows} rows, and dim={dim}, "
                         f"multiple_of={multiple}, ffn_dim_multiplier={multiplier} of {path} make it {width}: "
                         f"correct {PARAMS}.")
    kind = options.head_kind if future == 1 else "parallel"
    if kind not in PLAIN_KINDS or options.head_kind not in ("parallel", kind):
        raise ValueError(f"--head_kind={options.head_kind} cannot be had of {path.parent}, which has {future} "
                         f"{'parallel heads' if future > 1 else 'head'}: choose "
                         f"{'parallel' if future > 1 else ', '.join(PLAIN_KINDS)}.")
    dtype = stored_dtype(tensors, lambda name: name == IGNORED)
    try:
        config = ModelConfig(num_heads=future, num_layers=layers, d_model=dim, num_attention_heads=heads,
                             num_kv_heads=kv_heads, d_ff=width, head_kind=kind, vocab_size=vocabulary, norm_eps=eps,
                             rope_theta=theta, param_dtype=dtype, dtype=dtype)
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _rows(tensors: Tensors, name: str) -> int:
    """Returns the number of rows of a matrix that has to be there."""
    found = tensors.infos.get(name)
    if found is None or len(found.shape) != 2:
        raise ValueError(f"{tensors.place} has no matrix {name}.{nearest(name, tensors.infos)} Convert a whole "
                         "checkpoint.")
    return found.shape[0]
