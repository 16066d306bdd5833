"""How likely a model's heads find given tokens: the measure under choice tasks, perplexity and probes.

    scorer = Scorer(load_model("runs/code_bytes"))
    reading, = scorer.read([ids], heads=(1, 2))
    reading.logprob[2]  # of the token two places ahead, at every position that has one
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.decoding.forward import read_rows, states_everywhere
from mtp_jax.decoding.generate import DecodingModel, bucket
from mtp_jax.decoding.model import check_heads
from mtp_jax.decoding.sampling import highest
from mtp_jax.decoding.weights import Weights, first_heads, unembed
from mtp_jax.model.attention import resolve_kernel
from mtp_jax.parallel import use_layout

LOGITS = 2**24  # numbers held at once: a batch's logits over the vocabulary are formed a few positions at a time


@dataclasses.dataclass(frozen=True)
class Reading:
    """What heads say of one row of tokens.

    Attributes:
      logprob: for each head k log p_k(row[i + k] | row[:i + 1]) at i = 0, 1, .., fp32 or wider [len(row) - k], in nats;
        empty where the row has no more than k tokens. Heads of a kind that drafts in turn (sequential) are given the
        tokens in between as well.
      top: for each head k the likeliest token at the same positions, int32 [len(row) - k].
      loops: with early exit from a looped trunk, the loop after which each position left, int32 [len(row) - 1]. None:
        all loops were run.
    """

    logprob: dict[int, np.ndarray]
    top: dict[int, np.ndarray]
    loops: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Scored:
    """What head 1 says of a continuation.

    Attributes:
      logprob: sum over its tokens, in nats.
      tokens: how many it has.
      greedy: whether each of them is the likeliest, so that greedy decoding would write it.
    """

    logprob: float
    tokens: int
    greedy: bool


class Scorer:
    """Reads rows of tokens with a model, in batches of like length.

    Args:
      model: with the heads loaded that are to be asked.
      batch_size: most rows of a forward.

    Raises:
      ValueError: the batch size is not at least 1.
    """

    def __init__(self, model: DecodingModel, *, batch_size: int = 32):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1 row.")
        self.model, self.batch_size = model, batch_size

    def read(self, rows: Sequence[np.ndarray], *, heads: Sequence[int] = (1,),
             progress: Callable[[int], object] | None = None) -> list[Reading]:
        """Returns what heads say of every token of each row.

        Args:
          rows: ids, BOS included where the text has one. The last token of a row is only predicted, not read, so a row
            may have one more than the model's window.
          heads: which, from 1.
          progress: called after each batch with the number of rows it had.

        Raises:
          ValueError: a head is not loaded, a row is empty or too long or holds an id that there is not, or the logits
            are not numbers.
        """
        if not heads:
            raise ValueError("heads=() names no head: give at least one, from 1.")
        for head in heads:
            check_heads(head, self.model.heads)
        kept = [self._checked(number, row) for number, row in enumerate(rows)]
        found: list[Reading | None] = [None] * len(kept)
        # The longest first: what does not fit the memory shows at once.
        order = sorted(range(len(kept)), key=lambda number: -len(kept[number]))
        for start in range(0, len(order), self.batch_size):
            numbers = order[start:start + self.batch_size]
            for number, reading in zip(numbers, self._batch([kept[number] for number in numbers], tuple(heads))):
                found[number] = reading
            lost = [number for number in numbers for values in [found[number]] if values is not None
                    and any(np.isnan(logprob).any() for logprob in values.logprob.values())]
            if lost:
                raise ValueError(f"The logits of row {lost[0]} are NaN: training has diverged. Take the checkpoint of "
                                 "an earlier step.")
            if progress is not None:
                progress(len(numbers))
        return [reading for reading in found if reading is not None]

    def score(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], *,
              progress: Callable[[int], object] | None = None) -> list[Scored]:
        """Returns what head 1 says of continuations.

        Args:
          pairs: ids of a context of at least one token (BOS where there is no text), and of what follows it. Together
            they may have one token more than the model's window: see `fit`.
          progress: as for `read`.

        Raises:
          ValueError: a context is empty; or as `read`.
        """
        for number, (context, _) in enumerate(pairs):
            if len(context) == 0:
                raise ValueError(f"The context of pair {number} is empty: begin with the id of BOS.")
        rows = [np.concatenate([context, continuation]) for context, continuation in pairs]
        scored = []
        for (context, continuation), reading in zip(pairs, self.read(rows, progress=progress)):
            begin = len(context) - 1
            scored.append(Scored(float(reading.logprob[1][begin:].sum(dtype=np.float64)), len(continuation),
                                 bool(np.array_equal(reading.top[1][begin:], continuation))))
        return scored

    def fit(self, context: np.ndarray, continuation: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Cuts a pair to what the model's window holds: from the left, so that the end of the context stays.

        Returns:
          Context and continuation, and how many tokens were cut: 0 where the pair fits. Of a continuation that alone
          is too long the first tokens are lost, for which the last of them but those scored is the context.
        """
        row = np.concatenate([context, continuation])
        cut = max(0, len(row) - self.model.window - 1)
        begin = max(1, len(context) - cut)
        return row[cut:cut + begin], row[cut + begin:], cut

    def _checked(self, number: int, row: np.ndarray) -> np.ndarray:
        """Returns a row as int32."""
        row, vocabulary = np.asarray(row), self.model.config.vocab_size or 0
        if row.ndim != 1 or row.size == 0 or not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"Row {number} must be a list of at least one id, got {row.dtype} of shape {row.shape}.")
        if len(row) > self.model.window + 1:
            raise ValueError(f"Row {number} has {len(row)} tokens, and the model's window of {self.model.window} holds "
                             f"{self.model.window + 1} with the last one, which is only predicted: cut the row, or "
                             "raise window beyond what the model was trained on.")
        if row.min() < 0 or row.max() >= vocabulary:
            raise ValueError(f"Row {number} holds the id {row.min() if row.min() < 0 else row.max()}, and the model's "
                             f"ids are 0 to {vocabulary - 1}.")
        return row.astype(np.int32)

    def _batch(self, rows: Sequence[np.ndarray], heads: tuple[int, ...]) -> list[Reading]:
        """Reads one batch."""
        model = self.model
        # Powers of two: the rest of the rows, fewer than a batch, would else compile a program of its own each time.
        size = min(self.batch_size, 1 << (len(rows) - 1).bit_length())
        size = -(-size // model.rows_multiple) * model.rows_multiple
        # Inputs are all tokens but the last, which is only a target.
        length = bucket(model, max(1, max(map(len, rows)) - 1))
        tokens_BxE, lengths_B = np.zeros((size, length + 1), np.int32), np.ones(size, np.int32)
        for b, row in enumerate(rows):
            tokens_BxE[b, :len(row)], lengths_B[b] = row, max(1, len(row) - 1)
        key = ("likelihood", heads, tokens_BxE.shape)  # what else the weights hold, jit tells apart
        if key not in model.programs:
            model.programs[key] = jax.jit(functools.partial(_read, model, heads))
        weights = first_heads(model.config, model.weights, max(heads))
        logprob_NxBxL, top_NxBxL, loops_BxL = jax.device_get(model.programs[key](weights, tokens_BxE, lengths_B))
        return [Reading({k: logprob_NxBxL[n, b, :max(0, len(row) - k)] for n, k in enumerate(heads)},
                        {k: top_NxBxL[n, b, :max(0, len(row) - k)] for n, k in enumerate(heads)},
                        None if loops_BxL is None else loops_BxL[b, :len(row) - 1])
                for b, row in enumerate(rows)]


def _read(model: DecodingModel, heads: tuple[int, ...], weights: Weights, tokens_BxE: jax.Array, lengths_B: jax.Array
          ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns log probabilities and likeliest tokens, [N, B, L] for N heads, and with early exit the loops [B, L]; past
    a row's end they mean nothing."""
    config, (B, L) = model.config, (tokens_BxE.shape[0], tokens_BxE.shape[1] - 1)
    kernel = resolve_kernel("auto", model.platform, seq_len=L, head_dim=config.attention_head_dim, dtype=config.dtype)
    width = max(1, LOGITS // (B * config.padded_vocab_size))
    width = min(L & -L, 1 << (width.bit_length() - 1))  # a power of two that divides L

    def of_head(head: int, h_BxLxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Past the end of the array the last token stands in; no row ends there.
        target_BxL = tokens_BxE[:, np.minimum(np.arange(L) + head, L)]

        def at(start: jax.Array) -> tuple[jax.Array, jax.Array]:
            h_BxPxD, target_BxP = (jax.lax.dynamic_slice_in_dim(x, start, width, axis=1) for x in (h_BxLxD, target_BxL))
            logits_BxPxV = unembed(config, weights, h_BxPxD, head)
            level_BxP = jnp.take_along_axis(logits_BxPxV, target_BxP[..., None], axis=2)[..., 0]
            return level_BxP - jax.nn.logsumexp(logits_BxPxV, axis=2), highest(logits_BxPxV)

        logprob_SxBxP, top_SxBxP = jax.lax.map(at, jnp.arange(0, L, width, dtype=jnp.int32))
        return _joined(logprob_SxBxP), _joined(top_SxBxP)

    with use_layout(model.layout):
        verified = read_rows(config, weights, tokens_BxE[:, :-1], lengths_B, dtype=config.dtype, kernel=kernel)
        states = {1: verified.h_BxQxD}
        if max(heads) > 1:
            h_BxLxJxD = states_everywhere(config, weights, verified, heads=max(heads), dtype=config.dtype)
            states |= {j + 2: h_BxLxJxD[:, :, j] for j in range(h_BxLxJxD.shape[2])}
        found = [of_head(head, states[head]) for head in heads]
    loops_BxL = None if verified.left is None else verified.left.after_BxQ
    return jnp.stack([logprob for logprob, _ in found]), jnp.stack([top for _, top in found]), loops_BxL


def _joined(x_SxBxP: jax.Array) -> jax.Array:
    """Returns slices of positions put together again, [B, S P]."""
    return jnp.moveaxis(x_SxBxP, 0, 1).reshape(x_SxBxP.shape[1], -1)
