"""Head 1 and the trunk as what every tool knows: a plain transformer that predicts the next token."""

from __future__ import annotations

import dataclasses

from mtp_jax.config import ModelConfig
from mtp_jax.convert.model import Index
from mtp_jax.convert.table import (
    BlockNames,
    Entry,
    block_entries,
    embedding_entry,
    unembedding_entry,
)
from mtp_jax.convert.transforms import Folded
from mtp_jax.model import get_head_kind, num_trunk_layers

# Head kinds whose head 1 is a plain transformer: the trunk, and the layers that head 1 reads it through.
HEAD_KINDS = ("parallel", "causal", "anticausal", "linear", "sequential", "medusa")


def layers(config: ModelConfig) -> list[tuple[str, int]]:
    """Returns where the plain transformer's layers lie, from the first: path of our stack and index in it."""
    trunk = [("trunk", i) for i in range(num_trunk_layers(config))]
    if config.head_kind in ("parallel", "causal"):
        return [*trunk, ("heads", 0)]
    if config.head_kind == "anticausal":  # head 1 reads the trunk through all the others
        return [*trunk, *[("heads", i) for i in reversed(range(config.num_heads))]]
    return trunk


def entries(config: ModelConfig, names: BlockNames, *, embedding: str, layer: str, norm: str, unembedding: str,
            interleaved: bool = False) -> list[Entry]:
    """Returns the table of the plain transformer.

    A linear head 1 is multiplied into the unembedding, so that a tied model gets one of its own.

    Args:
      config: the model's shape.
      names: of a layer's parts.
      embedding: name of the token vectors.
      layer: prefix of a layer's tensors, with {} for its number.
      norm: name of the final norm.
      unembedding: name of the logit vectors.
      interleaved: rotary pairs are neighbours there.
    """
    lines = [embedding_entry(config, embedding)]
    for number, (path, index) in enumerate(layers(config)):
        lines += block_entries(config, names, prefix=layer.format(number), path=path, index=index,
                               interleaved=interleaved)
    lines.append(Entry(norm, "final_norm/scale"))
    if config.head_kind != "linear":
        return lines + unembedding_entry(config, unembedding)
    path = "embedding/embedding" if config.tie_embedding else "unembedding/kernel"
    own: Index = (0,) if config.unembedding == "replicated" else ()
    return [*lines, Entry(unembedding, path, own, Folded(rows=config.vocab_size or 0))]


def first_heads(config: ModelConfig, heads: int) -> ModelConfig:
    """Returns the shape of the trunk and the first heads alone."""
    taken = get_head_kind(config.head_kind).layers_per_head * (config.num_heads - heads)
    return dataclasses.replace(config, num_heads=heads, num_layers=config.num_layers - taken)


def ties(config: ModelConfig) -> bool:
    """Tells whether the plain transformer's unembedding is its embedding."""
    return config.tie_embedding and config.head_kind != "linear"


def further_heads(config: ModelConfig, path: str, index: Index) -> bool:
    """Tells whether an array of ours serves heads 2..N alone, so that the plain transformer does without it."""
    if path.startswith("heads/"):
        return ("heads", index[0] if index else -1) not in layers(config)
    return path == "unembedding/kernel" and config.unembedding == "replicated" and index != (0,)
