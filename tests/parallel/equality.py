"""One optimizer step of a tiny model on any mesh, compared with the same step on one device."""

import functools
import itertools

import jax
import numpy as np

from mtp_jax import config as configs
from mtp_jax.checkpoints.structure import nest
from mtp_jax.config import ParallelConfig
from mtp_jax.decoding import DecodingModel, Tree, forward
from mtp_jax.decoding.sampling import highest
from mtp_jax.decoding.weights import unembed
from mtp_jax.model import ModelSpec, get_head_kind
from mtp_jax.parallel import Layout, make_mesh, use_layout
from mtp_jax.training.program import build_program
from mtp_jax.training.state import flatten_params
from tests.small_model import assert_trees_close

VOCAB, B, L = 30, 16, 16
KINDS, HEADS = ("parallel", "linear", "causal", "anticausal"), (1, 2, 4)
# Kinds whose head 1 has no parameters: whole in the slow suite, a few cells in the fast one.
OWN_FROM_2 = ("medusa", "sequential")
LOOPED = "looped"  # stands for parallel heads on a trunk that is run three times
# What else a model can have, so that every value meets every kind and every n.
VARIANTS = ({}, {"unembedding": "replicated", "num_kv_heads": 4}, {"tie_embedding": True, "qk_norm": True})


def config_of(kind, heads, mesh, **compute):
    """Returns the run of a tiny model in fp64."""
    variant = VARIANTS[((*KINDS, *OWN_FROM_2, LOOPED).index(kind) + HEADS.index(heads)) % len(VARIANTS)]
    if kind == LOOPED:
        kind, variant = "parallel", {**variant, "trunk_kind": "looped", "loops": 3}
    config = configs.from_dict({
        "model": dict(num_heads=heads, num_layers=2 + get_head_kind(kind).layers_per_head * heads, d_model=16,
                      head_kind=kind, num_attention_heads=8, head_dim=4, d_ff=16, vocab_size=VOCAB,
                      vocab_multiple=16, init_std=0.3, param_dtype="float64", dtype="float64", **variant),
        # Logits of 2 positions of 16 rows: the loss of every mesh has several chunks, some of them padded.
        "compute": dict(scan_layers=True, logits_bytes=3 * 4 * 32, **compute),
        "data": dict(batch_size=B, seq_len=L),
        # Without clipping the first moment is a tenth of the gradient; eps as large as it keeps Adam from dividing
        # rounding by rounding.
        "optimizer": dict(learning_rate=0.1, warmup_steps=0, clip_norm=0.0, eps=1e-3, b1=0.9),
        "train": dict(num_steps=4), "parallel": dict(mesh=mesh)})
    config.validate()
    return config


def batch_of(seed=0):
    """Rows of uneven documents and padding, in places that no mesh cuts at."""
    draw = np.random.default_rng(seed)
    segments, positions = np.zeros((2, B, L), np.int32)
    for row in range(B):
        start = 0
        for number in range(1, 4):
            end = min(L, start + int(draw.integers(1, 11)))
            segments[row, start:end], positions[row, start:end] = number, np.arange(end - start)
            start = end
    return {"tokens": draw.integers(0, VOCAB, (B, L)).astype(np.int32), "segments": segments, "positions": positions}


@functools.cache
def initial_state(kind, heads):
    """Returns a train state before the first step, on the host: random parameters, moments of zero."""
    program = build_program(config_of(kind, heads, "data:1"), jax.devices()[:1])
    draw = np.random.default_rng(1)

    def value(path, leaf):
        norm = path.endswith("/scale")
        return draw.normal(size=leaf.shape) * (0.2 if norm else 0.3) + (1 if norm else 0)

    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), program.state)
    params = {path: value(path, leaf) for path, leaf in flatten_params(program.spec.shapes).items()}
    return type(state)(state.step, nest(params), state.opt_state)


def step_of(program, kind, heads):
    """Returns (state, metrics) after a step, on the host."""
    state = jax.tree.map(lambda value, like: jax.device_put(value, like.sharding), initial_state(kind, heads),
                         program.state)
    return jax.device_get(program.train_step(state, program.put(batch_of())))


@functools.cache
def unsharded(kind, heads):
    """Returns the step on one device, with plain loops and the plainest kernel; shared by the meshes."""
    return step_of(build_program(config_of(kind, heads, "data:1", attention="xla"), jax.devices()[:1]), kind, heads)


def assert_step_equals_unsharded(kind, heads, mesh, **compute):
    """Compares loss, sums a head, gradients, new parameters and moments; returns the program on the mesh.

    In fp64, where only a mistake is larger than the order of sums.
    """
    program = build_program(config_of(kind, heads, mesh, **compute))
    assert program.layout.mesh.size == 8
    state, metrics = step_of(program, kind, heads)
    want_state, want_metrics = unsharded(kind, heads)
    assert_trees_close(metrics, want_metrics, 1e-12)
    moved = [np.max(np.abs(after - before)) for after, before in
             zip(jax.tree.leaves(want_state.params), jax.tree.leaves(initial_state(kind, heads).params))]
    assert min(moved) > 1e-3, "a parameter had no gradient, so nothing is compared"
    # The gradient is the first moment, the new parameters come of both moments.
    assert_trees_close(state, want_state, 1e-11)
    return program


def fits(mesh, kind, heads):
    """Tells whether a mesh, as {axis: size}, can carry these heads."""
    split = mesh.get("pred_heads", 1)
    return heads % split == 0 and (split == 1 or kind in ("parallel", "linear", LOOPED))


def spec_of(mesh):
    """Returns parallel.mesh of {axis: size}."""
    return ",".join(f"{axis}:{size}" for axis, size in mesh.items())


def pairs_of(cell):
    """Returns every two settings of a cell, by the names of their factors."""
    return set(itertools.combinations(sorted(cell.items()), 2))


def pairwise(cells):
    """Chooses few of the cells so that every two settings which stand together in any of them do so in a chosen one.

    Greedily: the cell with most pairs that are still missing, the first of equals.
    """
    number = {pair: i for i, pair in enumerate(sorted(set().union(*map(pairs_of, cells))))}
    masks = [sum(1 << number[pair] for pair in pairs_of(cell)) for cell in cells]
    missing, chosen = (1 << len(number)) - 1, []
    while missing:
        best = max(range(len(cells)), key=lambda i: (masks[i] & missing).bit_count())
        chosen.append(cells[best])
        missing &= ~masks[best]
    return chosen


PROMPT = 6  # tokens of the longest prompt


def decoding_logits(kind, heads, mesh=None):
    """Returns the logits of all heads after prompts, and after a block of drafts behind them, on the host."""
    state = initial_state(kind, heads)
    config = config_of(kind, heads, "data:1").model
    layout = mesh and Layout.create(make_mesh(mesh), ParallelConfig().rules)
    model = DecodingModel.from_params(ModelSpec.create(config), state.params, window=L, layout=layout)
    tree = Tree.chain(heads)

    def function(weights, tokens_BxP, lengths_B, block_BxQ):
        with use_layout(model.layout):
            first_BxV, _, drafted, cache = forward.read_prompt(
                config, weights, tokens_BxP, lengths_B, heads=heads, capacity=L, dtype="float64", kernel="blocked",
                choose=highest)
            verified = forward.verify(config, weights, cache, block_BxQ, tree)
            logits_BxQxV = unembed(config, weights, verified.h_BxQxD, 1)
            again = forward.draft(config, weights, verified, cache, lengths_B % heads, heads=heads, dtype="float64",
                                  token_B=tokens_BxP[:, 0], before=drafted.drafts)
            return first_BxV, logits_BxQxV, [forward.draft_logits(config, weights, part.h_BxJxD)
                                             for part in (drafted, again)]

    draw = np.random.default_rng(2)
    tokens, block = (draw.integers(0, VOCAB, (B, length)).astype(np.int32) for length in (PROMPT, tree.size))
    logits = jax.jit(function)(model.weights, tokens, draw.integers(1, PROMPT + 1, B).astype(np.int32), block)
    return jax.tree.map(lambda x: np.asarray(x)[..., :VOCAB], logits)


@functools.cache
def unsharded_logits(kind, heads):
    """Returns them on one device."""
    return decoding_logits(kind, heads)


def assert_decoding_equals_unsharded(kind, heads, mesh):
    """Compares all that sampling and acceptance decide by."""
    assert_trees_close(decoding_logits(kind, heads, mesh), unsharded_logits(kind, heads), 1e-11)
