"""Format "stablehlo": the model as programs that run without mtp_jax.

    manifest.json          what is here: functions with arguments and results, places of parameters, ids, checksums
    prefill.bin .. .bin    the functions (stablehlo_program.py), as jax.export writes them, for CPU, NVIDIA GPU and TPU
    params.safetensors     the parameters, by the names that the functions call them
    load.py                generates with them, greedily, plain and with the model's own drafts

Batch, prompt length and cache capacity are open. The attention is the plain array code of kernel "xla": what is
exported may hold nothing that only one platform, or only one version of a library, can run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jax
from jax import export

import mtp_jax
from mtp_jax.config import ConvertConfig, ModelConfig, check_choice
from mtp_jax.convert.model import Index, Model
from mtp_jax.convert.safetensors_file import Info, SafetensorsWriter, open_file
from mtp_jax.convert.stablehlo_program import PLATFORMS, Piece, functions, pieces
from mtp_jax.convert.table import Entry, check_covered, check_finite, stream
from mtp_jax.convert.transforms import Copy, Vocabulary
from mtp_jax.data.tokenizer import ByteTokenizer

HEAD_KINDS = ("parallel", "linear", "causal", "anticausal", "sequential", "medusa")
PARAMS = "params.safetensors"
COMPATIBILITY = ("jax.export: any jax of the six months after the one below reads it, any of three weeks before too; "
                 "from 0.11.1 on, jax refuses what is older. Export again from the checkpoint then.")


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Exports a model.

    Args:
      model: what to export.
      folder: empty.
      options: `heads` leaves out the others, whose drafts are then not made; `dtype` is what the programs compute in
        and keep keys, values and matrices in, else the model's own.

    Returns:
      Lines that tell how it is run.

    Raises:
      ValueError: a dtype that the programs cannot have, or a parameter is not finite.
    """
    config = dataclasses.replace(model.config, vocab_multiple=1, dtype=options.dtype or model.config.dtype)
    check_choice("--dtype" if options.dtype else "model.dtype", config.dtype, ("float32", "bfloat16"))
    heads = min(options.heads or config.num_heads, config.num_heads)
    parameters = pieces(config, heads)
    made = functions(config, heads)
    facts = {}
    for name, function in made.items():
        file = f"{name}.bin"
        (folder / file).write_bytes(function.export(parameters))
        facts[name] = {"file": file, "params": list(function.params), "inputs": _described(function.inputs),
                       "outputs": _described(function.outputs(parameters))}
    _write_params(model, config, heads, parameters, folder)
    (folder / "load.py").write_text(resources.files("mtp_jax.convert.loader").joinpath("load.py").read_text())
    for file, data in model.tokenizer_files.items():
        (folder / file).write_bytes(data)
    tokenizer = model.tokenizer
    special = {} if tokenizer is None else {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    manifest = {
        "format": "mtp_jax.stablehlo", "version": 1, "compatibility": COMPATIBILITY,
        "made_by": {"mtp_jax": mtp_jax.__version__, "jax": jax.__version__,
                    "calling_convention": export.maximum_supported_calling_convention_version},
        "platforms": list(PLATFORMS), "heads": heads, "head_kind": config.head_kind, "vocab_size": config.vocab_size,
        "window": model.window, "dtype": config.dtype,
        "tokenizer": sorted(model.tokenizer_files) or ("bytes" if isinstance(model.tokenizer, ByteTokenizer) else None),
        "special_ids": special,
        "params": _places(folder), "functions": facts,
        "files": {path.name: _checksum(path) for path in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return ["Runs with jax and flatbuffers alone; continue a list of ids by 64 tokens:",
            f"  python {options.dst}/load.py 64 {special.get('bos', 0)}"]


def _write_params(model: Model, config: ModelConfig, heads: int, parameters: Mapping[str, Piece],
                  folder: pathlib.Path) -> None:
    """Writes the parameters, one at a time, in the dtypes that the programs take."""
    entries = []
    for name, piece in parameters.items():
        rows = piece.path.startswith(("embedding/", "unembedding/"))
        transform = Vocabulary(rows=config.vocab_size or 0) if rows else Copy()
        entries.append(Entry(name, piece.path, piece.index, transform))

    def left_out(path: str, index: Index) -> bool:
        # The programs run all loops of a looped trunk, whatever its gate would say.
        return path.startswith("gate/") or heads < config.num_heads and path.startswith(("heads/", "unembedding/"))

    check_covered(model.leaves, entries, left_out)
    infos = {name: Info(tuple(piece.shape), piece.dtype) for name, piece in parameters.items()}
    with SafetensorsWriter(folder, infos, shard_bytes=2**62, name=PARAMS) as writer:
        for name, tensor in stream(model, entries, None):
            if tensor.dtype != infos[name].dtype:
                tensor = tensor.astype(infos[name].dtype)
                check_finite(tensor, f"{name} as {tensor.dtype}", "choose a --dtype of a wider range.")
            writer.write(name, tensor)


def _places(folder: pathlib.Path) -> dict[str, Any]:
    """Returns where each parameter lies in their file, so that nobody needs to read its header."""
    found = open_file(folder / PARAMS)
    return {"file": PARAMS, "arrays": {name: {"shape": list(info.shape), "dtype": str(info.dtype),
                                              "offset": found.places[name][1]} for name, info in found.infos.items()}}


def _described(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns shapes, open sizes as their symbols, and dtypes for the manifest."""
    return {name: _described(leaf) if isinstance(leaf, Mapping) else {
        "shape": [size if isinstance(size, int) else str(size) for size in leaf.shape], "dtype": str(leaf.dtype)}
        for name, leaf in arrays.items()}


def _checksum(path: pathlib.Path) -> dict[str, Any]:
    """Returns size and SHA-256 of a file."""
    with open(path, "rb") as handle:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
