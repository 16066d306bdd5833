"""Parallel heads on a Llama from their description, in numpy: Meta's release, and Fast-LLM's model.

Meta's rotary embedding is a complex product on neighbouring features, Hugging Face's (and Fast-LLM's) a rotation of
halves; the heads stand side by side on the trunk's output.
"""

import math

import numpy as np

META = {"norm": "attention_norm", "q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo",
        "mlp_norm": "ffn_norm", "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2"}
LLAMA = {"norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
         **{name: f"self_attn.{name}_proj" for name in "qkvo"},
         **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}}


def norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x_LxHxC, theta):
    """Multiplies the pair (2 c, 2 c + 1) of features, as a complex number, by exp(i position theta ** (-2 c / C))."""
    L, H, C = x_LxHxC.shape
    angle = np.arange(L)[:, None] * theta ** (-np.arange(0, C, 2) / C)[None, :]
    pairs = x_LxHxC.reshape(L, H, C // 2, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(L, H, C)


def rotate_halves(x_LxHxC, theta):
    """Turns the features c and c + C / 2 as `rotate` does neighbours."""
    half = x_LxHxC.shape[-1] // 2
    angle = np.arange(len(x_LxHxC))[:, None, None] * theta ** (-np.arange(half) / half)
    cos, sin, a, b = np.cos(angle), np.sin(angle), x_LxHxC[..., :half], x_LxHxC[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def block(tensors, prefix, x_LxD, params, names=META):
    """Runs one transformer layer over one sequence."""
    def weight(name):
        return tensors[f"{prefix}.{names[name]}.weight"].astype(np.float64)

    def linear(x, name):
        return x @ weight(name).T

    L, D = x_LxD.shape
    A, K = params["n_heads"], params["n_kv_heads"]
    h = norm(x_LxD, weight("norm"), params["norm_eps"])
    q, k, v = (linear(h, name).reshape(L, count, -1) for name, count in (("q", A), ("k", K), ("v", K)))
    turn = rotate if names is META else rotate_halves
    q, k = turn(q, params["rope_theta"]), turn(k, params["rope_theta"])
    k, v = np.repeat(k, A // K, axis=1), np.repeat(v, A // K, axis=1)
    scores = np.einsum("iac,jac->aij", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones((L, L), bool))[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x_LxD = x_LxD + linear(np.einsum("aij,jac->iac", weights, v).reshape(L, -1), "o")
    h = norm(x_LxD, weight("mlp_norm"), params["norm_eps"])
    gate = linear(h, "gate")
    return x_LxD + linear(gate / (1 + np.exp(-gate)) * linear(h, "up"), "down")


def logits(tensors, params, tokens_L, *, heads_after_all_layers=False):
    """Returns the logits of all heads of Meta's release, [L, n, V].

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


def fast_llm_logits(tensors, config, tokens_L):
    """Returns the logits of all heads of Fast-LLM's MTPLlamaForCausalLM, [L, n, V].

    Args:
      tensors: by name.
      config: what config.json says; num_hidden_layers counts head 1's layer.
      tokens_L: ids.
    """
    params = {"n_heads": config["num_attention_heads"], "n_kv_heads": config["num_key_value_heads"],
              "norm_eps": config["rms_norm_eps"], "rope_theta": config["rope_parameters"]["rope_theta"]}
    embedding = tensors["model.embed_tokens.weight"].astype(np.float64)
    x_LxD, last = embedding[tokens_L], config["num_hidden_layers"] - 1
    for i in range(last):
        x_LxD = block(tensors, f"model.layers.{i}", x_LxD, params, LLAMA)
    heads = [f"model.layers.{last}", *(f"model.mtp_heads.{j}" for j in range(config["prediction_heads"] - 1))]
    states = [norm(block(tensors, head, x_LxD, params, LLAMA), tensors[f"model.mtp_norms.{k}.weight"],
                   params["norm_eps"]) for k, head in enumerate(heads)]
    matrix = embedding if config["tie_word_embeddings"] else tensors["lm_head.weight"]
    return np.stack(states, axis=1) @ matrix.astype(np.float64).T
