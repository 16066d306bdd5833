"""Continuing prompts: autoregressively with head 1, or up to k tokens a forward with the model's own heads.

    model = load_model("runs/code_bytes")
    result = generate(model, ["def main("], max_new_tokens=200)
    print(result.text[0], result.tokens_per_forward)
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Container, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding import loop
from mtp_jax.decoding.generation import Generation
from mtp_jax.decoding.model import DecodingModel, check_branches, check_heads, check_redistribution
from mtp_jax.decoding.sampling import Sampling, make_sampling
from mtp_jax.decoding.tree import Tree
from mtp_jax.decoding.weights import Weights, first_heads
from mtp_jax.model.attention import resolve_kernel
from mtp_jax.parallel import use_layout

__all__ = ["DecodingModel", "Generation", "generate"]

Prompts = Sequence[str] | Sequence[Sequence[int]]
OnTokens = Callable[[int, np.ndarray, np.ndarray], object]
STOP_IDS = 16  # stop tokens are padded to a multiple of this, so that their number does not compile anew
ENDLESS = np.iinfo(np.int32).max


def generate(model: DecodingModel, prompts: Prompts, *, max_new_tokens: int, heads: int | None = None,
             tree: Tree | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
             min_p: float = 0.0, typical: bool = False, typical_epsilon: float = 0.09, typical_delta: float = 0.3,
             seed: int = 0, stop: Sequence[int] | None = None, on_tokens: OnTokens | None = None,
             stream_every: int = 16) -> Generation:
    """Continues prompts.

    What heads and tree are used changes the speed and, but for `typical`, not the text: greedy, it is what head 1 alone
    would write (up to near-ties in rounding); drawn, it is distributed so.

    Args:
      model: from `load_model` or `DecodingModel.from_params`.
      prompts: rows of a batch, of any lengths: texts, before which BOS is put, or ids.
      max_new_tokens: most new tokens a row; a row also ends where prompt and text fill `model.window`.
      heads: k, how many heads are used; 1 drafts nothing. None: all that are loaded.
      tree: tree of drafts, instead of a chain of `heads`.
      temperature: 0 takes the most likely token.
      top_k: keep only the k most likely tokens; 0: all.
      top_p: keep only the most likely tokens that together have this probability; 1: all.
      min_p: keep only tokens of at least this share of the highest probability; 0: all.
      typical: typical acceptance (Cai et al. 2024); accepts more drafts and is not lossless.
      typical_epsilon: see `make_sampling`.
      typical_delta: see `make_sampling`.
      seed: of the draws, in [0, 2**32). Those of row b depend on (seed, b) and on nothing else.
      stop: ids that end a row and are not part of its text. None: the tokenizer's EOS, if there is a tokenizer.
      on_tokens: called with (row, its new ids, the heads that drafted them) while it runs; a row for which it returns
        True is done with them.
      stream_every: forwards between these calls.

    Raises:
      ValueError: an argument does not fit; names it, its value and the remedy. Or the model's logits are not numbers.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("heads", heads), ("seed", seed),
                        ("stream_every", stream_every)):
        if value is not None and not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name}={value!r} must be a whole number.")
    rows = encode(model, prompts)
    tree = _tree(model, heads, tree)
    sampling = make_sampling(temperature, top_k, top_p, min_p, typical, typical_epsilon, typical_delta)
    limits = row_limits(model, rows, max_new_tokens)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must lie in [0, 2**32).")
    if stream_every < 1:
        raise ValueError(f"stream_every={stream_every} must be at least 1 forward.")

    batch = -(-len(rows) // model.rows_multiple) * model.rows_multiple
    capacity = room(model, min(max(map(len, rows)) + max_new_tokens, model.window), tree.heads)
    tokens, lengths = _pad(rows, batch, bucket(model, max(map(len, rows))))
    stop_ids = _stop_ids(model, stop)
    request = make_request(sampling, limits, stop_ids, seed, batch)
    programs = compiled(model, tree, tokens.shape, capacity, len(stop_ids))

    clock = time.perf_counter()
    state = jax.block_until_ready(programs.start(programs.weights, tokens, lengths, request))
    seconds = prompt_seconds = time.perf_counter() - clock
    _check_numbers(model, state)
    stream = _Stream(on_tokens, len(rows))
    state = stream.send(state)
    blocks = np.int32(ENDLESS if on_tokens is None else stream_every)
    while np.any(np.asarray(state.status_B) == loop.RUNNING):
        clock = time.perf_counter()
        state = jax.block_until_ready(programs.run(programs.weights, state, request, blocks))
        seconds += time.perf_counter() - clock
        _check_numbers(model, state)
        state = stream.send(state)
    return _collect(model, tree, rows, state, limits < max_new_tokens, seconds, prompt_seconds, stream.enough)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The two programs of a batch, compiled, and the weights that they take.

    Attributes:
      weights: of the heads in use and no others.
      start: (weights, tokens_BxP, lengths_B, request) -> State, after the prompts.
      run: (weights, state, request, max_blocks) -> State; takes the state's memory.
    """

    weights: Weights
    start: Callable[..., loop.State]
    run: Callable[..., loop.State]


def compiled(model: DecodingModel, tree: Tree, prompt_shape: tuple[int, int], capacity: int, stop_ids: int = STOP_IDS
             ) -> Programs:
    """Returns the programs for a batch, compiled on first use.

    Args:
      model: the model.
      tree: of the blocks.
      prompt_shape: (B, P) of the padded prompts.
      capacity: positions a row of the cache.
      stop_ids: how many, padding counted.
    """
    config, (B, P) = model.config, prompt_shape
    weights = first_heads(config, model.weights, tree.heads)
    check_redistribution(weights.redistribution, nodes=tree.size, rows=B)
    kernel = resolve_kernel("auto", model.platform, seq_len=P, head_dim=config.attention_head_dim, dtype=config.dtype)
    tokens = jax.ShapeDtypeStruct((B, P), np.int32)
    lengths = jax.ShapeDtypeStruct((B,), np.int32)
    request = jax.eval_shape(lambda: make_request(make_sampling(), np.zeros(B), np.zeros(stop_ids, np.int32), 0, B))

    line = Tree.chain(tree.heads)  # however the drafts branch, a prompt is read alike

    def start(weights: Weights, tokens_BxP: jax.Array, lengths_B: jax.Array, request: loop.Request) -> loop.State:
        with use_layout(model.layout):
            return loop.start(config, line, capacity, model.cache_dtype, kernel, weights, tokens_BxP, lengths_B,
                              request)

    def run(weights: Weights, state: loop.State, request: loop.Request, max_blocks: jax.Array) -> loop.State:
        with use_layout(model.layout):
            return loop.run(config, tree, weights, state, request, max_blocks)

    # Of these settings the values are arrays; what is static in them makes another program.
    settings = jax.tree.structure((weights.exit_threshold, weights.redistribution))
    shapes = (B, capacity, stop_ids, settings)
    if ("start", P, line, *shapes) not in model.programs:
        lowered = jax.jit(start).lower(weights, tokens, lengths, request)
        model.programs["start", P, line, *shapes] = lowered.compile(), lowered.out_info
    first, info = model.programs["start", P, line, *shapes]
    if ("run", tree, *shapes) not in model.programs:
        state = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), info,
                             first.output_shardings)
        model.programs["run", tree, *shapes] = jax.jit(
            run, donate_argnums=1, out_shardings=first.output_shardings).lower(
                weights, state, request, jax.ShapeDtypeStruct((), np.int32)).compile()
    return Programs(weights, first, model.programs["run", tree, *shapes])


def room(model: DecodingModel, length: int, heads: int) -> int:
    """Returns the positions a row of a cache for rows of `length` tokens at most, and blocks of `heads` heads.

    One block goes beyond the end; where heads draft in turn it begins up to K - 2 settled positions earlier.
    """
    return bucket(model, max(length + heads, 2 * heads))


def bucket(model: DecodingModel, length: int) -> int:
    """Returns the length that programs are compiled for, so that like lengths share one: at most a quarter more, or a
    multiple of 64 (128 on TPU and GPU)."""
    least = 64 if model.platform == "cpu" else 128
    quantum = max(least, 2 ** (length.bit_length() - 3))
    return -(-length // quantum) * quantum


def encode(model: DecodingModel, prompts: Prompts) -> list[np.ndarray]:
    """Returns the ids of each prompt; texts get BOS."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r} is one text: give a list, [{prompts!r}].")
    if len(prompts) == 0:
        raise ValueError("prompts=[] has no prompt: give at least one.")
    rows = []
    for number, prompt in enumerate(prompts, 1):
        if isinstance(prompt, str):
            if model.tokenizer is None:
                raise ValueError(f"Prompt {number} is a text and the model has no tokenizer: give its ids.")
            ids = np.asarray([model.tokenizer.bos_id, *model.tokenizer.encode(prompt)] if prompt else [])
        else:
            ids = np.asarray(prompt)
        if ids.size == 0:
            raise ValueError(f"Prompt {number} is empty: begin with some text, or with the id of BOS alone.")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"Prompt {number} must be a text or a list of ids, got an array of {ids.dtype} with "
                             f"{ids.ndim} axes.")
        vocabulary = model.config.vocab_size or 0
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(f"Prompt {number} holds the id {ids.min() if ids.min() < 0 else ids.max()}, and the "
                             f"model's ids are 0 to {vocabulary - 1}: use the model's own tokenizer.")
        rows.append(ids.astype(np.int32))
    return rows


def _tree(model: DecodingModel, heads: int | None, tree: Tree | None) -> Tree:
    """Returns the tree to use."""
    if tree is None:
        check_heads(model.heads if heads is None else heads, model.heads)
        return Tree.chain(model.heads if heads is None else heads)
    if heads is not None and heads != tree.heads:
        raise ValueError(f"heads={heads} does not fit a tree that uses {tree.heads}: leave heads out.")
    check_heads(tree.heads, model.heads)
    if not tree.is_chain:
        check_branches(model.config, f"tree, of {tree.size} nodes,")
    return tree


def row_limits(model: DecodingModel, rows: Sequence[np.ndarray], max_new_tokens: int) -> np.ndarray:
    """Returns the most new tokens of each row."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    for number, row in enumerate(rows, 1):
        if len(row) >= model.window:
            raise ValueError(f"Prompt {number} has {len(row)} tokens (BOS counted) and does not fit the window of "
                             f"{model.window}, which must hold a new token too: cut it to its last {model.window - 1}, "
                             "or raise window beyond what the model was trained on.")
    return np.array([min(max_new_tokens, model.window - len(row)) for row in rows], np.int32)


def _stop_ids(model: DecodingModel, stop: Sequence[int] | None) -> np.ndarray:
    """Returns the stop tokens, padded with -1 to a multiple of STOP_IDS."""
    if stop is None:
        stop = [] if model.tokenizer is None else [model.tokenizer.eos_id]
    vocabulary = model.config.vocab_size or 0
    if isinstance(stop, (str, bytes)) or not isinstance(stop, (Sequence, np.ndarray, set, frozenset)):
        raise ValueError(f"stop={stop!r} must be a list of ids.")
    for token in stop:
        if not 0 <= token < vocabulary:
            raise ValueError(f"stop={list(stop)} holds {token}, and the model's ids are 0 to {vocabulary - 1}.")
    padded = np.full(max(STOP_IDS, -(-len(stop) // STOP_IDS) * STOP_IDS), -1, np.int32)
    padded[:len(stop)] = list(stop)
    return padded


def _pad(rows: Sequence[np.ndarray], batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows as one array and their lengths; rows that fill up the batch have one token."""
    tokens, lengths = np.zeros((batch, length), np.int32), np.ones(batch, np.int32)
    for b, row in enumerate(rows):
        tokens[b, :len(row)], lengths[b] = row, len(row)
    return tokens, lengths


def make_request(sampling: Sampling, limits: np.ndarray, stop_ids: np.ndarray, seed: int, batch: int) -> loop.Request:
    """Returns what the programs are asked for."""
    key_B = _row_keys(np.uint32(seed), batch)
    padded = np.zeros(batch, np.int32)
    padded[:len(limits)] = limits
    return loop.Request(sampling, padded, stop_ids, key_B)


@functools.partial(jax.jit, static_argnums=1)
def _row_keys(seed: jax.Array, batch: int) -> jax.Array:
    """Returns a random key a row."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(batch, dtype=jnp.uint32))


def _check_numbers(model: DecodingModel, state: loop.State) -> None:
    """Raises ValueError where logits were NaN, for which `highest` gives an id that there is not."""
    tokens_BxT = np.asarray(state.tokens_BxT)
    new_BxT = np.arange(tokens_BxT.shape[1])[None] < np.asarray(state.produced_B)[:, None]
    lost_B = np.any(new_BxT & (tokens_BxT >= (model.config.vocab_size or 0)), axis=1)
    if lost_B.any():
        raise ValueError(f"The logits after prompt {np.argmax(lost_B) + 1} are NaN: training has diverged. Take the "
                         "checkpoint of an earlier step.")


class _Stream:
    """Sends what is new of each row to a callback."""

    def __init__(self, on_tokens: OnTokens | None, rows: int):
        self.on_tokens = on_tokens
        self.sent = np.zeros(rows, np.int64)
        self.enough: set[int] = set()  # rows that the callback ended

    def send(self, state: loop.State) -> loop.State:
        """Calls back once for each row that has new tokens; returns the state with the rows ended that are done."""
        if self.on_tokens is None:
            return state
        tokens, by = np.asarray(state.tokens_BxT), np.asarray(state.drafted_by_BxT)
        ends, status_B = _lengths(state), np.array(state.status_B)
        for row, (begin, end) in enumerate(zip(self.sent, ends)):
            if end > begin:
                done = self.on_tokens(row, tokens[row, begin:end], by[row, begin:end])
                self.sent[row] = end
                if done is True and status_B[row] == loop.RUNNING:
                    status_B[row] = loop.FULL
                    self.enough.add(row)
        if np.array_equal(status_B, np.asarray(state.status_B)):
            return state
        return dataclasses.replace(state, status_B=jax.device_put(status_B, state.status_B.sharding))


def _lengths(state: loop.State) -> np.ndarray:
    """Returns the new tokens of each row without a stop token."""
    return np.asarray(state.produced_B) - (np.asarray(state.status_B) == loop.STOPPED)


def _collect(model: DecodingModel, tree: Tree, rows: Sequence[np.ndarray], state: loop.State, by_window: np.ndarray,
             seconds: float, prompt_seconds: float, enough: Container[int]) -> Generation:
    """Brings the result to the host."""
    count = len(rows)
    lengths, status = _lengths(state)[:count], np.asarray(state.status_B)
    tokens_BxT, by_BxT = np.asarray(state.tokens_BxT), np.asarray(state.drafted_by_BxT)
    tokens = [tokens_BxT[b, :lengths[b]].copy() for b in range(count)]
    blocks = np.asarray(state.blocks_B)[:count]
    finished = ["stop" if status[b] == loop.STOPPED else "enough" if b in enough else
                "window" if by_window[b] else "length" for b in range(count)]
    return Generation(
        tokens=tokens, lengths=[int(length) for length in lengths],
        drafted_by=[by_BxT[b, :lengths[b]].copy() for b in range(count)], finished=finished, heads=tree.heads,
        forwards=blocks + 1, blocks=blocks, accepted=np.asarray(state.accepted_BxJ)[:count],
        produced=np.asarray(state.produced_B)[:count], seconds=seconds, prompt_seconds=prompt_seconds,
        trunk_loops=model.config.loops,
        token_loops=None if state.loops is None else np.asarray(state.loops.of_tokens_B)[:count],
        loops_run=None if state.loops is None else int(state.loops.run),
        text=None if model.tokenizer is None else [_text(model.tokenizer, *pair) for pair in zip(rows, tokens)])


def _text(tokenizer: Tokenizer, prompt: np.ndarray, new: np.ndarray) -> str:
    """Returns the text of new ids; decoded behind the prompt, since some tokenizers drop a space at the beginning."""
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode(np.concatenate([prompt, new]))
    return whole[len(before):] if whole.startswith(before) else tokenizer.decode(new)
