"""Meta's model from its description, in numpy: complex rotary embedding, heads side by side on the trunk's output."""

import math

import numpy as np


def norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x_LxHxC, theta):
    """Multiplies the pair (2 c, 2 c + 1) of features, as a complex number, by exp(i position theta ** (-2 c / C))."""
    L, H, C = x_LxHxC.shape
    angle = np.arange(L)[:, None] * theta ** (-np.arange(0, C, 2) / C)[None, :]
    pairs = x_LxHxC.reshape(L, H, C // 2, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(L, H, C)


def block(tensors, prefix, x_LxD, params):
    """Runs one transformer layer over one sequence."""
    def linear(x, name):
        return x @ tensors[f"{prefix}.{name}.weight"].astype(np.float64).T

    L, D = x_LxD.shape
    A, K = params["n_heads"], params["n_kv_heads"]
    h = norm(x_LxD, tensors[f"{prefix}.attention_norm.weight"], params["norm_eps"])
    q, k, v = (linear(h, f"attention.{name}").reshape(L, count, D // A) for name, count in
               (("wq", A), ("wk", K), ("wv", K)))
    q, k = rotate(q, params["rope_theta"]), rotate(k, params["rope_theta"])
    k, v = np.repeat(k, A // K, axis=1), np.repeat(v, A // K, axis=1)
    scores = np.einsum("iac,jac->aij", q, k) / math.sqrt(D // A)
    scores = np.where(np.tril(np.ones((L, L), bool))[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x_LxD = x_LxD + linear(np.einsum("aij,jac->iac", weights, v).reshape(L, D), "attention.wo")
    h = norm(x_LxD, tensors[f"{prefix}.ffn_norm.weight"], params["norm_eps"])
    gate = linear(h, "feed_forward.w1")
    return x_LxD + linear(gate / (1 + np.exp(-gate)) * linear(h, "feed_forward.w3"), "feed_forward.w2")


def logits(tensors, params, tokens_L, *, heads_after_all_layers=False):
    """Returns the logits of all heads, [L, n, V].

    Args:
      tensors: by name.
      params: what params.json says.
      tokens_L: ids.
      heads_after_all_layers: the mistake of a known port: the trunk is all of `layers`, and head 1's runs twice.
    """
    n = params["n_future_tokens"]
    count = params["n_layers"] - n + 1
    x_LxD = tensors["tok_embeddings.weight"].astype(np.float64)[tokens_L]
    for i in range(count if heads_after_all_layers else count - 1):
        x_LxD = block(tensors, f"layers.{i}", x_LxD, params)
    heads = [f"layers.{count - 1}", *(f"extra_heads.{j}" for j in range(n - 1))]
    states = [norm(block(tensors, head, x_LxD, params), tensors["norm.weight"], params["norm_eps"]) for head in heads]
    return np.stack(states, axis=1) @ tensors["output.weight"].astype(np.float64).T
