"""The model and its loss written a second time, from the definitions and without a thought for speed.

A Llama-2 transformer (RMSNorm before each part, rotary embedding on half-split pairs, SwiGLU, no biases), one attention
head and one prediction head at a time, and the loss by log_softmax of all logits. Shares no code with mtp_jax.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rms_norm(x, scale, eps):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * scale[None, None, :]


def rotate(x, positions, theta):
    """Turns the pair (x[c], x[c + C/2]) by position * theta ** (-2 c / C), as a complex number."""
    half = x.shape[-1] // 2
    angle = positions[:, :, None] * (theta ** (-np.arange(half) / half))[None, None, :]
    turned = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angle)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def transformer_layer(config, w, x, batch):
    """Runs one layer with its own weights `w`."""
    norm_eps, rope_theta = config.norm_eps, config.rope_theta
    visible = ((batch["segments"][:, :, None] == batch["segments"][:, None, :])
               & (np.arange(x.shape[1])[:, None] >= np.arange(x.shape[1])[None, :])[None])
    normed = rms_norm(x, w["attention_norm"]["scale"], norm_eps)
    attention = w["attention"]
    A, K = attention["query"].shape[1], attention["key"].shape[1]
    total = 0
    for a in range(A):
        group = a * K // A
        q, k, v = (normed @ matrix for matrix in (attention["query"][:, a], attention["key"][:, group],
                                                  attention["value"][:, group]))
        if config.qk_norm:
            q = rms_norm(q, attention["query_norm"]["scale"], norm_eps)
            k = rms_norm(k, attention["key_norm"]["scale"], norm_eps)
        q, k = (rotate(y, batch["positions"], rope_theta) for y in (q, k))
        scores = jnp.where(visible, q @ jnp.swapaxes(k, 1, 2) / np.sqrt(q.shape[-1]), -jnp.inf)
        total = total + jax.nn.softmax(scores, axis=-1) @ v @ attention["out"][a]
    if config.sandwich_norm:
        total = rms_norm(total, w["attention_out_norm"]["scale"], norm_eps)
    x = x + total
    normed = rms_norm(x, w["mlp_norm"]["scale"], norm_eps)
    gate = normed @ w["mlp"]["gate"]
    inner = (gate / (1 + jnp.exp(-gate)) * (normed @ w["mlp"]["up"])) @ w["mlp"]["down"]
    return x + (rms_norm(inner, w["mlp_out_norm"]["scale"], norm_eps) if config.sandwich_norm else inner)


def wiring(kind, N, i):
    """Returns which heads' layers head i (from 0) runs after the trunk, in order."""
    return {"parallel": [i], "causal": list(range(i + 1)), "anticausal": list(range(N - 1, i - 1, -1))}[kind]


def sequential_head(config, params, x, before, batch, i):
    """Returns the state of head i (from 0), from that of the head before it and the token i places ahead."""
    if i == 0:
        return rms_norm(x, params["final_norm"]["scale"], config.norm_eps)
    w = jax.tree.map(lambda leaf: leaf[i - 1], params["heads"])
    B, L = batch["tokens"].shape
    token = np.zeros((B, L), np.int32)
    for b in range(B):
        for place in range(L - i):
            token[b, place] = batch["tokens"][b, place + i]
    D = x.shape[-1]
    h = (rms_norm(params["embedding"]["embedding"][token], w["embedding_norm"]["scale"], config.norm_eps)
         @ w["projection"][:D] + rms_norm(before, w["state_norm"]["scale"], config.norm_eps) @ w["projection"][D:])
    return rms_norm(transformer_layer(config, w["block"], h, batch), w["norm"]["scale"], config.norm_eps)


def medusa_head(config, params, x, i):
    """Returns the state of head i (from 0): x + silu(W x), as often as the config says; head 1 has no W."""
    h = rms_norm(x, params["final_norm"]["scale"], config.norm_eps)
    for layer in range(config.medusa_layers if i else 0):
        inner = h @ params["heads"]["kernel"][i - 1, layer]
        h = h + inner / (1 + jnp.exp(-inner))
    return h


def logits(config, params, batch):
    """Returns the logits of each head, a list of [B, L, vocab_size]; of a looped trunk, after its last loop."""
    return every_loop(config, params, batch)[0][-1]


def every_loop(config, params, batch):
    """Returns for each loop of the trunk the logits of each head, and for each the exit gate's probability [B, L]."""
    x, found, gates = params["embedding"]["embedding"][batch["tokens"]], [], []
    depth = len(params["trunk"]["mlp"]["up"]) if "trunk" in params else 0
    for _ in range(config.loops):
        for w in layers(params.get("trunk"), range(depth)):
            x = transformer_layer(config, w, x, batch)
        found.append(heads(config, params, batch, x))
        x = rms_norm(x, params["final_norm"]["scale"], config.norm_eps)
        if config.loops > 1:
            gates.append(1 / (1 + jnp.exp(-(x @ params["gate"]["kernel"] + params["gate"]["bias"]))))
    return found, gates


def layers(stack, indices):
    """Returns the weights of some of the stacked layers."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in indices]


def heads(config, params, batch, x):
    """Returns the logits of each head from the trunk's output."""
    results, h = [], None
    for i in range(config.num_heads):
        if config.head_kind == "sequential":
            h = sequential_head(config, params, x, h, batch, i)
        elif config.head_kind == "medusa":
            h = medusa_head(config, params, x, i)
        elif config.head_kind == "linear":
            h = rms_norm(x, params["final_norm"]["scale"], config.norm_eps) @ params["heads"]["kernel"][i]
        else:
            h = x
            for w in layers(params["heads"], wiring(config.head_kind, config.num_heads, i)):
                h = transformer_layer(config, w, h, batch)
            h = rms_norm(h, params["final_norm"]["scale"], config.norm_eps)
        matrix = params["embedding"]["embedding"] if config.tie_embedding else params["unembedding"]["kernel"]
        if config.unembedding == "replicated":
            matrix = matrix[i]
        results.append(h @ matrix[:config.vocab_size].T)
    return results


def targets(batch, num_heads):
    """Returns targets and mask, [N, B, L], one entry at a time."""
    tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
    B, L = tokens.shape
    found, counts = np.zeros((num_heads, B, L), np.int32), np.zeros((num_heads, B, L), bool)
    for k in range(1, num_heads + 1):
        for b in range(B):
            for i in range(L - k):
                found[k - 1, b, i] = tokens[b, i + k]
                counts[k - 1, b, i] = (segments[b, i] == segments[b, i + k] != 0
                                       and positions[b, i + k] == positions[b, i] + k)
    return found, counts


def negative_log_likelihood(logits_BxLxV, target_BxL):
    """Returns -log softmax(logits)[target], [B, L]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_BxLxV), target_BxL[:, :, None], axis=-1)[:, :, 0]


def loss(config, params, batch, scale_N):
    """Returns sum over heads and positions of scale * -log softmax(logits)[target], and the logits."""
    target_NxBxL, mask_NxBxL = targets(batch, config.num_heads)
    total, logits_N = 0, logits(config, params, batch)
    for k, logits_BxLxV in enumerate(logits_N):
        total = total + scale_N[k] * jnp.sum(negative_log_likelihood(logits_BxLxV, target_NxBxL[k]) * mask_NxBxL[k])
    return total, logits_N
