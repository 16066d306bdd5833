"""A model that is ready to decode."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.config import ModelConfig, check_choice
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding.weights import Weights, unstack
from mtp_jax.model import ModelSpec, num_trunk_layers
from mtp_jax.model.heads import HEAD_KINDS, get_head_kind
from mtp_jax.model.language_model import Params
from mtp_jax.model.redistribution import Redistribution
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
                    cache_dtype: str | None = None, exit_threshold: float | None = None, loops: int | None = None
                    ) -> DecodingModel:
        """Prepares parameters for decoding.

        Args:
          spec: the model.
          params: its parameters; those of heads that are not used may be missing.
          heads: k, how many heads to keep, from the first; None: all.
          tokenizer: of the text; None: prompts must be ids.
          window: tokens of context, prompt and new ones together.
          layout: mesh and rules; None: one device.
          cache_dtype: what keys and values are kept in; None: the model's dtype.
          exit_threshold: see `leaving`.
          loops: how many of a looped trunk's loops to run at most, from the first; None: all.

        Raises:
          ValueError: as `check_use` and `check_loops`; or the layout does not divide the model.
        """
        config = spec.config
        heads = config.num_heads if heads is None else heads
        cache_dtype = cache_dtype or config.dtype
        check_use(config, heads=heads, window=window, cache_dtype=cache_dtype)
        check_loops(config, loops=loops, exit_threshold=exit_threshold)
        if layout is not None:
            if layout.size("length") > 1:
                raise ValueError(f"mesh: {' and '.join(layout.rules['length'])} of size {layout.size('length')} splits "
                                 "the positions of a row, and decoding adds a few at a time: the devices would all do "
                                 "the same. Give them to data, fsdp or tensor.")
            # Blocks are too short to be split.
            layout = dataclasses.replace(layout, rules={**layout.rules, "length": (), "residual": ()})
        weights = unstack(spec, params, heads=heads, layout=layout)
        if loops is not None:
            config = dataclasses.replace(config, loops=loops)
        return cls(config, weights, heads, window, tokenizer, layout, cache_dtype).leaving(exit_threshold)

    def leaving(self, exit_threshold: float | None) -> DecodingModel:
        """Returns the model with another threshold of early exit; compiled programs are shared.

        Args:
          exit_threshold: q in (0, 1]: each position leaves a looped trunk after the first loop in which the exit gate's
            probability to have left is at least q. None: all loops are run.

        Raises:
          ValueError: it is out of range, or the model has no exit gate.
        """
        check_loops(self.config, exit_threshold=exit_threshold)
        threshold = None
        if exit_threshold is not None:
            wide = jnp.promote_types(jnp.float32, self.config.dtype)
            threshold = jnp.asarray(exit_threshold, wide)
        return self._switched(exit_threshold=threshold)

    def redistributing(self, redistribution: Redistribution | None) -> DecodingModel:
        """Returns the model with other settings of the activation redistribution module; compiled programs are shared.

        Args:
          redistribution: of the trunk's first layer, in every loop of a looped one; None: the module is off.

        Raises:
          ValueError: the trunk has no layer.
        """
        if redistribution is not None and not num_trunk_layers(self.config):
            raise ValueError("redistribution moves activations of the trunk's first layer, and the trunk has none: "
                             f"all model.num_layers={self.config.num_layers} layers are heads.")
        return self._switched(redistribution=redistribution)

    def _switched(self, **settings: Any) -> DecodingModel:
        """Returns the model with other settings among its weights, each on all devices. Programs are shared: they are
        told apart by what is there, and by what is static in it."""
        if self.layout is not None:
            settings = jax.device_put(settings, self.layout.sharding(()))
        model = dataclasses.replace(self, weights=dataclasses.replace(self.weights, **settings))
        object.__setattr__(model, "programs", self.programs)
        return model

    @property
    def exit_threshold(self) -> float | None:
        """What positions leave a looped trunk at; None: all loops are run."""
        threshold = self.weights.exit_threshold
        return None if threshold is None else float(str(threshold))  # 0.2, which in fp32 is 0.200000003

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


def check_loops(config: ModelConfig, *, loops: int | None = None, exit_threshold: float | None = None) -> None:
    """Raises ValueError unless a model of this shape can run so many loops, and leave them at this threshold."""
    plain = f"its trunk is run once (model.trunk_kind={config.trunk_kind!r}, model.loops={config.loops})"
    if loops is not None and not 1 <= loops <= config.loops:
        there = f"the model was trained with model.loops={config.loops}" if config.loops > 1 else plain
        raise ValueError(f"loops={loops} must lie in 1..{config.loops}, for {there}.")
    if exit_threshold is None:
        return
    if not 0 < exit_threshold <= 1:
        raise ValueError(f"exit_threshold={exit_threshold} must lie in (0, 1]: a position leaves the trunk when the "
                         "exit gate's probability to have left is at least that; 1 runs all loops.")
    if config.loops == 1:
        raise ValueError(f"exit_threshold={exit_threshold} needs an exit gate, and the model has none: {plain}. Leave "
                         "out exit_threshold, or train a model with --config.model.trunk_kind=looped and "
                         "--config.model.loops above 1.")
    if loops == 1:
        raise ValueError(f"exit_threshold={exit_threshold} beside loops=1, which leaves nothing to exit from: leave "
                         "out one of them.")


def check_redistribution(redistribution: Redistribution | None, *, nodes: int, rows: int) -> None:
    """Raises ValueError where texts would depend on how they are decoded: blocks of more than one node, or more than
    one row, with statistics over all that is in a call."""
    if redistribution is None or redistribution.statistics == "token" or nodes == rows == 1:
        return
    what = f"blocks of {nodes} tokens" if nodes > 1 else f"a batch of {rows} rows"
    raise ValueError(f"redistribution has statistics='tensor', taken over all tokens of a call, and {what} are other "
                     "calls than one token at a time of one text: the same text would be continued otherwise. Use "
                     "statistics='token', or decode one prompt at a time with heads=1.")


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
