"""The train state: what a step reads and writes, and a checkpoint holds."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import jax

from mtp_jax.checkpoints.structure import nest
from mtp_jax.config import nearest

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
      step: optimizer steps done, int32 scalar.
      params: nested dict of all parameters.
      opt_state: optax state of the parameters that train.
    """

    step: jax.Array
    params: Params
    opt_state: Any


def flatten_params(params: Params, prefix: str = "") -> dict[str, Any]:
    """Returns {"trunk/attention/query": leaf} of a nested dict, whose leaves may be tuples; `nest` is the inverse."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat.update(flatten_params(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def trainable_paths(params: Params, patterns: Sequence[str]) -> frozenset[str]:
    """Returns the paths of the parameters that train.

    Args:
      params: nested dict of parameters.
      patterns: glob patterns of paths, such as "heads/*"; none: all paths.

    Raises:
      ValueError: a pattern matches no parameter.
    """
    paths = flatten_params(params).keys()
    if not patterns:
        return frozenset(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(paths, pattern)
        if not matched:
            raise ValueError(f"train.trainable={tuple(patterns)}: {pattern!r} matches no parameter; they are "
                             f"{sorted(paths)}.{nearest(pattern, paths)}")
        chosen.update(matched)
    return frozenset(chosen)


def partition(params: Params, paths: frozenset[str]) -> tuple[Params, Params]:
    """Splits parameters into those whose path is in `paths` and the others, two nested dicts."""
    flat = flatten_params(params)
    return (nest({path: leaf for path, leaf in flat.items() if path in paths}),
            nest({path: leaf for path, leaf in flat.items() if path not in paths}))


def combine(first: Params, second: Params) -> Params:
    """Inverse of `partition`."""
    return nest({**flatten_params(first), **flatten_params(second)})
