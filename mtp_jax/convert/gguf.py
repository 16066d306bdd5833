"""The format `gguf`: trunk and head 1 as a plain llama in one file, for llama.cpp and what is built on it.

    pip install "mtp_jax[gguf]"
    python -m mtp_jax.convert --src=runs/code_bytes --dst=exported --dst_format=gguf --dtype=q8_0

Rows of queries and keys are in Meta's pairing (2c, 2c + 1), as llama.cpp rotates them. Norms stay fp32.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ConvertConfig, ModelConfig, check_choice
from mtp_jax.convert import gguf_tokenizer, head_one
from mtp_jax.convert.model import Model
from mtp_jax.convert.table import BlockNames, Entry, check_covered, infos, stream
from mtp_jax.model.primitives import rotary_scaling

HEAD_KINDS = head_one.HEAD_KINDS
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # names in gguf
NAMES = BlockNames("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
                   "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
FILE = "model.gguf"
ROTARY = "rope_freqs.weight"
_Q8_BLOCK = 32  # numbers of a row that share a scale
_AT_A_TIME = 2**20  # numbers that are quantized together


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format."""
    return head_one.entries(config, NAMES, embedding="token_embd.weight", layer="blk.{}.", norm="output_norm.weight",
                            unembedding="output.weight", interleaved=True)


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes model.gguf, one tensor after the other.

    Args:
      model: what to write.
      folder: empty.
      options: `dtype` is that of the matrices: float32, float16, bfloat16 or q8_0 (8 bits and a scale for 32 numbers;
        a matrix whose rows do not divide so stays float16). None: as stored.

    Returns:
      Lines that tell how it is run.

    Raises:
      ValueError: the package gguf is missing, the architecture llama lacks something that the model has, or its
        tokenizer cannot be had in llama.cpp.
    """
    config, package = model.config, _package()
    kind = options.dtype or str(np.dtype(model.leaves["embedding/embedding"].dtype))
    check_choice("--dtype", kind, DTYPES)
    _check(config)
    vocabulary = gguf_tokenizer.vocabulary(model)
    entries = table(config)
    check_covered(model.leaves, entries, lambda path, index: head_one.further_heads(config, path, index))
    announced = infos(model.leaves, entries, None)
    writer = package.GGUFWriter(folder / FILE, "llama")
    for key, value in metadata(model, kind, options).items():
        getattr(writer, f"add_{key}")(value)
    vocabulary.add(writer)
    factors_C = rotary_factors(config)
    if factors_C is not None:
        writer.add_tensor_info(ROTARY, factors_C.shape, factors_C.dtype, factors_C.nbytes)
    halves = []
    for name, info in announced.items():
        quantized = _type(package, kind, info.shape)
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), _nbytes(package, quantized, info.shape),
                               raw_dtype=quantized)
        if kind == "q8_0" and quantized == package.GGMLQuantizationType.F16:
            halves.append(name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors_C is not None:
        writer.write_tensor_data(factors_C)
    for name, tensor in stream(model, entries, None):
        writer.write_tensor_data(_quantize(package, tensor, _type(package, kind, tensor.shape), name))
    writer.close()
    told = [f"float16 remain {', '.join(halves)}: their rows are no multiple of {_Q8_BLOCK}."] if halves else []
    return [*told, "Runs in llama.cpp (head 1):", f"  llama-cli -m {options.dst}/{FILE} -p TEXT -no-cnv --temp 0"]


def metadata(model: Model, kind: str, options: ConvertConfig) -> dict[str, Any]:
    """Returns what the header says of the model, by the name of GGUFWriter's method.

    Args:
      model: its shape and window.
      kind: dtype of the matrices.
      options: for its name.
    """
    config = model.config
    types = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}  # llama.cpp's llama_ftype
    scaling = {"rope_scaling_type": _package().RopeScalingType.LINEAR, "rope_scaling_factor": config.rope_factor}
    return {
        "name": options.name or pathlib.PurePath(options.dst).name, "file_type": types[kind],
        "quantization_version": 2, "context_length": model.window, "embedding_length": config.d_model,
        "block_count": len(head_one.layers(config)), "feed_forward_length": config.mlp_dim,
        "head_count": config.num_attention_heads, "head_count_kv": config.kv_heads,
        "key_length": config.attention_head_dim, "value_length": config.attention_head_dim,
        "layer_norm_rms_eps": config.norm_eps, "rope_dimension_count": config.attention_head_dim,
        "rope_freq_base": config.rope_theta, "vocab_size": config.vocab_size,
        **(scaling if config.rope_scaling == "linear" else {}),
    }


def rotary_factors(config: ModelConfig) -> np.ndarray | None:
    """Returns how many times slower each pair of features rotates than by the base alone, [C / 2] in fp32.

    llama.cpp reads Llama 3's scaling so; None: there is none, or one that the header tells.
    """
    if config.rope_scaling in ("none", "linear"):
        return None
    C = config.attention_head_dim
    frequency_C = jnp.asarray(config.rope_theta ** (-np.arange(0, C, 2) / C), jnp.float32)
    return np.asarray(frequency_C / rotary_scaling(config)(frequency_C), np.float32)


def _package() -> Any:
    """Returns the package gguf.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ValueError("--dst_format=gguf needs the package gguf: pip install \"mtp_jax[gguf]\".") from error
    return gguf


def _check(config: ModelConfig) -> None:
    """Raises ValueError where llama.cpp's architecture llama lacks something that the model has."""
    if config.qk_norm:
        raise ValueError("model.qk_norm=True cannot be had in --dst_format=gguf: llama.cpp's architecture llama has no "
                         "norm of queries and keys, and would compute something else. Choose --dst_format=hf_parallel "
                         "or stablehlo.")


def _type(package: Any, kind: str, shape: tuple[int, ...]) -> Any:
    """Returns how a tensor is stored."""
    types = package.GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    return types.F16 if kind == "q8_0" and shape[-1] % _Q8_BLOCK else types[DTYPES[kind]]


def _nbytes(package: Any, quantized: Any, shape: tuple[int, ...]) -> int:
    """Returns how many bytes a stored tensor takes."""
    numbers, size = package.GGML_QUANT_SIZES[quantized]
    return int(np.prod(shape, dtype=np.int64)) // numbers * size


def _quantize(package: Any, tensor: np.ndarray, quantized: Any, name: str) -> np.ndarray:
    """Returns a tensor as it is stored, as bytes where it is no fp32; it is made a few rows at a time, so that nothing
    but the result takes memory.

    Raises:
      ValueError: a number is too large for it.
    """
    if quantized == package.GGMLQuantizationType.F32:
        return np.ascontiguousarray(tensor, np.float32)
    stored = np.empty((tensor.shape[0], _nbytes(package, quantized, tensor.shape[1:])), np.uint8)
    rows = max(1, _AT_A_TIME // tensor.shape[1])
    for start in range(0, tensor.shape[0], rows):
        with np.errstate(over="ignore"):  # told below
            part = package.quantize(np.ascontiguousarray(tensor[start:start + rows], np.float32), quantized)
        scales = part
        if quantized == package.GGMLQuantizationType.Q8_0:  # the scale comes first, in fp16
            scales = np.ascontiguousarray(part.reshape(-1, 34)[:, :2]).view(np.float16)
        elif quantized == package.GGMLQuantizationType.BF16:  # comes as bits
            scales = part.view(jnp.bfloat16)
        if not np.isfinite(scales).all():
            raise ValueError(f"{name} has numbers that {quantized.name} cannot hold: choose --dtype=float32.")
        stored[start:start + rows] = part.view(np.uint8)
    return stored
