"""JAX's splash attention for TPU: flash attention that skips masked blocks and takes segment ids.

The compiler cannot split a kernel, so on a mesh each device runs it on its own rows, heads and positions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mtp_jax.model.masks import gather, match_heads
from mtp_jax.parallel.sharding import Layout

LANES = 128  # blocks are multiples of a TPU's lanes
BLOCKS = (512, 256, 128)  # the largest that divides the positions
INTERPRET = False  # True runs it on any platform, slowly; for tests


def obstacle(platform: str, seq_len: int, parts: int, dtype: str) -> str:
    """Returns why the kernel cannot run, or an empty string; `parts` are those that the positions are split into."""
    if platform != "tpu":
        return f"needs a TPU, and the mesh is of platform {platform!r}"
    multiple = LANES * (2 * parts if parts > 1 else 1)  # two half parts on a device: see `_swap_halves`
    if seq_len % multiple:
        split = f" on a mesh that splits positions into {parts}" if parts > 1 else ""
        return f"needs data.seq_len to be a multiple of {multiple}{split}, got {seq_len}"
    if jnp.dtype(dtype).itemsize > 4:
        return f"computes in 32 bits, and model.dtype is {dtype}"
    return ""


def splash(q_BxLxAxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segments_BxL: jax.Array,
           layout: Layout | None) -> jax.Array:
    """Runs the kernel on every device.

    Where positions are split, a device's queries would have the more keys to see the later its part lies in the row,
    and all would wait for the last. So devices i and S - 1 - i swap the later halves of their queries: each then has
    the same number of pairs, and skips the blocks that it does not see.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxAxC, k_BxLxKxC, v_BxLxKxC))
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    L = q.shape[2]
    if layout is None or layout.mesh.size == 1:
        o = _run(_kernel(np.arange(L), q.shape[1], 1), q, k, v, segments_BxL, segments_BxL)
        return jnp.swapaxes(o, 1, 2)
    axes, parts = layout.rules["length"], layout.size("length")
    k, v = match_heads(layout, q, k, v, axis=1)
    heads = layout.spec(("batch", "heads", "length", None), "attention")
    kernel = _kernel(_order(L, parts), q.shape[1] // layout.size("heads"), parts)

    def on_device(kernel, q, k, v, segments):
        if parts == 1:
            return _run(kernel, q, k, v, segments, segments)
        k, v = gather((k, v), axes, axis=2)
        (segments_of_row,) = gather((segments,), axes)
        q, segments = _swap_halves(q, axes, parts, axis=2), _swap_halves(segments, axes, parts, axis=1)
        return _swap_halves(_run(kernel, q, k, v, segments, segments_of_row), axes, parts, axis=2)

    mask = kernel.manual_sharding_spec(NamedSharding(layout.mesh, PartitionSpec(None, heads[2])))
    run = jax.shard_map(on_device, mesh=layout.mesh, out_specs=heads,
                        in_specs=(mask, heads, heads, heads, PartitionSpec(heads[0], heads[2])),
                        check_vma=False)  # the kernel does not tell over which axes its outputs vary
    return jnp.swapaxes(run(kernel, q, k, v, segments_BxL), 1, 2)


def _swap_halves(x: jax.Array, axes: tuple[str, ...], parts: int, axis: int) -> jax.Array:
    """Inside shard_map: swaps the later half of part i with that of part `parts` - 1 - i; its own inverse."""
    kept, sent = jnp.split(x, 2, axis=axis)
    received = jax.lax.ppermute(sent, axes, [(i, parts - 1 - i) for i in range(parts)])
    return jnp.concatenate([kept, received], axis=axis)


def _order(L: int, parts: int) -> np.ndarray:
    """Returns the index in the row of each query, as they lie on the devices after `_swap_halves`."""
    if parts == 1:
        return np.arange(L)
    halves = np.arange(L).reshape(parts, 2, -1)
    return np.stack([halves[:, 0], halves[::-1, 1]], axis=1).reshape(-1)


def _kernel(order_L: np.ndarray, A: int, parts: int) -> Any:
    """Makes the kernel of `A` heads; `order_L` is the index in the row of each query, over all parts."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # imports Pallas: only where it runs

    L = len(order_L)
    together = L if parts == 1 else L // parts // 2  # queries that follow each other on a device
    block_q = next(size for size in BLOCKS if together % size == 0)
    block_kv = next(size for size in BLOCKS if L % size == 0)
    mask = splash.CausalMask((L, L))
    mask.q_sequence = order_L.astype(np.int32)
    return splash.make_splash_mha(
        mask=splash.MultiHeadMask([mask] * A), head_shards=1, q_seq_shards=parts, interpret=INTERPRET,
        block_sizes=splash.BlockSizes(
            block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
            block_kv_dkv_compute=block_kv, block_q_dq=block_q, block_kv_dq=block_kv))


def _run(kernel: Any, q_BxAxQxC, k_BxKxLxC, v_BxKxLxC, segments_BxQ, segments_BxL) -> jax.Array:
    """Runs the kernel on the rows, heads and queries of one device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    return jax.vmap(lambda q, k, v, own, all: kernel(q, k, v, segment_ids=splash.SegmentIds(own, all)))(
        q_BxAxQxC, k_BxKxLxC, v_BxKxLxC, segments_BxQ, segments_BxL)
