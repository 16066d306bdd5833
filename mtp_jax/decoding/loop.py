"""The generation loop: it runs on the device until every row is done, without the host.

Static are the batch, the capacity and the tree. All else (prompts, lengths, limits, stop tokens, the rule of choosing
tokens and its temperature, random keys) are arrays, so that nothing is compiled again for them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ModelConfig
from mtp_jax.decoding.cache import Cache, write
from mtp_jax.decoding.forward import after_prompt, cache_dtype, draft, draft_logits, read_rows, settled, verify
from mtp_jax.decoding.sampling import GREEDY, Sampling
from mtp_jax.decoding.speculative import Candidates, accept, as_they_are, node_tokens, propose
from mtp_jax.decoding.tree import Tree
from mtp_jax.decoding.weights import Weights, unembed
from mtp_jax.model import get_head_kind

RUNNING, STOPPED, FULL = range(3)  # State.status_B
ROOT = Tree.chain(1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for, all of it arrays.

    Attributes:
      sampling: rule, temperature, filters.
      limits_B: most new tokens of each row; 0 for a row that only fills up the batch.
      stop_ids: ids that end a row, padded with -1.
      key_B: a random key a row.
    """

    sampling: Sampling
    limits_B: jax.Array | np.ndarray
    stop_ids: jax.Array | np.ndarray
    key_B: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loops:
    """What early exit of a looped trunk has come to.

    Attributes:
      of_tokens_B: loops after which the positions left that chose the new tokens, added up.
      run: loops that were run, prompts and blocks together; a batch's forward runs as many as its slowest position.
    """

    of_tokens_B: jax.Array
    run: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Where generation stands.

    Attributes:
      cache: of all settled tokens but the last.
      pending_B: the last settled token of each row, which no forward has read yet.
      drafts: what the next block's drafts are made from: states of heads 2..k at the position before it, h_BxJxD, or
        the drafts themselves where the kind drafts in turn (`forward.Line`).
      tokens_BxT: the new tokens; what lies behind `produced_B` means nothing.
      drafted_by_BxT: the head that drafted each; 1: head 1's own.
      produced_B: how many new tokens there are, a stop token counted.
      status_B: RUNNING, STOPPED (a stop token is its last) or FULL (the limit).
      blocks_B: forwards of blocks in which the row took part.
      accepted_BxJ: in how many of them at least 1, 2, .. drafts went into the text.
      loops: None where positions do not leave early.
    """

    cache: Cache
    pending_B: jax.Array
    drafts: Any
    tokens_BxT: jax.Array
    drafted_by_BxT: jax.Array
    produced_B: jax.Array
    status_B: jax.Array
    blocks_B: jax.Array
    accepted_BxJ: jax.Array
    loops: Loops | None = None


def start(config: ModelConfig, tree: Tree, capacity: int, dtype: jax.typing.DTypeLike, kernel: str, weights: Weights,
          tokens_BxP: jax.Array, lengths_B: jax.Array, request: Request) -> State:
    """Reads the prompts and chooses the first token of each row.

    Args:
      config: the model's shape.
      tree: of the blocks to come.
      capacity: positions a row of the cache; at least the longest prompt, its limit and K = tree.heads together, and
        2 K where the kind drafts in turn.
      dtype: of the cache.
      kernel: attention kernel for the prompt.
      weights: the model's parameters.
      tokens_BxP: the prompts, padded behind their end.
      lengths_B: their lengths, at least 1.
      request: what is asked for.
    """
    B = tokens_BxP.shape[0]

    def choose(logits_BxV: jax.Array) -> jax.Array:
        nothing = Candidates(jnp.zeros((B, 0, 1), jnp.int32), jnp.zeros((B, 0, logits_BxV.shape[1]), logits_BxV.dtype))
        return accept(ROOT, tokens_BxP[:, :1], logits_BxV[:, None], nothing, request.sampling,
                      _block_keys(request.key_B, jnp.zeros(B, jnp.int32))).token_B

    verified = read_rows(config, weights, tokens_BxP, lengths_B, dtype=dtype, kernel=kernel)
    _, first_B, drafted, cache = after_prompt(config, weights, verified, lengths_B, heads=tree.heads, capacity=capacity,
                                              dtype=dtype, choose=choose)
    zeros_B = jnp.zeros(B, jnp.int32)
    left_BxK = loops = None
    if verified.left is not None:
        last_Bx1 = jnp.take_along_axis(verified.left.after_BxQ, lengths_B[:, None] - 1, axis=1)
        left_BxK, loops = jnp.pad(last_Bx1, ((0, 0), (0, tree.heads - 1))), Loops(zeros_B, verified.left.run)
    state = State(cache, first_B, drafted.drafts, jnp.zeros((B, capacity), jnp.int32),
                  jnp.zeros((B, capacity), jnp.int8), zeros_B, jnp.where(request.limits_B > 0, RUNNING, FULL), zeros_B,
                  jnp.zeros((B, tree.depth), jnp.int32), loops)
    line_BxK = jnp.zeros((B, tree.heads), jnp.int32).at[:, 0].set(first_B)
    return _emit(state, request, line_BxK, zeros_B, left_BxK)


def run(config: ModelConfig, tree: Tree, weights: Weights, state: State, request: Request,
        max_blocks: jax.Array) -> State:
    """Verifies block after block until every row is done or `max_blocks` have been."""
    def unfinished(carry: tuple[State, jax.Array]) -> jax.Array:
        state, blocks = carry
        return jnp.any(state.status_B == RUNNING) & (blocks < max_blocks)

    def body(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, blocks = carry
        return step(config, tree, weights, state, request), blocks + 1

    return jax.lax.while_loop(unfinished, body, (state, jnp.zeros((), jnp.int32)))[0]


def step(config: ModelConfig, tree: Tree, weights: Weights, state: State, request: Request) -> State:
    """Drafts a block, verifies it in one forward, and keeps what is accepted."""
    # Greedy decoding reads no key; making one takes CPU as long as half a layer of a small model.
    key_B = jax.lax.cond(request.sampling.rule == GREEDY, lambda: request.key_B,
                         lambda: _block_keys(request.key_B, 1 + state.blocks_B))
    in_turn = get_head_kind(config.head_kind).in_turn
    if in_turn:
        wide = jnp.promote_types(jnp.float32, config.dtype)
        candidates = as_they_are(state.drafts.tokens_BxJ, config.padded_vocab_size, wide)
    else:
        candidates = propose(draft_logits(config, weights, state.drafts), tree, request.sampling, key_B)
    tokens_BxQ = node_tokens(state.pending_B, candidates, tree)
    running_B = state.status_B == RUNNING
    verified = verify(config, weights, state.cache, tokens_BxQ, tree, running_B)
    logits_BxQxV = unembed(config, weights, verified.h_BxQxD, 1)
    accepted = accept(tree, tokens_BxQ, logits_BxQxV, candidates, request.sampling, key_B)
    drafted = draft(config, weights, verified, state.cache, accepted.node_B, heads=tree.heads,
                    dtype=cache_dtype(state.cache), token_B=accepted.token_B, before=state.drafts)
    cache = write(state.cache, verified.trunk, drafted.news, None if tree.is_chain else accepted.path_BxK,
                  jnp.where(running_B, accepted.count_B + 1, 0), (logits_BxQxV, drafted.h_BxJxD),
                  again=settled(tree.heads) if in_turn else 0)
    # The line that goes into the text: the accepted drafts, then head 1's token.
    drafts_BxK = jnp.take_along_axis(tokens_BxQ, jnp.roll(accepted.path_BxK, -1, axis=1), axis=1)
    own_BxK = jnp.arange(tree.heads)[None] == accepted.count_B[:, None]
    line_BxK = jnp.where(own_BxK, accepted.token_B[:, None], drafts_BxK)
    state = dataclasses.replace(state, cache=cache, pending_B=accepted.token_B, drafts=drafted.drafts,
                                blocks_B=state.blocks_B + running_B)
    left_BxK = None
    if verified.left is not None and state.loops is not None:
        left_BxK = jnp.take_along_axis(verified.left.after_BxQ, accepted.path_BxK, axis=1)
        state = dataclasses.replace(state, loops=Loops(state.loops.of_tokens_B, state.loops.run + verified.left.run))
    return _emit(state, request, line_BxK, accepted.count_B, left_BxK)


def _emit(state: State, request: Request, line_BxK: jax.Array, count_B: jax.Array, left_BxK: jax.Array | None) -> State:
    """Appends `count_B` drafts and the token after them, up to a stop token or the limit; `left_BxK` are the loops
    after which the positions left that chose each."""
    running_B = state.status_B == RUNNING
    K = line_BxK.shape[1]
    place_K = jnp.arange(K, dtype=jnp.int32)
    room_B = jnp.minimum(count_B + 1, request.limits_B - state.produced_B)
    is_stop_BxK = jnp.any(line_BxK[:, :, None] == request.stop_ids[None, None], axis=2)
    stops_BxK = is_stop_BxK & (place_K[None] < room_B[:, None])
    first_stop_B = jnp.min(jnp.where(stops_BxK, place_K[None], K), axis=1)
    new_B = jnp.where(running_B, jnp.minimum(room_B, first_stop_B + 1), 0)
    produced_B = state.produced_B + new_B
    status_B = jnp.where(first_stop_B < K, STOPPED, jnp.where(produced_B >= request.limits_B, FULL, RUNNING))
    by_BxK = jnp.where(place_K[None] < count_B[:, None], place_K[None] + 2, 1).astype(jnp.int8)

    def put(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(old, new, (at,))

    loops = state.loops
    if loops is not None and left_BxK is not None:
        spent_B = jnp.sum(jnp.where(place_K[None] < new_B[:, None], left_BxK, 0), axis=1)
        loops = Loops(loops.of_tokens_B + spent_B, loops.run)

    # A row that is done may write behind its end too: there is room for K more, and nobody reads it.
    depth_J = place_K[None, 1:]
    return dataclasses.replace(
        state, tokens_BxT=jax.vmap(put)(state.tokens_BxT, line_BxK, state.produced_B),
        drafted_by_BxT=jax.vmap(put)(state.drafted_by_BxT, by_BxK, state.produced_B), produced_B=produced_B,
        status_B=jnp.where(running_B, status_B, state.status_B),
        accepted_BxJ=state.accepted_BxJ + (jnp.minimum(new_B, count_B)[:, None] >= depth_J).astype(jnp.int32),
        loops=loops)


def _block_keys(key_B: jax.Array, block_B: jax.Array) -> jax.Array:
    """Returns a key for the forward number `block_B` of each row: it depends on nothing but the row's own past."""
    return jax.vmap(jax.random.fold_in)(key_B, block_B)
