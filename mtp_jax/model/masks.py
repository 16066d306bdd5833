"""Which keys a query sees, and what a part of a row needs to know of the whole row; for the attention kernels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mtp_jax.parallel.sharding import Layout

# (queries, keys, values, the queries' segments, the keys' segments, index in the row of the first query) -> outputs
PartKernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, "int | jax.Array"], jax.Array]
# (queries, keys, values, segments, layout) -> outputs
Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, "Layout | None"], jax.Array]


def visible(segments_BxQ: jax.Array, segments_BxL: jax.Array, first: int | jax.Array) -> jax.Array:
    """Returns [B, Q, L], True where query i, at index `first` + i of the row, may see key j."""
    at_Q = first + jnp.arange(segments_BxQ.shape[1])
    causal = at_Q[:, None] >= jnp.arange(segments_BxL.shape[1])[None, :]
    return causal[None] & (segments_BxQ[:, :, None] == segments_BxL[:, None, :])


def by_parts(run: PartKernel) -> Kernel:
    """Makes a kernel of one that can run a part of a row's queries against all its keys.

    Where the layout splits the positions of a row, each device keeps its own queries and gathers keys, values and
    segments of its rows and heads: K is often a fraction of A, and of an activation. Left to the compiler, the scores
    would decide what is gathered.
    """
    def kernel(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, layout):
        if layout is None or layout.size("length") == 1:
            return run(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, segments_BxL, 0)
        axes = layout.rules["length"]
        k_BxLxKxC, v_BxLxKxC = match_heads(layout, q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, axis=2)

        def on_device(q, k, v, segments):
            k, v, segments_of_row = gather((k, v, segments), axes)
            return run(q, k, v, segments, segments_of_row, jax.lax.axis_index(axes) * q.shape[1])

        heads = layout.spec(("batch", "length", "heads", None), "attention")
        # Unchecked: under vmap over spmd_axis_name JAX does not know over which axes a custom gradient varies.
        return jax.shard_map(on_device, mesh=layout.mesh, in_specs=(heads, heads, heads, PartitionSpec(*heads[:2])),
                             out_specs=heads, check_vma=False)(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL)

    return kernel


def match_heads(layout: Layout, q: jax.Array, k: jax.Array, v: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of which each device holds the heads that its queries need.

    Where the rules split KV heads as query heads, it does; else every query head gets a KV head of its own.
    """
    if layout.rules["kv_heads"] == layout.rules["heads"]:
        return k, v
    times = q.shape[axis] // k.shape[axis]
    return jnp.repeat(k, times, axis=axis), jnp.repeat(v, times, axis=axis)


def gather(parts: tuple[jax.Array, ...], axes: tuple[str, ...], axis: int = 1) -> tuple[jax.Array, ...]:
    """Inside shard_map: returns whole rows of arrays whose positions, on `axis`, are split over the mesh axes."""
    return tuple(jax.lax.all_gather(x, axes, axis=min(axis, x.ndim - 1), tiled=True) for x in parts)
