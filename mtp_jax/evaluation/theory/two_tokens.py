"""What a model says of the next two tokens together, by head 1 alone: p(x|c) p(y|c, x) for every x.

One forward a position: the tokens that may come next stand side by side behind the cached context, as the leaves of a
tree of drafts, and none sees another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.decoding.forward import draft_logits, read_prompt, verify
from mtp_jax.decoding.generate import DecodingModel, bucket
from mtp_jax.decoding.sampling import highest
from mtp_jax.decoding.tree import Tree
from mtp_jax.decoding.weights import Weights, first_heads, unembed
from mtp_jax.model import get_head_kind
from mtp_jax.model.attention import resolve_kernel
from mtp_jax.parallel import use_layout


@dataclasses.dataclass(frozen=True)
class TwoTokens:
    """The next two tokens after some contexts; all log probabilities in nats.

    Attributes:
      first_BxV: log p_1(x | c).
      tokens_BxK: the x that were looked at, the likeliest first.
      second_BxKxV: log p_1(y | c, x) for each of these.
      ahead_BxV: log p_2(y | c), what head 2 says without x; None where the model has one head, or heads that read x.
    """

    first_BxV: np.ndarray
    tokens_BxK: np.ndarray
    second_BxKxV: np.ndarray
    ahead_BxV: np.ndarray | None


def next_two(model: DecodingModel, contexts: Sequence[np.ndarray], *, branches: int) -> TwoTokens:
    """Asks a model for the next two tokens after each context.

    Args:
      model: with at least two heads loaded where head 2 is to be asked.
      contexts: ids [tokens], at least two each, BOS counted; with one more they must fit the model's window.
      branches: K, how many of the likeliest x to look at; the whole vocabulary is exact.

    Raises:
      ValueError: a context is too short or too long, or there are not as many branches.
    """
    vocabulary = model.config.vocab_size or 0
    if not 1 <= branches <= vocabulary:
        raise ValueError(f"branches={branches} must lie in 1..{vocabulary}, the model's vocabulary.")
    for number, context in enumerate(contexts):
        if not 2 <= len(context) < model.window:
            raise ValueError(f"Context {number} has {len(context)} tokens: it needs at least 2, and with one more must "
                             f"fit the model's window of {model.window}.")
    count = -(-len(contexts) // model.rows_multiple) * model.rows_multiple
    tokens_BxP = np.zeros((count, bucket(model, max(map(len, contexts)))), np.int32)
    lengths_B = np.full(count, 2, np.int32)
    for b, context in enumerate(contexts):
        tokens_BxP[b, :len(context)], lengths_B[b] = context, len(context)
    in_turn = get_head_kind(model.config.head_kind).in_turn
    heads = 1 if in_turn else min(model.heads, 2)
    key = ("two tokens", heads, branches, tokens_BxP.shape)
    if key not in model.programs:
        model.programs[key] = jax.jit(functools.partial(_both, model, heads, branches))
    first_BxV, chosen_BxK, second_BxKxV, ahead_BxJxV = (np.asarray(x)[:len(contexts)] for x in model.programs[key](
        first_heads(model.config, model.weights, heads), first_heads(model.config, model.weights, 1), tokens_BxP,
        lengths_B))
    return TwoTokens(first_BxV, chosen_BxK, second_BxKxV, ahead_BxJxV[:, 0] if heads > 1 else None)


def _both(model: DecodingModel, heads: int, branches: int, weights: Weights, alone: Weights, tokens_BxP: jax.Array,
          lengths_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns log p_1(x), the likeliest x, log p_1(y | x) and log p_2(y), [B, heads - 1, V], of the real vocabulary."""
    config = model.config
    kernel = resolve_kernel("auto", model.platform, seq_len=tokens_BxP.shape[1], head_dim=config.attention_head_dim,
                            dtype=config.dtype)
    prompt = functools.partial(read_prompt, config, dtype=config.dtype, kernel=kernel, choose=highest,
                               capacity=tokens_BxP.shape[1])
    with use_layout(model.layout):
        logits_BxV, _, drafted, _ = prompt(weights, tokens_BxP, lengths_B, heads=heads)
        first_BxV = jax.nn.log_softmax(logits_BxV[:, :config.vocab_size])
        _, chosen_BxK = jax.lax.top_k(first_BxV, branches)
        # The last token of the context is read again, as the root of the tree.
        _, _, _, cache = prompt(alone, tokens_BxP, lengths_B - 1, heads=1)
        root_Bx1 = jnp.take_along_axis(tokens_BxP, lengths_B[:, None] - 1, axis=1)
        tree = Tree((-1, *(0,) * branches), (0, *range(branches)))
        block = verify(config, alone, cache, jnp.concatenate([root_Bx1, chosen_BxK], axis=1), tree)
        second_BxKxV = unembed(config, alone, block.h_BxQxD[:, 1:], 1)[..., :config.vocab_size]
        ahead_BxJxV = draft_logits(config, weights, drafted.h_BxJxD)[..., :config.vocab_size]
        return first_BxV, chosen_BxK, jax.nn.log_softmax(second_BxKxV), jax.nn.log_softmax(ahead_BxJxV)
