"""The attention kernel for CPU: blocks of queries, and a gradient that keeps no weights."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mtp_jax.model.masks import visible

MIN_BLOCK, MAX_BLOCKS = 64, 16  # 64 queries a block was fastest on CPU; more blocks cost compile time


def blocked(q_BxQxAxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segments_BxQ: jax.Array,
            segments_BxL: jax.Array, first: int | jax.Array) -> jax.Array:
    """Blocks of queries against the keys up to them: half the work, and nothing of L x L kept for the backward pass.

    For CPU, which has no products of 16-bit numbers: all of it is in fp32 or wider. A part of a row sees all keys of
    the row, masked: how far it would have to look is not known when the program is compiled.
    """
    B, Q, A, C = q_BxQxAxC.shape
    K = k_BxLxKxC.shape[2]
    q, k, v = (x.astype(jnp.promote_types(jnp.float32, x.dtype)) for x in (q_BxQxAxC, k_BxLxKxC, v_BxLxKxC))
    # Rows of every matrix product lie together: [B, K, ..., rows, C].
    q = jnp.moveaxis(q.reshape(B, Q, K, A // K, C), 1, 3) / math.sqrt(C)
    o = _blocks(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), segments_BxQ, segments_BxL, jnp.asarray(first))
    return jnp.moveaxis(o, 3, 1).reshape(B, Q, A, C).astype(q_BxQxAxC.dtype)


def _cuts(Q: int, L: int) -> list[tuple[int, int, int]]:
    """Returns the blocks of queries, (first, last + 1), and how many keys each looks at."""
    size = max(MIN_BLOCK, -(-Q // (MAX_BLOCKS * MIN_BLOCK)) * MIN_BLOCK)
    stops = [(start, min(start + size, Q)) for start in range(0, Q, size)]
    return [(start, stop, stop if Q == L else L) for start, stop in stops]


def _scores(q, k, segments_BxQ, segments_BxL, first, cut):
    """Returns the masked scores of a block, [B, K, G, rows, keys]."""
    start, stop, keys = cut
    rows = q[:, :, :, start:stop]
    B, K, G, R, C = rows.shape
    scores = jnp.einsum("bkrc,bksc->bkrs", rows.reshape(B, K, G * R, C), k[:, :, :keys])
    seen = visible(segments_BxQ[:, start:stop], segments_BxL[:, :keys], first + start)
    return jnp.where(seen[:, None, None], scores.reshape(B, K, G, R, keys), -jnp.inf)


def _forward(q, k, v, segments_BxQ, segments_BxL, first):
    """Returns the outputs, [B, K, G, Q, C], and the logarithm of the softmax's denominator, [B, K, G, Q, 1]."""
    outputs, denominators = [], []
    for cut in _cuts(q.shape[3], k.shape[2]):
        scores = _scores(q, k, segments_BxQ, segments_BxL, first, cut)
        B, K, G, R, keys = scores.shape
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        output = jnp.einsum("bkrs,bksc->bkrc", weights.reshape(B, K, G * R, keys), v[:, :, :keys])
        outputs.append(output.reshape(B, K, G, R, -1) / total)
        denominators.append(largest + jnp.log(total))
    return jnp.concatenate(outputs, axis=3), jnp.concatenate(denominators, axis=3)


@jax.custom_vjp
def _blocks(q, k, v, segments_BxQ, segments_BxL, first):
    return _forward(q, k, v, segments_BxQ, segments_BxL, first)[0]


def _blocks_forward(*inputs):
    o, log_total = _forward(*inputs)
    return o, (*inputs, o, log_total)


def _blocks_backward(residuals, do):
    """The gradient as flash attention has it: the weights of a block are computed again, not kept."""
    q, k, v, segments_BxQ, segments_BxL, first, o, log_total = residuals
    delta = jnp.sum(do * o, axis=-1, keepdims=True)
    # The products that sum over queries read q and do with queries last: as plain products, not transposed ones, they
    # take a third of the time on CPU.
    qT, doT = jnp.swapaxes(q, 3, 4), jnp.swapaxes(do, 3, 4)
    B, K, G, Q, C = q.shape
    L = k.shape[2]
    dq, dkT, dvT = [], jnp.zeros((B, K, C, L), k.dtype), jnp.zeros((B, K, C, L), v.dtype)
    for cut in _cuts(Q, L):
        start, stop, keys = cut
        R = stop - start
        q_columns, do_columns = (jnp.swapaxes(xT[..., start:stop], 2, 3).reshape(B, K, C, G * R) for xT in (qT, doT))
        scores = _scores(q, k, segments_BxQ, segments_BxL, first, cut)
        weights = jnp.exp(scores - log_total[:, :, :, start:stop])
        do_rows = do[:, :, :, start:stop].reshape(B, K, G * R, C)
        dweights = jnp.einsum("bkrc,bksc->bkrs", do_rows, v[:, :, :keys])
        dscores = weights * (dweights.reshape(weights.shape) - delta[:, :, :, start:stop])
        weights, dscores = (x.reshape(B, K, G * R, keys) for x in (weights, dscores))
        dq.append(jnp.einsum("bkrs,bksc->bkrc", dscores, k[:, :, :keys]).reshape(B, K, G, R, C))
        dvT = dvT.at[..., :keys].add(jnp.einsum("bkcr,bkrs->bkcs", do_columns, weights))
        dkT = dkT.at[..., :keys].add(jnp.einsum("bkcr,bkrs->bkcs", q_columns, dscores))
    return jnp.concatenate(dq, axis=3), jnp.swapaxes(dkT, 2, 3), jnp.swapaxes(dvT, 2, 3), None, None, None


_blocks.defvjp(_blocks_forward, _blocks_backward)
