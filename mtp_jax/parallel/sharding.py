"""From logical axes to a layout on the mesh.

Modules say what an axis is ("embed", "heads"); the rules of the config say which mesh axes split it. A rule that
could not be obeyed raises: nothing is replicated because a name was misspelt.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtp_jax.config import nearest

LOGICAL_AXES = ("batch", "length", "residual", "vocab", "embed", "embed_out", "heads", "kv_heads", "head_dim", "mlp",
                "layers", "pred_heads", "norm")

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules for it.

    Attributes:
      mesh: the device mesh.
      rules: {logical axis: mesh axes that split it, in order}.
    """

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]

    @classmethod
    def create(cls, mesh: Mesh, rules: Sequence[tuple[str, Any]]) -> Layout:
        """Checks the rules of a config and builds the layout.

        Args:
          mesh: the device mesh.
          rules: pairs of a logical axis and a mesh axis, several, or None for unsplit.

        Raises:
          ValueError: a logical or mesh axis is unknown, a logical axis has two rules or none.
        """
        table: dict[str, tuple[str, ...]] = {}
        for logical, target in rules:
            if logical not in LOGICAL_AXES:
                raise ValueError(f"parallel.rules: no module has the logical axis {logical!r}, so its rule "
                                 f"({logical!r}, {target!r}) would be dropped.{nearest(logical, LOGICAL_AXES)}")
            if logical in table:
                raise ValueError(f"parallel.rules: {logical!r} has two rules; the second, {target!r}, would be "
                                 "dropped. Name all its mesh axes in one rule.")
            names = () if target is None else (target,) if isinstance(target, str) else tuple(target)
            for name in names:
                if name not in mesh.axis_names:
                    raise ValueError(f"parallel.rules: the rule for {logical!r} names the unknown mesh axis {name!r}; "
                                     f"the axes are {list(mesh.axis_names)}.{nearest(str(name), mesh.axis_names)}")
            table[logical] = names
        missing = [name for name in LOGICAL_AXES if name not in table]
        if missing:
            raise ValueError(f"parallel.rules has no rule for {missing}: add (\"{missing[0]}\", None) to leave an axis "
                             "unsplit.")
        return cls(mesh, table)

    def size(self, logical: str) -> int:
        """Returns the number of parts that the logical axis is split into."""
        return math.prod(self.mesh.shape[name] for name in self.rules[logical])

    def spec(self, axes: Axes, name: str = "array") -> PartitionSpec:
        """Returns the PartitionSpec of an array with these logical axes.

        Raises:
          ValueError: an axis is unknown, or one mesh axis would split two axes of the array.
        """
        used: dict[str, str] = {}
        parts: list[Any] = []
        for logical in axes:
            if logical is None:
                parts.append(None)
                continue
            if logical not in self.rules:
                raise ValueError(f"{name}: unknown logical axis {logical!r}.{nearest(logical, self.rules)}")
            names = self.rules[logical]
            for mesh_axis in names:
                if mesh_axis in used:
                    raise ValueError(f"{name} with axes {axes}: parallel.rules splits both {used[mesh_axis]!r} and "
                                     f"{logical!r} by the mesh axis {mesh_axis!r}; give one of them another.")
                used[mesh_axis] = logical
            parts.append(None if not names else names[0] if len(names) == 1 else names)
        return PartitionSpec(*parts)

    def sharding(self, axes: Axes, shape: Sequence[int] | None = None, name: str = "array") -> NamedSharding:
        """Returns the NamedSharding of an array with these logical axes.

        Args:
          axes: one logical axis, or None, for each axis of the array.
          shape: if given, checked to be divisible.
          name: what to call the array in an error, such as its path.

        Raises:
          ValueError: as `spec`, the shape has another number of axes, or an axis is not divisible by the parts it would
            be split into.
        """
        spec = self.spec(axes, name)
        if shape is not None and len(shape) != len(axes):
            raise ValueError(f"{name} of shape {tuple(shape)} has {len(shape)} axes, but {axes} names {len(axes)}.")
        for logical, length in zip(axes, shape or ()):
            if logical is not None and length % self.size(logical):
                raise ValueError(f"{name} of shape {tuple(shape or ())} with axes {axes}: {logical!r} has length "
                                 f"{length}, which {self.rules[logical]} of parallel.mesh would split into "
                                 f"{self.size(logical)}; change the size, the mesh or the rule for {logical!r}.")
        return NamedSharding(self.mesh, spec)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())


_current: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def use_layout(layout: Layout | None) -> Iterator[None]:
    """Makes `layout` the one that `constrain` obeys, while a function is traced."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def current_layout() -> Layout | None:
    """Returns the layout in use, or None outside `use_layout`."""
    return _current.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler how `x` lies on the mesh; outside `use_layout`, returns `x` as it is."""
    layout = _current.get()
    if layout is None or layout.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(axes))
