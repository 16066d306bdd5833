"""A looped trunk with early exit as its definition reads: in numpy, one position after the other, no blocks or batches.

Position i runs its loops before anything is known of position i + 1: so what it comes to depends on the text before it.
"""

import functools

import jax
import numpy as np

from mtp_jax.model import ModelSpec
from mtp_jax.model.layers import row_context
from mtp_jax.model.stacks import Execution
from tests.decoding.naive import ROWS, Naive
from tests.small_model import QUICK


def norm(x_D, scale_D, eps):
    return x_D / np.sqrt(np.mean(x_D**2) + eps) * scale_D


def rotate(x_C, position, theta):
    half = len(x_C) // 2
    turned = (x_C[:half] + 1j * x_C[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


class Text:
    """What a looped trunk has made of a text so far.

    Attributes:
      tokens: ids that it has read.
      z: its output at each, [D].
      loops: the loop in which each left.
      seen: of each (loop, layer) the keys and values of all positions.
    """

    def __init__(self, config, params, exit_threshold):
        self.config, self.params, self.exit_threshold = config, params, exit_threshold
        self.depth = len(params["trunk"]["mlp"]["up"])
        self.seen = {(t, l): [] for t in range(config.loops) for l in range(self.depth)}
        self.tokens, self.z, self.loops = [], [], []

    def read(self, token):
        """Runs the loops of the next position."""
        config, params, position = self.config, self.params, len(self.tokens)
        x_D, stay = params["embedding"]["embedding"][token], 1.0
        for t in range(config.loops):
            for l in range(self.depth):
                x_D = self.layer(t, l, x_D, position)
            z_D = x_D
            x_D = norm(z_D, params["final_norm"]["scale"], config.norm_eps)
            if self.exit_threshold is not None:
                stay *= 1 - 1 / (1 + np.exp(-(x_D @ params["gate"]["kernel"] + params["gate"]["bias"])))
                if 1 - stay >= self.exit_threshold:
                    break
        for later in range(t + 1, config.loops):
            for l in range(self.depth):
                self.seen[later, l].append(self.seen[t, l][-1])
        self.tokens.append(token)
        self.z.append(z_D)
        self.loops.append(t + 1)

    def layer(self, t, l, x_D, position):
        """Runs layer `l` in loop `t` on one position, and keeps its keys and values."""
        config, w = self.config, jax.tree.map(lambda leaf: leaf[l], self.params["trunk"])
        normed, attention = norm(x_D, w["attention_norm"]["scale"], config.norm_eps), w["attention"]
        query, key, value = (np.einsum("d,dac->ac", normed, attention[name]) for name in ("query", "key", "value"))
        if config.qk_norm:
            query, key = (np.stack([norm(row, attention[f"{name}_norm"]["scale"], config.norm_eps) for row in rows])
                          for name, rows in (("query", query), ("key", key)))
        query, key = (np.stack([rotate(row, position, config.rope_theta) for row in rows]) for rows in (query, key))
        self.seen[t, l].append((key, value))
        keys, values = (np.stack(part) for part in zip(*self.seen[t, l]))
        out, group = 0, len(query) // len(key)
        for a, q_C in enumerate(query):
            scores = keys[:, a // group] @ q_C / np.sqrt(len(q_C))
            weights = np.exp(scores - scores.max())
            out = out + (weights / weights.sum()) @ values[:, a // group] @ attention["out"][a]
        x_D = x_D + self.after(w, "attention_out_norm", out)
        normed = norm(x_D, w["mlp_norm"]["scale"], config.norm_eps)
        gate = normed @ w["mlp"]["gate"]
        out = (gate / (1 + np.exp(-gate)) * (normed @ w["mlp"]["up"])) @ w["mlp"]["down"]
        return x_D + self.after(w, "mlp_out_norm", out)

    def after(self, w, name, out_D):
        return norm(out_D, w[name]["scale"], self.config.norm_eps) if self.config.sandwich_norm else out_D


@functools.cache
def heads_forward(config):
    """Returns the jitted (params, z_BxLxD, tokens_BxL, lengths_B) -> logits_NxBxLxV: the heads, as in training."""
    spec = ModelSpec.create(config)

    def function(params, z_BxLxD, tokens_BxL, lengths_B):
        model = spec.bind(params)
        positions_BxL = jax.numpy.broadcast_to(jax.numpy.arange(tokens_BxL.shape[1], dtype="int32"), tokens_BxL.shape)
        context = row_context(config, (positions_BxL < lengths_B[:, None]).astype("int32"), positions_BxL, "xla")
        heads = model._heads(tokens_BxL, context, None, False, Execution(unroll=False))
        return model.logits(heads(z_BxLxD))

    return jax.jit(function, compiler_options=QUICK)


class NaiveLooped(Naive):
    """A looped model decoded without a cache.

    Args:
      spec: the model.
      params: its parameters.
      window: tokens of a row, prompt and new ones.
      exit_threshold: see `DecodingModel.leaving`.
    """

    def __init__(self, spec, params, window, exit_threshold=None):
        super().__init__(spec, params, window)
        self.exit_threshold, self.arrays, self.texts = exit_threshold, jax.tree.map(np.asarray, params), {}

    def text(self, number, row):
        """Returns the `Text` of a row; what it begins with is not read again where the row of this number had it."""
        found = self.texts.get(number)
        if found is None or found.tokens != row[:len(found.tokens)]:
            found = self.texts[number] = Text(self.spec.config, self.arrays, self.exit_threshold)
        for token in row[len(found.tokens):]:
            found.read(token)
        return found

    def logits(self, rows):
        assert len(rows) <= ROWS
        tokens, lengths = np.zeros((ROWS, self.window), np.int32), np.zeros(ROWS, np.int32)
        z = np.zeros((ROWS, self.window, self.spec.config.d_model))
        for i, row in enumerate(rows):
            row = list(map(int, row))
            tokens[i, :len(row)], lengths[i], z[i, :len(row)] = row, len(row), self.text(i, row).z
        found = heads_forward(self.spec.config)(self.params, z, tokens, lengths)
        return np.moveaxis(np.asarray(found), 0, 1)[:len(rows)]
