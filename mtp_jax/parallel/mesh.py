"""The device mesh, made from one line of text."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence

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
    return _parse("parallel.mesh", spec, num_devices, "devices")


def _parse(field: str, spec: str, count: int, things: str) -> dict[str, int]:
    """`parse_mesh` for any field; `things` are the `count` devices or slices that the sizes multiply to."""
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES:
            raise ValueError(f"{field}={spec!r} names the unknown axis {name!r}; the axes are {list(AXES)}."
                             f"{nearest(name, AXES)}")
        if name in sizes:
            raise ValueError(f"{field}={spec!r} names the axis {name!r} twice.")
        if not re.fullmatch("-1|0*[1-9][0-9]*", size):
            raise ValueError(f"{field}={spec!r}: the size of {name!r} must be a positive number, or -1 to take "
                             f"the {things} that are left; got {size!r}.")
        sizes[name] = int(size)
    fill = [name for name, size in sizes.items() if size == -1]
    if len(fill) > 1:
        raise ValueError(f"{field}={spec!r}: only one axis can be -1, got {fill}.")
    used = math.prod(size for size in sizes.values() if size != -1)
    if fill:
        if used > count or count % used:
            raise ValueError(f"{field}={spec!r}: {count} {things} cannot be split by the {used} of the "
                             f"fixed axes; lower one of them.")
        sizes[fill[0]] = count // used
    elif used > count:
        raise ValueError(f"{field}={spec!r} needs {used} {things}, there are {count}: lower a size, or set "
                         "one to -1.")
    elif used < count:
        raise ValueError(f"{field}={spec!r} leaves {count - used} of {count} {things} idle: raise a "
                         "size, or set one to -1.")
    return {name: sizes.get(name, 1) for name in AXES}


def parse_dcn_mesh(spec: str, sizes: dict[str, int], num_slices: int) -> dict[str, int]:
    """Returns how many slices each mesh axis spans.

    Slices are groups of devices with a fast network of their own (ICI on TPU, NVLink on GPU) and a slow one between
    them (DCN). An axis of size 8 that spans 2 slices has 4 parts in each.

    Args:
      spec: "axis:slices,..."; one may be -1. Empty: the axis `data` spans all slices.
      sizes: whole size of every axis, from `parse_mesh`.
      num_slices: slices that the devices lie on.

    Returns:
      {axis: slices} in the order of `AXES`; they multiply to `num_slices`, and each divides its axis's size.

    Raises:
      ValueError: an axis is unknown or named twice, a number is none, the product is not the number of slices, or an
        axis of the mesh cannot be cut so.
    """
    slices = _parse("parallel.dcn_mesh", spec, num_slices, "slices") if spec else {**dict.fromkeys(AXES, 1),
                                                                                   "data": num_slices}
    for axis, number in slices.items():
        if sizes[axis] % number:
            fitting = [f"{name}:{num_slices}" for name in AXES if sizes[name] % num_slices == 0]
            remedy = (f"set parallel.dcn_mesh to one of {fitting}" if fitting else
                      f"give an axis of parallel.mesh a multiple of {num_slices}")
            said = f"parallel.dcn_mesh={spec!r}" if spec else "parallel.dcn_mesh is empty, so data spans the slices"
            raise ValueError(f"{said}: the axis {axis!r} of size {sizes[axis]} in parallel.mesh cannot be cut into "
                             f"{number} slices of the {num_slices} that the devices lie on; {remedy}.")
    return slices


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None, dcn_spec: str = "") -> Mesh:
    """Makes the mesh that `spec` describes; the one place where a mesh is made.

    Devices of a TPU are ordered so that neighbours on an axis are neighbours on its network. Where they lie on several
    slices, each slice is one contiguous block of the axes that `dcn_spec` names, and no other axis leaves a slice.

    Args:
      spec: as for `parse_mesh`; whole sizes, slices included.
      devices: the devices to use; None: all of them, over all processes.
      dcn_spec: as for `parse_dcn_mesh`.

    Returns:
      A mesh with the axes of `AXES`, all of type Auto (make_mesh's own default, Explicit, refuses `embedding[ids]`).

    Raises:
      ValueError: as `parse_mesh` and `parse_dcn_mesh`; or the slices are of unequal size.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = parse_mesh(spec, len(devices))
    # Devices of a platform without slices, such as CPU, have no such attribute: they are one slice.
    on_slice = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(on_slice.values())) > 1:
        raise ValueError(f"The {len(devices)} devices lie unevenly on {len(on_slice)} slices ({dict(on_slice)}): use "
                         "all devices of every slice.")
    slices = parse_dcn_mesh(dcn_spec, sizes, len(on_slice))
    if len(devices) == 1:
        grid = np.array(devices).reshape(tuple(sizes.values()))
    elif len(on_slice) == 1:
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices=devices, allow_split_physical_axes=True)
    else:
        inside = tuple(sizes[axis] // slices[axis] for axis in AXES)
        grid = mesh_utils.create_hybrid_device_mesh(inside, tuple(slices.values()), devices=devices,
                                                    allow_split_physical_axes=True)
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


def check_length(seq_len: int, mesh: Mesh, rules: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError unless every device gets an equal part of a row's positions.

    Args:
      seq_len: L.
      mesh: the devices.
      rules: {logical axis: mesh axes}; of "length", the positions of tokens, and "residual", those of the states
        between layers.
    """
    for logical in ("length", "residual"):
        parts = math.prod(mesh.shape[axis] for axis in rules[logical])
        if seq_len % parts:
            sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in rules[logical])
            raise ValueError(f"data.seq_len={seq_len} is not divisible by the {parts} devices that the rule for "
                             f"{logical!r} spreads the positions of a row over ({sizes}): choose a multiple of "
                             f"{parts}, another parallel.mesh, or another rule.")
