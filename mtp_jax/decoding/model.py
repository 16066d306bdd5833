"""A model that is ready to decode."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtp_jax.config import ModelConfig, check_choice
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding.weights import Weights, unstack
from mtp_jax.model import ModelSpec
from mtp_jax.model.heads import HEAD_KINDS, get_head_kind
from mtp_jax.model.language_model import Params
from mtp_jax.parallel import Layout

CACHE_DTYPES = ("float32", "bfloat16")  # and the model's own


@dataclasses.dataclass(frozen=True)
class DecodingModel:
    """A model's weights and what one must know to decode with them.

    Attributes:
      config: the model's shape.
      weights: its parameters, with the heads that are loaded.
      heads: how many heads can be used.
      window: tokens of context, prompt and new ones together.
      tokenizer: of the text; None where prompts are ids.
      layout: mesh and rules; None: one device.
      cache_dtype: what keys and values are kept in.
      source: the workdir that it was read from, if any.
      step: of the checkpoint.
      programs: compiled programs, by what is static in them.
    """

    config: ModelConfig
    weights: Weights
    heads: int
    window: int
    tokenizer: Tokenizer | None = None
    layout: Layout | None = None
    cache_dtype: str = "float32"
    source: str | None = None
    step: int | None = None
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def from_params(cls, spec: ModelSpec, params: Params, *, heads: int | None = None,
                    tokenizer: Tokenizer | None = None, window: int, layout: Layout | None = None,
                    cache_dtype: str | None = None) -> DecodingModel:
        """Prepares parameters for decoding.

        Args:
          spec: the model.
          params: its parameters; those of heads that are not used may be missing.
          heads: k, how many heads to keep, from the first; None: all.
          tokenizer: of the text; None: prompts must be ids.
          window: tokens of context, prompt and new ones together.
          layout: mesh and rules; None: one device.
          cache_dtype: what keys and values are kept in; None: the model's dtype.

        Raises:
          ValueError: as `check_use`; or the layout does not divide the model.
        """
        config = spec.config
        heads = config.num_heads if heads is None else heads
        cache_dtype = cache_dtype or config.dtype
        check_use(config, heads=heads, window=window, cache_dtype=cache_dtype)
        if layout is not None:
            if layout.size("length") > 1:
                raise ValueError(f"mesh: {' and '.join(layout.rules['length'])} of size {layout.size('length')} splits "
                                 "the positions of a row, and decoding adds a few at a time: the devices would all do "
                                 "the same. Give them to data, fsdp or tensor.")
            # Blocks are too short to be split.
            layout = dataclasses.replace(layout, rules={**layout.rules, "length": (), "residual": ()})
        return cls(config, unstack(spec, params, heads=heads, layout=layout), heads, window, tokenizer, layout,
                   cache_dtype)

    @property
    def platform(self) -> str:
        """Where it runs: "cpu", "gpu" or "tpu"."""
        if self.layout is not None:
            return self.layout.mesh.devices.flat[0].platform
        return next(iter(self.weights.embedding_VxD.devices())).platform

    @property
    def rows_multiple(self) -> int:
        """The batch must be a multiple of this, so that every device gets whole rows."""
        return 1 if self.layout is None else self.layout.size("batch")


def check_use(config: ModelConfig, *, heads: int, window: int, cache_dtype: str) -> None:
    """Raises ValueError unless a model of this shape can be used so; `DecodingModel` says what the settings mean."""
    check_heads(heads, config.num_heads)
    if window < 1:
        raise ValueError(f"window={window} must be at least 1: it counts the tokens of the prompt and the new ones.")
    check_choice("cache_dtype", cache_dtype, tuple(dict.fromkeys((*CACHE_DTYPES, config.dtype))))


def check_branches(config: ModelConfig, setting: str) -> None:
    """Raises ValueError, which begins with `setting`, where the model's heads draft one after the other and so make a
    chain, never a tree."""
    if get_head_kind(config.head_kind).in_turn:
        able = ", ".join(sorted(name for name, kind in HEAD_KINDS.items() if not kind.in_turn))
        raise ValueError(f"{setting} branches, and heads of kind {config.head_kind!r} draft one after the other, each "
                         f"from the draft before: use a chain (--heads=K, without --tree). Kinds that can draft "
                         f"trees: {able}.")


def check_heads(heads: int, there: int) -> None:
    """Raises ValueError unless a model with `there` heads can use `heads` of them."""
    if not 1 <= heads <= there:
        raise ValueError(f"heads={heads} must lie in 1..{there}, for the model has {there} "
                         f"head{'s' if there > 1 else ''}: 1 decodes without drafts.")
