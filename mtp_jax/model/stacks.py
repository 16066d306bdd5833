"""Running stacked parameters: layers one after the other, heads one after the other or side by side."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ComputeConfig, check_choice

PyTree = Any


def checkpoint(body: Callable, remat: str) -> Callable:
    """Wraps `body` so that its backward pass recomputes what the policy does not keep.

    Args:
      body: a pure function.
      remat: "none" keeps every activation, "dots" keeps the results of matmuls with weights, "full" keeps only the
        inputs of `body`.
    """
    check_choice("compute.remat", remat, ("none", "dots", "full"))
    if remat == "none":
        return body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(body, policy=policy)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How stacks are run; static, resolved from the config and the mesh.

    Attributes:
      remat: policy by name, see `checkpoint`.
      unroll: repeat the body in the program instead of a loop. Faster on CPU, but there it undoes remat (the compiler
        merges what is recomputed with what was computed); on TPU and GPU it costs compile time.
      heads_abreast: heads computed side by side by vmap; the rest one after the other. Divides N.
      heads_axis: mesh axis that the heads abreast are spread over, or None.
      skip_idle_heads: leave out heads of weight 0 at run time. False where no weight can become 0, since the branch
        costs the compiler a fusion.
      kernel: attention kernel by name.
    """

    remat: str = "none"
    unroll: bool = True
    heads_abreast: int = 1
    heads_axis: str | None = None
    skip_idle_heads: bool = False
    kernel: str = "xla"


PLAIN = Execution()


def resolve_execution(compute: ComputeConfig, *, num_heads: int, pred_heads_axis: int, platform: str, kernel: str,
                      skip_idle_heads: bool) -> Execution:
    """Chooses how stacks run from the config and the devices.

    Args:
      compute: the config's section.
      num_heads: N.
      pred_heads_axis: size of the mesh axis `pred_heads`.
      platform: "cpu", "gpu" or "tpu".
      kernel: attention kernel, already resolved.
      skip_idle_heads: whether a head's weight can become 0.

    Raises:
      ValueError: the mesh's `pred_heads` axis does not divide N, or is larger than 1 while run_heads is "scan".
    """
    if num_heads % pred_heads_axis:
        raise ValueError(f"parallel.mesh has pred_heads:{pred_heads_axis}, which does not divide "
                         f"model.num_heads={num_heads}: choose a divisor.")
    if compute.run_heads == "scan" and pred_heads_axis > 1:
        raise ValueError(f"compute.run_heads='scan' with pred_heads:{pred_heads_axis} in parallel.mesh would gather "
                         "every head on every device: choose 'vmap' or 'auto'.")
    abreast = num_heads if compute.run_heads == "vmap" and pred_heads_axis == 1 else pred_heads_axis
    scan = compute.scan_layers
    if scan is None:
        scan = platform != "cpu" or compute.remat != "none"
    return Execution(compute.remat, not scan, abreast, "pred_heads" if pred_heads_axis > 1 else None,
                     skip_idle_heads, kernel)


def split_module(module: nnx.Module) -> tuple[Callable[[PyTree], nnx.Module], PyTree]:
    """Returns the module's parameters as a pure dict, and the function that makes a module of such a dict."""
    graph, state = nnx.split(module)
    return functools.partial(nnx.merge, graph), nnx.to_pure_dict(state)


def scan(body: Callable, carry: PyTree, stacked: PyTree, unroll: bool) -> tuple[PyTree, PyTree]:
    """`lax.scan`, or the same as straight-line code.

    Unrolled, the stacked inputs are split rather than indexed: the gradient of a split is one concatenation, that of
    indexing a sum of arrays as large as the whole stack.
    """
    if not unroll:
        return jax.lax.scan(body, carry, stacked)
    leaves, tree = jax.tree.flatten(stacked)
    length = leaves[0].shape[0]
    pieces = [[part[0] for part in jnp.split(leaf, length)] for leaf in leaves]
    outputs = []
    for i in range(length):
        carry, output = body(carry, jax.tree.unflatten(tree, [piece[i] for piece in pieces]))
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)


def map_heads(body: Callable, stacked: PyTree, execution: Execution) -> PyTree:
    """Applies `body` to every head: `execution.heads_abreast` at a time side by side, the groups one after the other.

    Args:
      body: from one head's leaves to one head's outputs.
      stacked: pytree with a leading axis N.
      execution: how.

    Returns:
      The outputs, with a leading axis N.
    """
    _, outputs = fold_heads(lambda carry, x: (carry, body(x)), (), stacked, execution)
    return outputs


def fold_heads(body: Callable, carry: PyTree, stacked: PyTree, execution: Execution) -> tuple[PyTree, PyTree]:
    """`map_heads` with a sum carried from head to head.

    Args:
      body: (carry, one head's leaves) -> (carry, one head's outputs). What it does to the carry must be an addition,
        for heads abreast each have their own, which starts at zero and is added up at the end.
      carry: zeros.
      stacked: pytree with a leading axis N.
      execution: how.

    Returns:
      The carry, and the outputs with a leading axis N.
    """
    abreast = execution.heads_abreast
    if abreast == 1:
        return scan(body, carry, stacked, execution.unroll)
    # [N] -> [abreast, N / abreast]: a block of neighbouring heads on each part of the mesh axis, as they are sharded.
    grouped = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(abreast, -1, *x.shape[1:]), 0, 1), stacked)
    carries = jax.tree.map(lambda x: jnp.broadcast_to(x, (abreast, *x.shape)), carry)
    wide = jax.vmap(body, spmd_axis_name=execution.heads_axis)
    carries, outputs = scan(wide, carries, grouped, execution.unroll)
    outputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), outputs)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), carries), outputs
