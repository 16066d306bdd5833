"""The format `workdir`: a run's folder. Read, it gives the run's model; written, a run can start from it.

What is written holds parameters and no optimizer: `python -m mtp_jax.generate` decodes with it, `init_from.path` and
`experiments.finetune` start from it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath

import mtp_jax
from mtp_jax import files
from mtp_jax.checkpoints import reading, structure
from mtp_jax.checkpoints.init_from import locate
from mtp_jax.checkpoints.streaming import LazyLeaf, save_params
from mtp_jax.config import Config, ConvertConfig, dumps, from_dict, to_dict
from mtp_jax.convert import tokenizer_files
from mtp_jax.convert.model import Index, Model
from mtp_jax.convert.table import DTYPES, check_finite
from mtp_jax.decoding.load import read_run
from mtp_jax.model import ModelSpec
from mtp_jax.model.heads import HEAD_KINDS
from mtp_jax.training import workdir as workdirs

__all__ = ["HEAD_KINDS", "read", "write"]
TOKENIZER_FOLDER = "tokenizer"


def read(path: pathlib.Path, options: ConvertConfig) -> Model:
    """Opens a run's model; its arrays are read one leaf at a time, from however many devices they were saved.

    Args:
      path: not looked at: of a bucket it would be wrong.
      options: name the folder as `src`.

    Raises:
      ValueError, CheckpointError: as mtp_jax.decoding.load_model.
    """
    del path
    folder = epath.Path(options.src).expanduser()
    run = read_run(folder, tokenizer=options.tokenizer or None, step=options.step)
    config = run.config
    checkpoint = locate(run.checkpoint, verify=config.checkpoint.verify)
    leaves = {name.removeprefix(structure.PARAMS): leaf for name, leaf in reading.stored_leaves(checkpoint).items()
              if name.startswith(structure.PARAMS)}
    wanted = structure.flatten(ModelSpec.create(config.model).shapes)
    structure.check_same(leaves, wanted, where=f"The checkpoint {checkpoint}",
                         remedy=f"{folder / workdirs.CONFIG_FILE} tells of another model: restore the one that "
                                "training wrote, or delete it, for the checkpoints hold the same settings.")
    facts = {"step": int(checkpoint.name), "config": to_dict(config), "source": str(folder),
             "metrics": _last_metrics(folder, int(checkpoint.name)), "corpus_hash": run.stored.get("corpus_hash")}
    return Model(config.model, {name: structure.Leaf(tuple(leaf.shape), np.dtype(leaf.dtype))
                                for name, leaf in leaves.items()},
                 _reader(checkpoint, leaves), config.data.seq_len, run.tokenizer,
                 _tokenizer_files(options.tokenizer or config.data.tokenizer), facts)


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes config.json, tokenizer/ and a checkpoint of the step that the model has, 0 where it has none.

    Raises:
      ValueError: a number is NaN or infinite.
    """
    dtypes = {str(leaf.dtype) for leaf in model.leaves.values()}
    stored = options.dtype or model.config.param_dtype
    if stored == "float16":
        raise ValueError("--dtype=float16 cannot be had in a workdir: choose float32 or bfloat16.")
    dtype = DTYPES[stored]
    if dtypes != {stored}:
        logging.info("Numbers of %s become %s.", ", ".join(sorted(dtypes)), stored)

    def array(path: str, index: Index) -> np.ndarray:
        return model.read(path, index).astype(dtype, copy=False)

    leaves = {}
    for path, leaf in model.leaves.items():
        stacked = path.startswith(("trunk/", "heads/")) or structure.has_head_axis(path, leaf)
        for index in ([(i,) for i in range(leaf.shape[0])] if stacked else [()]):
            check_finite(array(path, index), f"{path}{list(index) or ''}", "convert an undamaged checkpoint.")
        leaves[path] = LazyLeaf(tuple(leaf.shape), dtype, functools.partial(array, path), stacked)

    for name, data in model.tokenizer_files.items():
        (folder / TOKENIZER_FOLDER).mkdir(exist_ok=True)
        (folder / TOKENIZER_FOLDER / name).write_bytes(data)
    config, digest = _config(model, stored, options), "" if model.tokenizer is None else model.tokenizer.hash
    text = dumps(config, version=mtp_jax.__version__, corpus_hash="", tokenizer_hash=digest)
    step = int(model.facts.get("step", 0))
    save_params(folder / workdirs.CHECKPOINTS, step, leaves,
                {"config": to_dict(config), "tokenizer_hash": digest, "converted_from": model.facts.get("source", "")})
    files.replace(folder / workdirs.CONFIG_FILE, text.encode())
    return [f"python -m mtp_jax.generate --workdir={options.dst} --prompt=TEXT",
            f"python -m experiments.finetune --workdir=NEW --config.source_run={options.dst} --config.num_heads=N"]


def _config(model: Model, stored: str, options: ConvertConfig) -> Config:
    """Returns the settings that a run which starts from the model has: those it was trained with where they are known,
    with the tokenizer where it lies now."""
    known = model.facts.get("config")
    config = from_dict(known) if known else Config()
    shape = dataclasses.replace(model.config, param_dtype=stored)
    data = dataclasses.replace(config.data, seq_len=model.window)
    if model.tokenizer_files:
        data = dataclasses.replace(data, tokenizer=str(pathlib.Path(options.dst).absolute() / TOKENIZER_FOLDER))
    return dataclasses.replace(config, model=shape, data=data)


def _reader(checkpoint: epath.Path, leaves: dict[str, Any]) -> Callable[[str, Index], np.ndarray]:
    """Returns the `read` of a model in a checkpoint; the leaf that was read last stays in memory."""
    held: dict[str, np.ndarray] = {}

    def read(path: str, index: Index) -> np.ndarray:
        if path not in held:
            held.clear()  # before the next is read, or there would be two
            name = structure.PARAMS + path
            held[path] = reading.read_arrays(checkpoint, {name: leaves[path]})[name]
        return held[path][index]

    return read


def _tokenizer_files(name: str) -> dict[str, bytes]:
    """Returns the files of the tokenizer that `data.tokenizer` names; none for a registered one, such as bytes."""
    from mtp_jax.data.tokenizer import TOKENIZERS

    if name in TOKENIZERS:
        return {}
    path = epath.Path(name).expanduser()
    found = [path / file for file in ("tokenizer.json", "tokenizer.model")] if path.is_dir() else [path]
    kept = next(file for file in found if file.exists())
    named = {kept: "tokenizer.json" if kept.suffix == ".json" else "tokenizer.model"}
    if kept.suffix == ".json":
        named |= {kept.parent / file: file for file in tokenizer_files.BESIDE if (kept.parent / file).exists()}
    return {target: file.read_bytes() for file, target in named.items()}


def _last_metrics(folder: epath.Path, step: int) -> dict[str, Any]:
    """Returns the last line of metrics.jsonl of each split, up to a step; lines that are damaged tell nothing."""
    path, found, damaged = folder / "metrics.jsonl", {}, 0
    if path.exists():
        for line in path.read_bytes().decode(errors="replace").splitlines():
            try:
                record = json.loads(line)
                if record["step"] <= step:
                    found[str(record["split"])] = record
            except (ValueError, KeyError, TypeError, RecursionError):  # TypeError: JSON, but not an object
                damaged += 1
    if damaged:
        logging.warning("%s: %d lines cannot be read, and are left out of what is told of the run.", path, damaged)
    return found
