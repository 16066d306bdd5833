"""The device mesh, made from one line of text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mtp_jax.config import nearest

# data: copies of the model, each with its rows; fsdp: rows too, parameters split; sequence: the positions of a row
# split; tensor: heads, F and V split; pred_heads: prediction heads split.
AXES = ("data", "fsdp", "sequence", "tensor", "pred_heads")


def parse_mesh(spec: str, num_devices: int) -> dict[str, int]:
    """Returns the size of every mesh axis.

    Args:
      spec: "axis:size,..." with axes of `AXES`; one size may be -1, which takes the devices that are left. Axes that
        are not named have size 1.
      num_devices: devices to spread over.

    Returns:
      {axis: size} in the order of `AXES`; the sizes multiply to `num_devices`.

    Raises:
      ValueError: an axis is unknown or named twice, a size is no number, or the product does not fit the devices.
    """
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES:
            raise ValueError(f"parallel.mesh={spec!r} names the unknown axis {name!r}; the axes are {list(AXES)}."
                             f"{nearest(name, AXES)}")
        if name in sizes:
            raise ValueError(f"parallel.mesh={spec!r} names the axis {name!r} twice.")
        if not re.fullmatch("-1|0*[1-9][0-9]*", size):
            raise ValueError(f"parallel.mesh={spec!r}: the size of {name!r} must be a positive number, or -1 to take "
                             f"the devices that are left; got {size!r}.")
        sizes[name] = int(size)
    fill = [name for name, size in sizes.items() if size == -1]
    if len(fill) > 1:
        raise ValueError(f"parallel.mesh={spec!r}: only one axis can be -1, got {fill}.")
    used = math.prod(size for size in sizes.values() if size != -1)
    if fill:
        if used > num_devices or num_devices % used:
            raise ValueError(f"parallel.mesh={spec!r}: {num_devices} devices cannot be split by the {used} of the "
                             f"fixed axes; lower one of them.")
        sizes[fill[0]] = num_devices // used
    elif used > num_devices:
        raise ValueError(f"parallel.mesh={spec!r} needs {used} devices, there are {num_devices}: lower a size, or set "
                         "one to -1.")
    elif used < num_devices:
        raise ValueError(f"parallel.mesh={spec!r} leaves {num_devices - used} of {num_devices} devices idle: raise a "
                         "size, or set one to -1.")
    return {name: sizes.get(name, 1) for name in AXES}


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh that `spec` describes; the one place where a mesh is made.

    Args:
      spec: as for `parse_mesh`.
      devices: the devices to use; None: all of them, over all processes.

    Returns:
      A mesh with the axes of `AXES`, all of type Auto (make_mesh's own default, Explicit, refuses `embedding[ids]`).

    Raises:
      ValueError: as `parse_mesh`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = parse_mesh(spec, len(devices))
    shape = tuple(sizes.values())
    if len(devices) == 1:
        grid = np.array(devices).reshape(shape)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(batch_size: int, microbatches: int, mesh: Mesh, batch_axes: Sequence[str]) -> None:
    """Raises ValueError unless every device gets whole rows of every microbatch."""
    parts = math.prod(mesh.shape[axis] for axis in batch_axes)
    if batch_size % (parts * microbatches):
        sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in batch_axes)
        per = f" in compute.microbatches={microbatches} parts" if microbatches > 1 else ""
        raise ValueError(f"data.batch_size={batch_size}{per} is not divisible by the {parts} devices that rows are "
                         f"spread over ({sizes}): choose a multiple of {parts * microbatches}, or another "
                         "parallel.mesh.")
