"""Decoding as its definition reads, without a cache: whole rows through the ordinary forward, then plain Python.

A draft is accepted where it is what head 1 then says, so the tokens of greedy decoding and every head's logits along
them decide all that self-speculative decoding does: forwards, accepted drafts, and which head each token came from.
"""

import dataclasses
import functools

import jax
import numpy as np

from mtp_jax.model import Execution, ModelSpec
from tests.small_model import QUICK

ROWS = 8  # rows of a forward; fewer are filled up, so that a config compiles once


@dataclasses.dataclass
class Row:
    """What decoding one row gives; the names are those of `Generation`."""

    tokens: list[int]
    finished: str
    drafted_by: list[int]
    forwards: int
    blocks: int
    accepted: list[int]


@functools.cache
def forward(config):
    """Returns the jitted (params, tokens_BxL, lengths_B) -> logits_NxBxLxV of rows of one document and padding."""
    spec = ModelSpec.create(config)

    def function(params, tokens_BxL, lengths_B):
        model = spec.bind(params)
        positions_BxL = jax.numpy.broadcast_to(jax.numpy.arange(tokens_BxL.shape[1], dtype="int32"), tokens_BxL.shape)
        segments_BxL = (positions_BxL < lengths_B[:, None]).astype("int32")
        h_NxBxLxD = model(tokens_BxL, segments_BxL, positions_BxL, execution=Execution(unroll=False))
        return model.logits(h_NxBxLxD)

    return jax.jit(function, compiler_options=QUICK)


class Naive:
    """A model decoded without a cache.

    Args:
      spec: the model.
      params: its parameters.
      window: tokens of a row, prompt and new ones.
    """

    def __init__(self, spec, params, window):
        self.spec, self.params, self.window = spec, params, window

    def logits(self, rows):
        """Returns every head's logits [rows, N, window, V] of id sequences; what follows a row's end is garbage."""
        parts = []
        for start in range(0, len(rows), ROWS):
            tokens = np.zeros((ROWS, self.window), np.int32)
            lengths = np.zeros(ROWS, np.int32)
            for i, row in enumerate(rows[start:start + ROWS]):
                tokens[i, :len(row)], lengths[i] = row, len(row)
            parts.append(np.moveaxis(np.asarray(forward(self.spec.config)(self.params, tokens, lengths)), 0, 1))
        return np.concatenate(parts)[:len(rows)]

    def greedy(self, prompts, max_new_tokens, stop=()):
        """Returns (tokens with the stop token, "stop" | "length" | "window") of each row: head 1, a forward a token."""
        rows = [list(map(int, prompt)) for prompt in prompts]
        reasons = [""] * len(rows)
        while "" in reasons:
            logits = self.logits(rows)
            for i, row in enumerate(rows):
                if not reasons[i]:
                    row.append(int(np.argmax(logits[i, 0, len(row) - 1])))
                    reasons[i] = ("stop" if row[-1] in stop else
                                  "length" if len(row) - len(prompts[i]) == max_new_tokens else
                                  "window" if len(row) == self.window else "")
        return [(row[len(prompt):], reason) for row, prompt, reason in zip(rows, prompts, reasons)]

    def speculative(self, prompts, max_new_tokens, tree, stop=(), greedy=None):
        """Returns a `Row` a prompt: blocks of drafts, of which head 1 keeps the deepest path that it agrees with.

        Args:
          prompts: id sequences.
          max_new_tokens: at most.
          tree: a `Tree`; a chain for drafts one behind the other.
          stop: ids that end a row.
          greedy: what `greedy` returned for the same, where the caller has it.
        """
        greedy = greedy or self.greedy(prompts, max_new_tokens, stop)
        logits = self.logits([[*prompt, *tokens] for prompt, (tokens, _) in zip(prompts, greedy)])
        return [follow(logits[i], len(prompt), tokens, reason, tree, stop)
                for i, (prompt, (tokens, reason)) in enumerate(zip(prompts, greedy))]


def follow(logits_NxLxV, prompt_length, tokens, reason, tree, stop):
    """Returns the `Row` of blockwise decoding along the tokens of greedy decoding."""
    drafted_by, accepted, blocks = [1], [0] * tree.depth, 0
    while len(drafted_by) < len(tokens):
        done = len(drafted_by)  # the last of these is the root: decided, but not seen by the model yet
        order_JxV = np.argsort(-logits_NxLxV[1:tree.heads, prompt_length + done - 2], axis=-1, kind="stable")
        node, path = 0, []
        while done + len(path) < len(tokens):
            says = tokens[done + len(path)]
            node = next((child for child in tree.children[node]
                         if order_JxV[tree.depths[child] - 1, tree.ranks[child]] == says), None)
            if node is None:
                break
            path.append(tree.depths[node] + 1)
        blocks += 1
        for depth in range(len(path)):
            accepted[depth] += 1
        drafted_by += [*path, 1]
    kept = len(tokens) - (reason == "stop")
    return Row(tokens[:kept], reason, drafted_by[:kept], 1 + blocks, blocks, accepted)
