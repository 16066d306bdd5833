"""Causal attention inside documents, behind one seam: `attention` looks a kernel up by name.

All kernels compute the same function; `resolve_kernel` says which one a platform runs best. A new kernel is one
function with the signature of `_xla` and one entry of `KERNELS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mtp_jax.config import check_choice
from mtp_jax.parallel.sharding import Layout, current_layout

MIN_BLOCK, MAX_BLOCKS = 64, 16  # "blocked": 64 queries a block was fastest on CPU; more blocks cost compile time
SPLASH_LANES = 128  # "splash": blocks are multiples of a TPU's lanes
SPLASH_BLOCKS = (512, 256, 128)  # the largest that divides L


def attention(q_BxLxAxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segments_BxL: jax.Array,
              positions_BxL: jax.Array, *, kernel: str = "xla", layout: Layout | None = None) -> jax.Array:
    """Softmax attention over the tokens of the same document up to the query's own.

    o[i] = sum_j p[i, j] v[j],  p[i, :] = softmax over { j <= i, segments[j] == segments[i] } of q[i] . k[j] / sqrt(C)

    Query head a uses KV head a // (A / K). The softmax is in fp32 (fp64 for fp64 inputs), matmuls are in the inputs'
    dtype. Padding attends to padding; what comes out there counts nowhere.

    Args:
      q_BxLxAxC: queries, rotated.
      k_BxLxKxC: keys, rotated; K divides A.
      v_BxLxKxC: values.
      segments_BxL: document number in the row, from 1; 0 is padding.
      positions_BxL: position in the document. Inside a row they rise with the index, so that today's kernels need only
        the index; a kernel with a window or a bias by distance would need them.
      kernel: a name that `resolve_kernel` returned.
      layout: mesh and rules, for kernels that the compiler cannot partition by itself ("splash"). None: the one in use
        (`use_layout`), and without one a single device.

    Returns:
      o_BxLxAxC in the dtype of the queries.

    Raises:
      ValueError: the kernel is unknown, or K does not divide A.
    """
    check_choice("compute.attention", kernel, KERNELS)
    A, K = q_BxLxAxC.shape[2], k_BxLxKxC.shape[2]
    if A % K:
        raise ValueError(f"model.num_attention_heads={A} is not divisible by model.num_kv_heads={K}.")
    del positions_BxL
    return KERNELS[kernel](q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, layout or current_layout())


def resolve_kernel(name: str, platform: str, *, seq_len: int, head_dim: int, dtype: str = "float32") -> str:
    """Returns the kernel to run: `name` if it can run, or for "auto" the platform's best.

    Args:
      name: compute.attention.
      platform: of the mesh's devices: "cpu", "gpu" (or "cuda", "rocm"), "tpu".
      seq_len: L.
      head_dim: C.
      dtype: of queries, keys and values.

    Returns:
      A key of `KERNELS`.

    Raises:
      ValueError: `name` is unknown, or cannot run here; says why and what can.
    """
    check_choice("compute.attention", name, ("auto", *KERNELS))
    preferred = {"cpu": "blocked", "gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")
    if name == "auto":
        return "xla" if _obstacle(preferred, platform, seq_len, head_dim, dtype) else preferred
    obstacle = _obstacle(name, platform, seq_len, head_dim, dtype)
    if obstacle:
        raise ValueError(f"compute.attention={name!r} {obstacle}; choose \"auto\" or \"xla\".")
    return name


def _obstacle(name: str, platform: str, seq_len: int, head_dim: int, dtype: str) -> str:
    """Returns why the kernel cannot run, or an empty string."""
    if name == "splash":
        if platform != "tpu":
            return f"needs a TPU, and the mesh is of platform {platform!r}"
        if seq_len % SPLASH_LANES:
            return f"needs data.seq_len to be a multiple of {SPLASH_LANES}, got {seq_len}"
        if jnp.dtype(dtype).itemsize > 4:
            return f"computes in 32 bits, and model.dtype is {dtype}"
    if name == "cudnn":
        if platform not in ("gpu", "cuda"):
            return f"needs an NVIDIA GPU, and the mesh is of platform {platform!r}"
        if jnp.dtype(dtype).itemsize != 2:
            return f"needs 16-bit inputs, and model.dtype is {dtype}"
        if head_dim % 8 or head_dim > 128:
            return f"needs model.head_dim to be a multiple of 8, at most 128, got {head_dim}"
        if seq_len % 2:
            return f"needs an even data.seq_len, got {seq_len}"
    return ""


def _visible(segments_BxL: jax.Array, start: int, stop: int) -> jax.Array:
    """Returns [B, stop - start, stop], True where query `start + i` may see key j."""
    causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
    return causal[None] & (segments_BxL[:, start:stop, None] == segments_BxL[:, None, :stop])


def _xla(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, layout):
    """All pairs of a row, as plain array code: runs everywhere, differentiates any number of times, either way."""
    del layout
    B, L, A, C = q_BxLxAxC.shape
    K = k_BxLxKxC.shape[2]
    wide = jnp.promote_types(jnp.float32, q_BxLxAxC.dtype)
    q = q_BxLxAxC.reshape(B, L, K, A // K, C)
    scores = jnp.einsum("bikgc,bjkc->bkgij", q, k_BxLxKxC, preferred_element_type=wide) / math.sqrt(C)
    # The diagonal is always visible, so no row of the softmax is empty.
    scores = jnp.where(_visible(segments_BxL, 0, L)[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxLxKxC.dtype)
    return jnp.einsum("bkgij,bjkc->bikgc", weights, v_BxLxKxC).reshape(B, L, A, C)


def _blocked(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, layout):
    """Blocks of queries against the keys up to them: half the work, and nothing of L x L kept for the backward pass.

    For CPU, which has no products of 16-bit numbers: all of it is in fp32 or wider.
    """
    del layout
    B, L, A, C = q_BxLxAxC.shape
    K = k_BxLxKxC.shape[2]
    q, k, v = (x.astype(jnp.promote_types(jnp.float32, x.dtype)) for x in (q_BxLxAxC, k_BxLxKxC, v_BxLxKxC))
    # Rows of every matrix product lie together: [B, K, ..., rows, C].
    q = jnp.moveaxis(q.reshape(B, L, K, A // K, C), 1, 3) / math.sqrt(C)
    o = _blocks(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), segments_BxL)
    return jnp.moveaxis(o, 3, 1).reshape(B, L, A, C).astype(q_BxLxAxC.dtype)


def _cuts(L: int) -> list[tuple[int, int]]:
    """Returns the blocks of queries, (first, last + 1)."""
    size = max(MIN_BLOCK, -(-L // (MAX_BLOCKS * MIN_BLOCK)) * MIN_BLOCK)
    return [(start, min(start + size, L)) for start in range(0, L, size)]


def _scores(q, k, segments, start, stop):
    """Returns the masked scores of a block, [B, K, G, rows, stop]."""
    rows = q[:, :, :, start:stop]
    B, K, G, R, C = rows.shape
    scores = jnp.einsum("bkrc,bksc->bkrs", rows.reshape(B, K, G * R, C), k[:, :, :stop])
    return jnp.where(_visible(segments, start, stop)[:, None, None], scores.reshape(B, K, G, R, stop), -jnp.inf)


def _forward(q, k, v, segments):
    """Returns the outputs, [B, K, G, L, C], and the logarithm of the softmax's denominator, [B, K, G, L, 1]."""
    outputs, denominators = [], []
    for start, stop in _cuts(q.shape[3]):
        scores = _scores(q, k, segments, start, stop)
        B, K, G, R, _ = scores.shape
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        output = jnp.einsum("bkrs,bksc->bkrc", weights.reshape(B, K, G * R, stop), v[:, :, :stop])
        outputs.append(output.reshape(B, K, G, R, -1) / total)
        denominators.append(largest + jnp.log(total))
    return jnp.concatenate(outputs, axis=3), jnp.concatenate(denominators, axis=3)


@jax.custom_vjp
def _blocks(q, k, v, segments):
    return _forward(q, k, v, segments)[0]


def _blocks_forward(q, k, v, segments):
    o, log_total = _forward(q, k, v, segments)
    return o, (q, k, v, segments, o, log_total)


def _blocks_backward(residuals, do):
    """The gradient as flash attention has it: the weights of a block are computed again, not kept."""
    q, k, v, segments, o, log_total = residuals
    delta = jnp.sum(do * o, axis=-1, keepdims=True)
    # The products that sum over queries read q and do with queries last: as plain products, not transposed ones, they
    # take a third of the time on CPU.
    qT, doT = jnp.swapaxes(q, 3, 4), jnp.swapaxes(do, 3, 4)
    B, K, G, L, C = q.shape
    dq, dkT, dvT = [], jnp.zeros((B, K, C, L), k.dtype), jnp.zeros((B, K, C, L), v.dtype)
    for start, stop in _cuts(L):
        R = stop - start
        q_columns, do_columns = (jnp.swapaxes(xT[..., start:stop], 2, 3).reshape(B, K, C, G * R) for xT in (qT, doT))
        weights = jnp.exp(_scores(q, k, segments, start, stop) - log_total[:, :, :, start:stop])
        do_rows = do[:, :, :, start:stop].reshape(B, K, G * R, C)
        dweights = jnp.einsum("bkrc,bksc->bkrs", do_rows, v[:, :, :stop])
        dscores = weights * (dweights.reshape(weights.shape) - delta[:, :, :, start:stop])
        weights, dscores = (x.reshape(B, K, G * R, stop) for x in (weights, dscores))
        dq.append(jnp.einsum("bkrs,bksc->bkrc", dscores, k[:, :, :stop]).reshape(B, K, G, R, C))
        dvT = dvT.at[..., :stop].add(jnp.einsum("bkcr,bkrs->bkcs", do_columns, weights))
        dkT = dkT.at[..., :stop].add(jnp.einsum("bkcr,bkrs->bkcs", q_columns, dscores))
    return jnp.concatenate(dq, axis=3), jnp.swapaxes(dkT, 2, 3), jnp.swapaxes(dvT, 2, 3), None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _cudnn(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, layout):
    """cuDNN's flash attention. It has no segment ids, so documents are kept apart by a dense mask, [B, 1, L, L]."""
    del layout
    mask = _visible(segments_BxL, 0, segments_BxL.shape[1])[:, None]
    return jax.nn.dot_product_attention(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, mask=mask, implementation="cudnn")


def _splash(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, layout):
    """JAX's splash attention for TPU: flash attention that skips masked blocks and takes segment ids.

    The compiler cannot split a kernel, so on a mesh each device runs it on its own rows and heads.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxAxC, k_BxLxKxC, v_BxLxKxC))
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    run = _splash_on_device
    if layout is not None and layout.mesh.size > 1:
        if layout.rules["kv_heads"] != layout.rules["heads"]:
            # Each device must hold the KV heads of its query heads: give every query head its own.
            k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
        heads = layout.spec(("batch", "heads", None, None), "attention")
        rows = PartitionSpec(heads[0], None)
        run = jax.shard_map(run, mesh=layout.mesh, in_specs=(heads, heads, heads, rows), out_specs=heads,
                            check_vma=False)  # the kernel does not tell over which axes its outputs vary
    return jnp.swapaxes(run(q, k, v, segments_BxL), 1, 2)


def _splash_on_device(q_BxAxLxC, k_BxKxLxC, v_BxKxLxC, segments_BxL):
    """Runs the kernel on the rows and heads of one device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # imports Pallas: only where it runs

    _, A, L, _ = q_BxAxLxC.shape
    block = next(size for size in SPLASH_BLOCKS if L % size == 0)
    kernel = splash.make_splash_mha(
        mask=splash.MultiHeadMask([splash.CausalMask((L, L))] * A), head_shards=1, q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
            block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block))
    return jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(
        q_BxAxLxC, k_BxKxLxC, v_BxKxLxC, segments_BxL)


Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Layout | None], jax.Array]
KERNELS: dict[str, Kernel] = {"xla": _xla, "blocked": _blocked, "cudnn": _cudnn, "splash": _splash}
