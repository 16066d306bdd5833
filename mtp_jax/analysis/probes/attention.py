"""Attention weights of any layer and attention head, of the trunk and of the prediction heads' own layers.

    model = load_model("runs/stories")
    seen = record(model, ids_BxL, Site(layer=0, head=3))
    average(seen.weights_BxLxL[0])  # how much each token receives from those behind it

The model's own forward runs, with a kernel behind the seam `mtp_jax.model.attention` that takes down what the asked
layer is given. It ends there: layers behind it are not run, and no other layer's weights are formed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ModelConfig
from mtp_jax.decoding.forward import read_rows, states_everywhere
from mtp_jax.decoding.generate import DecodingModel, bucket
from mtp_jax.decoding.weights import Weights
from mtp_jax.model import get_head_kind, num_trunk_layers
from mtp_jax.model.attention import KERNELS, resolve_kernel
from mtp_jax.model.heads import HEAD_KINDS
from mtp_jax.model.masks import visible
from mtp_jax.parallel import use_layout

_RECORDER = "recorder"  # the kernel's name, while a forward runs


@dataclasses.dataclass(frozen=True)
class Site:
    """Where attention is looked at.

    Attributes:
      layer: of the trunk, from 0; with `prediction_head`, of that head's own layers.
      head: attention head, from 0.
      prediction_head: number of a prediction head, from 1; None: the trunk.
      loop: of a looped trunk, from 1; a prediction head then reads what this loop made. None: the last.
    """

    layer: int = 0
    head: int = 0
    prediction_head: int | None = None
    loop: int | None = None

    def __str__(self) -> str:
        """Returns the place in words, without the loop where it is the last."""
        place = "the trunk" if self.prediction_head is None else f"prediction head {self.prediction_head}"
        loop = "" if self.loop is None else f", loop {self.loop}"
        return f"layer {self.layer} of {place}{loop}, attention head {self.head}"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What one attention head of one layer did, in fp32 (fp64 of an fp64 model).

    Attributes:
      weights_BxLxL: softmax(q k / sqrt(C)), [row, query, key]; 0 for keys behind the query.
      queries_BxLxC: rotated queries.
      keys_BxLxC: rotated keys, of the KV head that the attention head uses.
      values_BxLxC: its values.
    """

    weights_BxLxL: np.ndarray
    queries_BxLxC: np.ndarray
    keys_BxLxC: np.ndarray
    values_BxLxC: np.ndarray


def record(model: DecodingModel, rows_BxL: Sequence[Sequence[int]] | np.ndarray, site: Site) -> Recorded:
    """Returns what an attention head does on rows of one length.

    Args:
      model: with the prediction head loaded that is asked for.
      rows_BxL: ids, BOS included where the text has one.
      site: the layer and attention head.

    Raises:
      ValueError: the site is not one of the model's, the rows are not of one length, are longer than the model's window
        or hold an id that there is not, or the weights are not numbers.
    """
    call = call_number(model, site)
    rows_BxL = _checked(model, rows_BxL)
    B, L = rows_BxL.shape
    # As decoding pads, so that conditions of like length share what is compiled: padding stands behind, seen by none.
    tokens = np.zeros((-(-B // model.rows_multiple) * model.rows_multiple, bucket(model, L)), np.int32)
    tokens[:B, :L] = rows_BxL
    lengths = np.full(len(tokens), L, np.int32)
    weights = dataclasses.replace(model.weights, exit_threshold=None)  # all loops, for every position
    arrays = [np.asarray(x)[:B] for x in _read(model, site, call, weights, tokens, lengths)]
    if not np.isfinite(arrays[0]).all():
        raise ValueError(f"The attention weights of {site} are NaN: training has diverged. Take the checkpoint of an "
                         "earlier step.")
    return Recorded(arrays[0][:, :L, :L], *(x[:, :L] for x in arrays[1:]))


def average(weights_LxL: np.ndarray) -> np.ndarray:
    """Returns how much attention each token receives from those behind it on average, [L - 1] in fp64.

    a[j] = mean over i > j of W[i, j]: the mean of a column strictly below the diagonal. The last token has none.

    Args:
      weights_LxL: [query, key].
    """
    L = len(weights_LxL)
    return np.tril(weights_LxL, -1).sum(axis=0, dtype=np.float64)[:-1] / np.arange(L - 1, 0, -1)


def call_number(model: DecodingModel, site: Site) -> int:
    """Returns how many layers with attention the forward runs before that of the site.

    Raises:
      ValueError: the model has no such place; says what there is.
    """
    config, kind = model.config, get_head_kind(model.config.head_kind)
    _check_range("--head", site.head, config.num_attention_heads, "attention heads")
    loop = site.loop
    if loop is not None and not 1 <= loop <= config.loops:
        raise ValueError(f"--loop={loop} must lie in 1..{config.loops}: the trunk of this model is run "
                         f"{'once' if config.loops == 1 else f'{config.loops} times'}.")
    layers = num_trunk_layers(config)
    trunk_calls = layers * (loop or config.loops)
    if site.prediction_head is None:
        _check_range("--layer", site.layer, layers, "trunk layers", _own_layers(config))
        return trunk_calls - layers + site.layer
    number = site.prediction_head
    if not kind.caches:
        able = ", ".join(sorted(name for name, other in HEAD_KINDS.items() if other.caches))
        raise ValueError(f"--prediction_head={number}: heads of kind {config.head_kind!r} have no attention of their "
                         f"own (kinds that have: {able}). Leave it out to look at the trunk.")
    if not 1 <= number <= model.heads:
        raise ValueError(f"--prediction_head={number} must lie in 1..{model.heads}, for the model has {model.heads} "
                         f"prediction head{'s' if model.heads > 1 else ''}.")
    if number < kind.first_own:
        others = f"{kind.first_own}..{model.heads}" if model.heads >= kind.first_own else "none here"
        raise ValueError(f"--prediction_head={number}: head 1 of kind {config.head_kind!r} is the trunk read out, with "
                         f"no attention of its own (heads that have: {others}). Leave it out to look at the trunk.")
    each = kind.layers(config.num_heads) // kind.own(config.num_heads)
    _check_range("--layer", site.layer, each, f"layers in prediction head {number}")
    before = config.num_heads - number if kind.backwards else number - kind.first_own
    return trunk_calls + before * each + site.layer


def _own_layers(config: ModelConfig) -> str:
    """Returns where layers are that num_layers counts and the trunk has not."""
    kind = get_head_kind(config.head_kind)
    return " (those of the prediction heads are reached by --prediction_head)" if kind.layers_per_head else ""


def _check_range(flag: str, value: int, there: int, what: str, more: str = "") -> None:
    """Raises ValueError unless 0 <= value < there."""
    if not 0 <= value < there:
        reach = f"must lie in 0..{there - 1}" if there else "names nothing"
        raise ValueError(f"{flag}={value} {reach}: there are {there} {what}{more}.")


def _checked(model: DecodingModel, rows: Any) -> np.ndarray:
    """Returns the rows as int32."""
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"Rows must have one length of at least 1, got {lengths}: look at each length by itself.")
    if lengths[0] > model.window:
        raise ValueError(f"Rows of {lengths[0]} tokens do not fit the model's window of {model.window}: shorten the "
                         "prompt or what is inserted, or raise --window beyond what the model was trained on.")
    rows, vocabulary = np.asarray(rows), model.config.vocab_size or 0
    if not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0 or rows.max() >= vocabulary:
        raise ValueError(f"Rows must hold ids from 0 to {vocabulary - 1}, the model's.")
    return rows.astype(np.int32)


class _Found(Exception):
    """Ends a forward at the layer that was asked for."""

    def __init__(self, *arrays: jax.Array):
        super().__init__()
        self.arrays = arrays


def _read(model: DecodingModel, site: Site, call: int, weights: Weights, tokens_BxL: np.ndarray, lengths_B: np.ndarray
          ) -> tuple[jax.Array, ...]:
    """Returns weights, queries, keys and values of the site.

    Run as it stands, not compiled as a whole: layers share their operations, so another site costs no compiling.
    """
    config = model.config if site.loop is None else dataclasses.replace(model.config, loops=site.loop)
    kernel = resolve_kernel("auto", model.platform, seq_len=tokens_BxL.shape[1], head_dim=config.attention_head_dim,
                            dtype=config.dtype)
    attend = model.programs.setdefault(("attention", kernel), jax.jit(
        lambda q, k, v, segments: KERNELS[kernel](q, k, v, segments, model.layout)))
    calls = 0

    def recorder(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL, layout):
        nonlocal calls
        del layout  # the model's
        calls += 1
        if calls <= call:
            return attend(q_BxLxAxC, k_BxLxKxC, v_BxLxKxC, segments_BxL)
        shared = q_BxLxAxC.shape[2] // k_BxLxKxC.shape[2]
        q_BxLxC = q_BxLxAxC[:, :, site.head]
        k_BxLxC, v_BxLxC = (x[:, :, site.head // shared] for x in (k_BxLxKxC, v_BxLxKxC))
        wide = jnp.promote_types(jnp.float32, q_BxLxC.dtype)
        scores = jnp.einsum("bic,bjc->bij", q_BxLxC, k_BxLxC, preferred_element_type=wide)
        scores = jnp.where(visible(segments_BxL, segments_BxL, 0), scores / math.sqrt(q_BxLxC.shape[-1]), -jnp.inf)
        raise _Found(jax.nn.softmax(scores, axis=-1), *(x.astype(wide) for x in (q_BxLxC, k_BxLxC, v_BxLxC)))

    KERNELS[_RECORDER] = recorder
    try:
        with use_layout(model.layout):
            verified = read_rows(config, weights, jnp.asarray(tokens_BxL), jnp.asarray(lengths_B), dtype=config.dtype,
                                 kernel=_RECORDER)
            states_everywhere(config, weights, verified, heads=model.heads, dtype=config.dtype)
    except _Found as found:
        return found.arrays
    finally:
        del KERNELS[_RECORDER]
    raise RuntimeError(f"The forward ran {calls} layers with attention and never came to {site}: a head kind whose "
                       "layers run in another order than mtp_jax.model.heads says.")
