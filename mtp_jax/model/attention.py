"""Causal attention inside documents, behind one seam: `attention` looks a kernel up by name.

All kernels compute the same function; `resolve_kernel` says which one a platform runs best. A new kernel is one
function with the signature of `_xla`, wrapped by `by_parts`, and one entry of `KERNELS`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mtp_jax.config import check_choice
from mtp_jax.model import splash
from mtp_jax.model.blocked import blocked
from mtp_jax.model.masks import Kernel, by_parts, visible
from mtp_jax.parallel.sharding import Layout, current_layout


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
      layout: mesh and rules, for what the compiler cannot partition by itself: "splash" on any mesh, and every kernel
        where positions are split. None: the one in use (`use_layout`), and without one a single device.

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


def resolve_kernel(name: str, platform: str, *, seq_len: int, head_dim: int, dtype: str = "float32",
                   parts: int = 1) -> str:
    """Returns the kernel to run: `name` if it can run, or for "auto" the platform's best.

    Args:
      name: compute.attention.
      platform: of the mesh's devices: "cpu", "gpu" (or "cuda", "rocm"), "tpu".
      seq_len: L.
      head_dim: C.
      dtype: of queries, keys and values.
      parts: that the mesh splits the positions of a row into.

    Returns:
      A key of `KERNELS`.

    Raises:
      ValueError: `name` is unknown, or cannot run here; says why and what can.
    """
    check_choice("compute.attention", name, ("auto", *KERNELS))
    preferred = {"cpu": "blocked", "gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")
    if name == "auto":
        return "xla" if _obstacle(preferred, platform, seq_len, head_dim, dtype, parts) else preferred
    obstacle = _obstacle(name, platform, seq_len, head_dim, dtype, parts)
    if obstacle:
        raise ValueError(f"compute.attention={name!r} {obstacle}; choose \"auto\" or \"xla\".")
    return name


def _obstacle(name: str, platform: str, seq_len: int, head_dim: int, dtype: str, parts: int) -> str:
    """Returns why the kernel cannot run, or an empty string."""
    if name == "splash":
        return splash.obstacle(platform, seq_len, parts, dtype)
    if name == "cudnn":
        if platform not in ("gpu", "cuda"):
            return f"needs an NVIDIA GPU, and the mesh is of platform {platform!r}"
        if jnp.dtype(dtype).itemsize != 2:
            return f"needs 16-bit inputs, and model.dtype is {dtype}"
        if head_dim % 8 or head_dim > 128:
            return f"needs model.head_dim to be a multiple of 8, at most 128, got {head_dim}"
        if seq_len // parts % 2:
            return f"needs an even data.seq_len, on every part of a row that is split, got {seq_len} in {parts}"
    return ""


def _xla(q_BxQxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxQ, segments_BxL, first):
    """All pairs of a row, as plain array code: runs everywhere, differentiates any number of times, either way."""
    B, Q, A, C = q_BxQxAxC.shape
    K = k_BxLxKxC.shape[2]
    wide = jnp.promote_types(jnp.float32, q_BxQxAxC.dtype)
    q = q_BxQxAxC.reshape(B, Q, K, A // K, C)
    scores = jnp.einsum("bikgc,bjkc->bkgij", q, k_BxLxKxC, preferred_element_type=wide) / math.sqrt(C)
    # The diagonal is always visible, so no row of the softmax is empty.
    scores = jnp.where(visible(segments_BxQ, segments_BxL, first)[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxLxKxC.dtype)
    return jnp.einsum("bkgij,bjkc->bikgc", weights, v_BxLxKxC).reshape(B, Q, A, C)


def _cudnn(q_BxQxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxQ, segments_BxL, first):
    """cuDNN's flash attention. It has no segment ids, so documents are kept apart by a dense mask, [B, 1, Q, L]."""
    mask = visible(segments_BxQ, segments_BxL, first)[:, None]
    return jax.nn.dot_product_attention(q_BxQxAxC, k_BxLxKxC, v_BxLxKxC, mask=mask, implementation="cudnn")


KERNELS: dict[str, Kernel] = {"xla": by_parts(_xla), "blocked": by_parts(blocked), "cudnn": by_parts(_cudnn),
                              "splash": splash.splash}
