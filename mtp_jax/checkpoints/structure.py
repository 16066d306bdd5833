"""Trees as nested dicts with string keys, and the strict comparison of two of them.

A checkpoint holds plain nested dicts, so that it can be read without the classes that made it (the train state, optax's
named tuples) and by any tool that reads Orbax. The path of a leaf is its attribute, key or index at each level:
`opt_state/1/0/mu/embedding/embedding`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.checkpoints import errors

PARAMS = "params/"  # of a state: what the paths of its parameters begin with
_UNEMBEDDING = "unembedding/kernel"
_SHOWN = 20  # differences that an error lists


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} in the order of jax.tree.leaves.

    Raises:
      ValueError: a leaf is no array, or two leaves have the same path.
    """
    leaves = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = "/".join(_name(key) for key in keys)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(f"The leaf {path} is a {type(leaf).__name__}: a checkpoint holds arrays only; make it one "
                             "(jnp.asarray), or put it into `extra`.")
        if path in leaves:
            raise ValueError(f"Two leaves of the state have the path {path}: rename one.")
        leaves[path] = leaf
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"a/b": leaf} as {"a": {"b": leaf}}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def has_head_axis(name: str, leaf: Any) -> bool:
    """Tells whether a parameter has one entry a head on its first axis: a head's own, or one of N unembeddings.

    Args:
      name: path among the parameters.
      leaf: anything with a shape.
    """
    return (name.startswith("heads/") and len(leaf.shape) > 0) or (name == _UNEMBEDDING and len(leaf.shape) == 3)


def first_heads(leaves: Mapping[str, Any], heads: int, first_own: int) -> dict[str, Leaf]:
    """Returns shapes and dtypes of a model's parameters that its first heads need.

    Args:
      leaves: {path among the parameters: anything with shape and dtype}.
      heads: how many heads, from head 1.
      first_own: number of the first head with parameters under heads/.

    Returns:
      Those with one entry a head cut to the first ones, and left out where no entry is left.
    """
    cut = {}
    for name, leaf in leaves.items():
        shape = tuple(leaf.shape)
        if has_head_axis(name, leaf):
            shape = (heads - first_own + 1 if name.startswith("heads/") else heads, *shape[1:])
        if not shape or shape[0] > 0:
            cut[name] = Leaf(shape, leaf.dtype)
    return cut


def nbytes(leaves: Mapping[str, Any]) -> int:
    """Returns the bytes of all leaves together, over all hosts, before compression."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in leaves.values())


def check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], *, where: str, remedy: str) -> None:
    """Raises unless both have the same paths, shapes and dtypes.

    Args:
      saved: {path: anything with shape and dtype} of the checkpoint.
      wanted: the same of the state that it is to fill.
      where: the checkpoint, for the message.
      remedy: what to do, for the message.

    Raises:
      CheckpointMismatch: lists the leaves that differ, by path.
    """
    lines = []
    for path in sorted(saved.keys() | wanted.keys()):
        if path not in saved:
            lines.append(f"{path}: missing in the checkpoint, wanted {_shape(wanted[path])}")
        elif path not in wanted:
            lines.append(f"{path}: {_shape(saved[path])} in the checkpoint, unknown here")
        elif _shape(saved[path]) != _shape(wanted[path]):
            lines.append(f"{path}: {_shape(saved[path])} in the checkpoint, wanted {_shape(wanted[path])}")
    if lines:
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        shown = "\n  ".join(lines[:_SHOWN] + more)
        raise errors.CheckpointMismatch(f"{where} does not fit: {len(lines)} leaves differ.\n  {shown}\n{remedy}")


def placed(leaf: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of `leaf`; without any sharding, the first device of this process."""
    sharding = sharding or getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Shape and dtype of a stored array."""

    shape: tuple[int, ...]
    dtype: Any


def _shape(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _name(key: Any) -> str:
    """Returns one level of a path as a string."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise ValueError(f"{key!r} is no attribute, key or index: a state is made of dataclasses, dicts, lists and tuples.")
