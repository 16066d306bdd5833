"""Texts as rows that are scored: pairs of context and continuation, and windows over a text of any length.

Both are cut as lm-evaluation-harness 0.4 cuts them, so that its numbers and ours are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mtp_jax.data.tokenizer import Tokenizer


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a context, BOS before them, and of what follows it.

    Spaces at the end of the context go to the continuation, whose tokens mostly begin with one; then both are encoded
    as one text and what the context alone has is taken off.

    Args:
      tokenizer: of the model.
      context: may be empty.
      continuation: what is scored.

    Raises:
      ValueError: the tokenizer cannot encode the text.
    """
    kept = context.rstrip()
    whole = tokenizer.encode(context + continuation).astype(np.int32)
    first = tokenizer.encode(kept).astype(np.int32) if kept else whole[:0]
    return np.concatenate([[tokenizer.bos_id], first]).astype(np.int32), whole[len(first):]


def encode_text(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the ids of a text as `windows` takes it: BOS, then its tokens."""
    return np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)]).astype(np.int32)


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields the rows that score each token of a text once.

    The first row is as long as the window allows. Each further one scores the next `stride` tokens (the last one the
    rest), with as much before them as the window holds: window - stride + 1 tokens at least.

    Args:
      tokens: of the text, BOS included, which is not scored.
      window: tokens that the model reads at once; a row has one more, which is only predicted.
      stride: tokens that a row scores, in [1, window].

    Returns:
      (begin, end, first): row ids[begin:end], of which the tokens from `first` on are scored.
    """
    end = min(window + 1, tokens)
    if end > 1:
        yield 0, end, 1
    while end < tokens:
        first, end = end, min(end + stride, tokens)
        yield end - window - 1, end, first
