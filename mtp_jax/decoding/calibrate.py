"""Measuring on a text how often the heads' candidates are what head 1 goes on to say."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mtp_jax.decoding.calibration import FILE, Calibration, load, save
from mtp_jax.decoding.forward import draft, draft_logits, read_rows, states_in_line
from mtp_jax.decoding.generate import DecodingModel, Prompts, bucket, encode, generate
from mtp_jax.decoding.weights import Weights
from mtp_jax.model import get_head_kind
from mtp_jax.model.attention import resolve_kernel
from mtp_jax.model.cached import take
from mtp_jax.parallel import use_layout

__all__ = ["FILE", "Calibration", "calibrate", "calibrate_on", "load", "read_text", "save"]


def calibrate(model: DecodingModel, text: str | bytes, *, name: str = "", prompts: int = 16,
              prompt_tokens: int | None = None, new_tokens: int | None = None, ranks: int = 10) -> Calibration:
    """Measures the ranks on continuations of pieces of a text.

    The pieces lie evenly over the text, so the same text gives the same calibration. Each is continued greedily by
    head 1 alone; one forward over piece and continuation then gives the other heads' candidates at every new position.

    Args:
      model: with all heads loaded, and its tokenizer.
      text: of the kind that the model is to write.
      name: what to call the text in the file.
      prompts: pieces to cut; fewer where the text has no room for as many different ones.
      prompt_tokens: length of a piece with its BOS; None: 64, or a third of the window where that is less.
      new_tokens: tokens to continue each by; None: 128, or what the window leaves.
      ranks: candidates of a head to tell apart.

    Raises:
      ValueError: the text is too short for one piece, the window for piece and continuation, the model has one head, or
        not all of its heads are loaded.
    """
    if model.tokenizer is None:
        raise ValueError("Calibrating on a text needs the model's tokenizer: load the model from its workdir.")
    prompt_tokens = min(64, model.window // 3) if prompt_tokens is None else prompt_tokens
    if prompts < 1 or prompt_tokens < 2:
        raise ValueError(f"prompts={prompts} and prompt_tokens={prompt_tokens} must be at least 1 and 2.")
    ids = np.asarray(model.tokenizer.encode(text))
    pieces = _pieces(ids, prompts, prompt_tokens - 1)
    if not pieces:
        raise ValueError(f"The text{' ' + name if name else ''} has {len(ids)} tokens, too few for one prompt of "
                         f"{prompt_tokens}: give a longer one.")
    data = text.encode() if isinstance(text, str) else text
    return calibrate_on(model, [[model.tokenizer.bos_id, *piece] for piece in pieces], name=name,
                        text_hash=hashlib.sha256(data).hexdigest(), new_tokens=new_tokens, ranks=ranks)


def calibrate_on(model: DecodingModel, prompts: Prompts, *, name: str = "", text_hash: str = "",
                 new_tokens: int | None = None, ranks: int = 10) -> Calibration:
    """Measures the ranks on continuations of these prompts, as `calibrate` does.

    Args:
      model: with all heads loaded.
      prompts: as `generate` takes them.
      name: what to call them.
      text_hash: what to tell them by.
      new_tokens: tokens to continue each by; None: 128, or what the window leaves.
      ranks: candidates of a head to tell apart.

    Raises:
      ValueError: as `calibrate` and `generate`; or every continuation ended at once.
    """
    N = model.config.num_heads
    if N == 1 or model.heads < N:
        raise ValueError("The model has one head, so there are no drafts to measure." if N == 1 else
                         f"{model.heads} of the model's {N} heads are loaded: load all of them to calibrate.")
    if not 1 <= ranks < 256:
        raise ValueError(f"ranks={ranks} must lie in [1, 255].")
    starts = encode(model, prompts)
    longest = max(map(len, starts))
    new_tokens = min(128, model.window - longest) if new_tokens is None else new_tokens
    if new_tokens < N or longest + new_tokens > model.window:
        raise ValueError(f"A prompt of {longest} tokens and {max(new_tokens, N)} new ones (the model's {N} heads need "
                         f"as many) do not fit the window of {model.window}: use shorter prompts or fewer tokens.")
    run = generate(model, [start.tolist() for start in starts], max_new_tokens=new_tokens, heads=1)
    end = [] if model.tokenizer is None else [model.tokenizer.eos_id]
    texts = [np.concatenate([start, tokens, end if finished == "stop" else []]).astype(np.int32)
             for start, tokens, finished in zip(starts, run.tokens, run.finished)]
    rows = tuple(row for row in _measure(model, texts, list(map(len, starts)), ranks) if len(row))
    if not rows:
        raise ValueError(f"The model ended all {len(starts)} continuations within {N} tokens, so there is nothing to "
                         "measure: give another text.")
    tokenizer = None if model.tokenizer is None else model.tokenizer.hash
    return Calibration(N, ranks, rows, model.step, tokenizer, name, text_hash, longest, new_tokens)


def _pieces(ids: np.ndarray, count: int, length: int) -> list[np.ndarray]:
    """Returns at most `count` different slices of `length` ids, evenly spaced from the first to the last."""
    last = len(ids) - length
    starts = sorted({round(last * i / max(1, count - 1)) for i in range(count)}) if last >= 0 else []
    return [ids[start:start + length] for start in starts]


def _measure(model: DecodingModel, texts: Sequence[np.ndarray], starts: Sequence[int], ranks: int
             ) -> list[np.ndarray]:
    """Returns the ranks of each text, [positions, N - 1], from the last token of its prompt on."""
    N, batch = model.config.num_heads, -(-len(texts) // model.rows_multiple) * model.rows_multiple
    tokens_BxL = np.zeros((batch, bucket(model, max(map(len, texts)))), np.int32)
    lengths_B, first_B = np.ones(batch, np.int32), np.zeros(batch, np.int32)
    for row, (text, start) in enumerate(zip(texts, starts)):
        tokens_BxL[row, :len(text)], lengths_B[row], first_B[row] = text, len(text), start - 1
    # At the last position counted, head N still has a token to be compared with.
    counts_B = np.maximum(0, lengths_B - N - first_B)
    positions = max(1, int(counts_B.max()))
    key = ("ranks", tokens_BxL.shape, positions)
    if key not in model.programs:
        model.programs[key] = jax.jit(functools.partial(_ranks_of, model, positions))
    ranks_PxBxJ = np.asarray(model.programs[key](model.weights, tokens_BxL, lengths_B, first_B))
    return [np.minimum(ranks_PxBxJ[:counts_B[row], row], ranks).astype(np.uint8) for row in range(len(texts))]


def _ranks_of(model: DecodingModel, positions: int, weights: Weights, tokens_BxL: jax.Array, lengths_B: jax.Array,
              first_B: jax.Array) -> jax.Array:
    """Returns the ranks [P, B, N - 1] at the positions from first_B on; those too near to the end mean nothing."""
    config, (B, L) = model.config, tokens_BxL.shape
    J, V = config.num_heads - 1, config.padded_vocab_size
    kernel = resolve_kernel("auto", model.platform, seq_len=L, head_dim=config.attention_head_dim, dtype=config.dtype)
    in_turn = get_head_kind(config.head_kind).in_turn

    def states_at(place_B: jax.Array) -> jax.Array:
        if in_turn:  # a head reads the drafts before its own, which count only where they are the text
            return take(h_BxLxJxD, jnp.minimum(place_B, L - 1))[:, 0]
        return draft(config, weights, verified, None, place_B, heads=J + 1, dtype=model.cache_dtype,
                     token_B=first_B).h_BxJxD

    def at(offset: jax.Array) -> jax.Array:
        h_BxJxD = states_at(first_B + offset)
        logits_BxJxV = draft_logits(config, weights, h_BxJxD)
        places_BxJ = jnp.minimum(first_B[:, None] + offset + 2 + jnp.arange(J)[None], L - 1)
        said_BxJx1 = jnp.take_along_axis(tokens_BxL, places_BxJ, axis=1)[..., None]
        level_BxJx1 = jnp.take_along_axis(logits_BxJxV, said_BxJx1, axis=2)
        # Of equal logits the lower id is proposed first.
        before = jnp.where(jnp.arange(V)[None, None] < said_BxJx1, logits_BxJxV >= level_BxJx1,
                           logits_BxJxV > level_BxJx1)
        return jnp.sum(before, axis=2)

    with use_layout(model.layout):
        verified = read_rows(config, weights, tokens_BxL, lengths_B, dtype=model.cache_dtype, kernel=kernel)
        if in_turn:
            h_BxLxJxD = states_in_line(config, weights, verified, model.cache_dtype)
        side_by_side = max(1, 2**24 // (B * J * V))  # positions: logits stay below 64 MiB
        return jax.lax.map(at, jnp.arange(positions, dtype=jnp.int32), batch_size=min(side_by_side, positions))


def read_text(path: str) -> str | bytes:
    """Returns what a file holds, as text, or as bytes where it is no UTF-8.

    Raises:
      ValueError: it cannot be read.
    """
    try:
        data = epath.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"--calibrate={path} cannot be read ({error.strerror or error}): name a text file.") from error
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
