"""A format as a table: one line for each of its tensors, saying which array of ours it is.

Everything else follows from the table: what is written, in which order and from which array; what is read, what is
missing or too many in a file; whether an array of ours would be lost.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging

from mtp_jax.checkpoints.structure import Leaf, flatten
from mtp_jax.config import ConvertConfig, ModelConfig, nearest
from mtp_jax.convert.model import Index, Model
from mtp_jax.convert.safetensors_file import Info, SafetensorsWriter, Tensors
from mtp_jax.convert.transforms import Copy, Folded, InterleavedLinear, InterleavedNorm, Linear, Vocabulary
from mtp_jax.model import ModelSpec

DTYPES = {"float64": np.dtype(np.float64), "float32": np.dtype(np.float32), "float16": np.dtype(np.float16),
          "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_SHOWN = 8  # names that an error lists
_BLOCK = 2**22  # numbers that are checked at a time


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
      name: of the tensor.
      path: golden path of our leaf.
      index: of the array in the leaf, where it is stacked.
      transform: from the array to the tensor.
    """

    name: str
    path: str
    index: Index = ()
    transform: Copy = Copy()


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """What a format calls the parts of a transformer layer, behind the layer's prefix."""

    attention_norm: str
    query: str
    key: str
    value: str
    out: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    query_norm: str = ""
    key_norm: str = ""


LLAMA = BlockNames("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
                   "self_attn.v_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
                   "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "self_attn.q_norm.weight",
                   "self_attn.k_norm.weight")  # the norms as in Qwen3 and Mellum
META = BlockNames("attention_norm.weight", "attention.wq.weight", "attention.wk.weight", "attention.wv.weight",
                  "attention.wo.weight", "ffn_norm.weight", "feed_forward.w1.weight", "feed_forward.w3.weight",
                  "feed_forward.w2.weight")


def block_entries(config: ModelConfig, names: BlockNames, *, prefix: str, path: str, index: int,
                  interleaved: bool = False) -> list[Entry]:
    """Returns the lines of one transformer layer.

    Args:
      config: the model's shape.
      names: of the parts.
      prefix: of the layer's tensors, such as "model.layers.3.".
      path: of our stack: "trunk", "heads".
      index: of the layer in it.
      interleaved: rotary pairs are neighbours there.
    """
    rotated: Copy = InterleavedLinear() if interleaved else Linear()
    parts = [("attention_norm/scale", names.attention_norm, Copy()), ("attention/query", names.query, rotated),
             ("attention/key", names.key, rotated), ("attention/value", names.value, Linear()),
             ("attention/out", names.out, Linear(inputs=2)), ("mlp_norm/scale", names.mlp_norm, Copy()),
             ("mlp/gate", names.gate, Linear()), ("mlp/up", names.up, Linear()), ("mlp/down", names.down, Linear())]
    if config.qk_norm:
        norm = InterleavedNorm() if interleaved else Copy()
        parts += [("attention/query_norm/scale", names.query_norm, norm),
                  ("attention/key_norm/scale", names.key_norm, norm)]
    return [Entry(prefix + name, f"{path}/{ours}", (index,), transform) for ours, name, transform in parts]


def embedding_entry(config: ModelConfig, name: str) -> Entry:
    """Returns the line of the token vectors."""
    return Entry(name, "embedding/embedding", (), Vocabulary(rows=config.vocab_size or 0))


def unembedding_entry(config: ModelConfig, name: str, head: int = 1) -> list[Entry]:
    """Returns the line of a head's unembedding; none where it is tied to the embedding.

    Args:
      config: the model's shape.
      name: of the tensor.
      head: its number, from 1; all have the same where the unembedding is shared.
    """
    if config.tie_embedding:
        return []
    index = (head - 1,) if config.unembedding == "replicated" else ()
    return [Entry(name, "unembedding/kernel", index, Vocabulary(rows=config.vocab_size or 0))]


def check_covered(leaves: Mapping[str, Leaf], entries: Sequence[Entry],
                  left_out: Callable[[str, Index], bool] = lambda path, index: False) -> None:
    """Raises ValueError where an array would be lost that the format does not leave out knowingly.

    Args:
      leaves: of the model.
      entries: the table.
      left_out: tells of (path, index) whether the format does without it on purpose.
    """
    there = {(entry.path, entry.index[:1]) for entry in entries}  # one array may be several tensors, by a second index
    there |= {(entry.transform.path, entry.transform.index) for entry in entries if isinstance(entry.transform, Folded)}
    lost = []
    for path, leaf in leaves.items():
        rows = [(i,) for i in range(leaf.shape[0])] if leaf.shape and (path, ()) not in there else [()]
        lost += [f"{path}{list(row) or ''}" for row in rows if (path, row) not in there and not left_out(path, row)]
    if lost:
        raise ValueError(f"The format has no place for {_listed(lost)}, which would be lost.")


def infos(leaves: Mapping[str, Leaf], entries: Sequence[Entry], dtype: str | None) -> dict[str, Info]:
    """Returns what `stream` is going to give, in its order.

    Args:
      leaves: of the model.
      entries: the table.
      dtype: of the tensors; None: as stored.
    """
    found = {}
    for entry in _in_order(leaves, entries):
        leaf = leaves[entry.path]
        found[entry.name] = Info(entry.transform.shape(tuple(leaf.shape[len(entry.index):])),
                                 DTYPES[dtype] if dtype else np.dtype(leaf.dtype))
    return found


def stream(model: Model, entries: Sequence[Entry], dtype: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, tensor), one leaf of ours after the other, so that each is read once.

    Raises:
      ValueError: a number is NaN or infinite, also one that the narrower dtype cannot hold.
    """
    for entry in _in_order(model.leaves, entries):
        array = model.read(entry.path, entry.index)
        where = f"{entry.path}{list(entry.index) or ''}"
        check_finite(array, where, "training has diverged: take the checkpoint of an earlier step, --step=STEP.")
        transform = entry.transform
        if isinstance(transform, Folded):
            tensor = transform.fold(array, model.read(transform.path, transform.index))
        else:
            tensor = transform.out(array)
        if dtype and tensor.dtype != DTYPES[dtype]:
            with np.errstate(over="ignore"):  # told below
                tensor = tensor.astype(DTYPES[dtype])
            check_finite(tensor, f"{where} as {dtype}", "choose a --dtype of a wider range.")
        yield entry.name, tensor


def write_safetensors(model: Model, entries: Sequence[Entry], folder: pathlib.Path, options: ConvertConfig,
                      **settings: Any) -> str:
    """Writes the tensors of a table and returns the dtype of the first, "" where there is none; `settings` go over
    those that `SafetensorsWriter` gets of the options."""
    announced = infos(model.leaves, entries, options.dtype)
    settings = {"shard_bytes": options.max_shard_megabytes * 10**6, **settings}
    with SafetensorsWriter(folder, announced, **settings) as writer:
        for name, tensor in stream(model, entries, options.dtype):
            writer.write(name, tensor)
    return next((str(info.dtype) for info in announced.values()), "")


def check_finite(array: np.ndarray, where: str, remedy: str) -> None:
    """Raises ValueError where an array holds NaN or infinity; in blocks, so that it takes no memory to speak of."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1) if array.flags.f_contiguous else None
    rows = [array] if flat is None else [flat[i:i + _BLOCK] for i in range(0, flat.size, _BLOCK)]
    bad = sum(int(np.count_nonzero(~np.isfinite(row))) for row in rows)
    if bad:
        raise ValueError(f"{where} holds {bad} numbers that are NaN or infinite, of {array.size}: {remedy}")


def leaves_of(config: ModelConfig, tensors: Tensors) -> dict[str, Leaf]:
    """Returns the arrays that a model has, golden path -> shape and dtype, before its table is made.

    Args:
      config: the model's shape, as its files tell it.
      tensors: the files.

    Raises:
      ValueError: it tells of more layers than there are tensors; a table of millions of lines would take all memory.
    """
    own = config.medusa_layers if config.head_kind == "medusa" else 1
    for field, told in (("layers", config.num_layers), ("heads", (config.num_heads - 1) * own)):
        if told > len(tensors.infos):
            raise ValueError(f"{tensors.place} holds {len(tensors.infos)} tensors, and its config tells of {told} "
                             f"{field}: correct the config, or convert a whole checkpoint.")
    return {path: Leaf(tuple(leaf.shape), np.dtype(leaf.dtype))
            for path, leaf in flatten(ModelSpec.create(config).shapes).items()}


def stored_dtype(tensors: Tensors, ignored: Callable[[str], bool] = lambda name: False) -> str:
    """Returns the dtype to keep a model in: that of its tensors, or one that holds all of theirs.

    Args:
      tensors: the files.
      ignored: tells of a tensor's name whether it is no part of the model.

    Raises:
      ValueError: a tensor holds whole or packed numbers.
    """
    kinds = {str(info.dtype): name for name, info in tensors.infos.items() if not ignored(name)}
    other = next((kind for kind in kinds if kind not in DTYPES), None)
    if other:
        raise ValueError(f"{tensors.place}: {kinds[other]} is of {other}, and only plain numbers can be read (float64, "
                         "float32, bfloat16, float16).")
    if len(kinds) == 1 and "float16" not in kinds:
        return next(iter(kinds))
    wide = "float64" if "float64" in kinds else "float32"
    logging.info("Numbers of %s become %s.", ", ".join(sorted(kinds)), wide)
    return wide


def reader(leaves: Mapping[str, Leaf], entries: Sequence[Entry], tensors: Tensors, *,
           ignored: Callable[[str], bool] = lambda name: False) -> Callable[[str, Index], np.ndarray]:
    """Returns the `read` of a model whose arrays lie as tensors in another format.

    Args:
      leaves: of the model; a leaf's dtype is what its tensors are converted to.
      entries: the table; each array of ours needs a line.
      tensors: the files.
      ignored: tells of a tensor's name whether it may be there for nothing.

    Raises:
      ValueError: tensors are missing, too many, or misshapen; names them, with the nearest match.
    """
    wanted = infos(leaves, entries, None)
    missing = [name for name in wanted if name not in tensors.infos]
    extra = [name for name in tensors.infos if name not in wanted and not ignored(name)]
    if missing:
        raise ValueError(f"{tensors.place} lacks {_listed(missing)}.{nearest(missing[0], extra)} Its config says "
                         "that it should be there: convert a whole checkpoint.")
    if extra:
        raise ValueError(f"{tensors.place} holds {_listed(extra)}, which the model of its config has no place for."
                         f"{nearest(extra[0], list(wanted))}")
    for name, info in wanted.items():
        found = tensors.infos[name]
        if found.shape != info.shape:
            raise ValueError(f"{tensors.place}: {name} has the shape {list(found.shape)}, and its config makes it "
                             f"{list(info.shape)}: correct the config, or convert a whole checkpoint.")
    by_place = {(entry.path, entry.index): entry for entry in entries}

    def read(path: str, index: Index) -> np.ndarray:
        leaf, entry = leaves[path], by_place.get((path, index))
        if entry is None:  # a leaf as a whole, of which the tensors are parts
            return np.stack([read(path, (*index, i)) for i in range(leaf.shape[len(index)])])
        tensor = tensors.read(entry.name)
        check_finite(tensor, f"{tensors.place}: {entry.name}", "convert an undamaged checkpoint.")
        array = entry.transform.back(tensor, tuple(leaf.shape[len(index):]))
        return np.ascontiguousarray(array.astype(leaf.dtype, copy=False))

    return read


def _in_order(leaves: Mapping[str, Leaf], entries: Sequence[Entry]) -> list[Entry]:
    """Returns the lines leaf by leaf."""
    by_path: dict[str, list[Entry]] = {path: [] for path in leaves}
    for entry in entries:
        by_path[entry.path].append(entry)
    return [entry for lines in by_path.values() for entry in lines]


def _listed(names: Collection[str]) -> str:
    """Returns the first names, and how many more there are."""
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
