"""What every format is converted from and to: a model's shape and its arrays, read one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mtp_jax.checkpoints.structure import Leaf
from mtp_jax.config import ModelConfig
from mtp_jax.data.tokenizer import Tokenizer

Index = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as it lies in some format; no array is in memory before it is asked for.

    Attributes:
      config: its shape, the vocabulary size resolved.
      leaves: golden path (tests/golden/parameters.json) -> shape and dtype.
      read: (path, index) -> the leaf, or with an index one of those that are stacked in it.
      window: tokens of context that it was trained on.
      tokenizer: of its ids; None where the source has none.
      tokenizer_files: name -> content of the files that the tokenizer was read from; none for bytes.
      facts: what is known of its making: "step", "config" (the run's, as in config.json), "metrics" (its last lines),
        "source" (the folder).
    """

    config: ModelConfig
    leaves: Mapping[str, Leaf]
    read: Callable[[str, Index], np.ndarray]
    window: int
    tokenizer: Tokenizer | None = None
    tokenizer_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
