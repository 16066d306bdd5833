"""Sampling from head 1 without a cache: a whole forward a token, for a look at a model after training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.model import Execution, ModelSpec
from mtp_jax.model.language_model import Params


def sample(spec: ModelSpec, params: Params, prompt: list[int], *, max_new_tokens: int, window: int,
           temperature: float = 0.0, seed: int = 0, stop: int | None = None) -> list[int]:
    """Continues a prompt with head 1.

    Every token costs a forward over the whole window; only head 1 is run where its kind allows.

    Args:
      spec: the model.
      params: its parameters.
      prompt: token ids, at least one.
      max_new_tokens: how many tokens to add at most.
      window: tokens of context that the model sees, at most what it was trained on.
      temperature: 0 takes the most likely token.
      seed: of the draws.
      stop: an id that ends the text and is not returned.

    Returns:
      The new ids.

    Raises:
      ValueError: the prompt is empty.
    """
    if not prompt:
        raise ValueError("prompt is empty: begin with BOS or some text.")
    weights_N = jnp.zeros(spec.config.num_heads).at[0].set(1.0)
    execution = Execution(skip_idle_heads=spec.config.num_heads > 1)

    @jax.jit
    def next_token(params: Params, tokens_L: jax.Array, length: jax.Array, key: jax.Array) -> jax.Array:
        model = spec.bind(params)
        positions_L = jnp.arange(window, dtype=jnp.int32)
        segments_L = (positions_L < length).astype(jnp.int32)
        h_NxBxLxD = model(tokens_L[None], segments_L[None], positions_L[None], weights_N=weights_N,
                          execution=execution)
        last_NxBx1xD = jax.lax.dynamic_slice_in_dim(h_NxBxLxD, length - 1, 1, axis=2)
        logits_V = model.logits(last_NxBx1xD)[0, 0, 0]
        if temperature == 0.0:
            return jnp.argmax(logits_V)
        return jax.random.categorical(key, logits_V / temperature)

    ids = list(prompt)
    key = jax.random.key(seed)
    for i in range(max_new_tokens):
        context = ids[-window:]
        row = np.zeros(window, np.int32)
        row[:len(context)] = context
        token = int(next_token(params, row, np.int32(len(context)), jax.random.fold_in(key, i)))
        if token == stop:
            break
        ids.append(token)
    return ids[len(prompt):]
