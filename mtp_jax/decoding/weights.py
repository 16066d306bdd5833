"""A model's parameters in the form that decoding reads fastest: layer by layer, in the dtype of the products."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model import ModelSpec, get_head_kind, num_trunk_layers
from mtp_jax.model.language_model import Params
from mtp_jax.model.redistribution import Redistribution
from mtp_jax.model.stacks import split_module
from mtp_jax.parallel import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters, unstacked once before decoding: a slice inside the loop would be a copy in every step.

    Attributes:
      embedding_VxD: token vectors.
      trunk: the parameters of each layer.
      heads: of each head that is loaded and has parameters, from the kind's `first_own` on.
      final_norm: of the final norm.
      unembedding_DxV: one a head, or one for all of them.
      gate: of a looped trunk, when to leave it; None where there is one loop.
      exit_threshold: the share of having left at which a position leaves; None: all loops are run.
      redistribution: of the first layer's activations; None: they stay as they are.
    """

    embedding_VxD: jax.Array
    trunk: tuple[Params, ...]
    heads: tuple[Params, ...]
    final_norm: Params
    unembedding_DxV: tuple[jax.Array, ...]
    gate: Params | None = None
    exit_threshold: jax.Array | None = None
    redistribution: Redistribution | None = None


@dataclasses.dataclass(frozen=True)
class Builders:
    """Functions from parameters to modules."""

    layer: Callable[[Any], Any]
    head: Callable[[Any], Any]
    norm: Callable[[Any], Any]


@functools.lru_cache(maxsize=64)
def builders(config: ModelConfig) -> Builders:
    """Returns what makes modules of a model's `Weights`."""
    spec = ModelSpec.create(config)
    model = spec.bind(spec.shapes)
    head, norm = split_module(model.heads)[0], split_module(model.final_norm)[0]
    layer = split_module(model.trunk)[0] if num_trunk_layers(config) else _no_layer
    return Builders(layer, head, norm)


def _no_layer(leaves: Any) -> nnx.Module:
    raise ValueError("The model has no trunk layer.")


def unstack(spec: ModelSpec, params: Params, *, heads: int, layout: Layout | None = None) -> Weights:
    """Brings parameters into the form of `Weights`.

    Args:
      spec: the model.
      params: its parameters; those of the heads may be cut to the first ones, as many as `heads` needs.
      heads: k, how many heads are to be used.
      layout: mesh and rules; None: one device.

    Returns:
      The weights, in `config.dtype` but for the scales of norms and the exit gate, which keep theirs.
    """
    config, kind = spec.config, get_head_kind(spec.config.head_kind)
    loaded = kind.loaded(config.num_heads, heads)

    def split(stacked: Params, count: int) -> tuple[Params, ...]:
        return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count))

    def build(params: Params) -> Weights:
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: x if path[-1].key == "scale" or path[0].key == "gate" else x.astype(config.dtype), params)
        embedding_VxD = params["embedding"]["embedding"]
        kernel = embedding_VxD if config.tie_embedding else params["unembedding"]["kernel"]
        # Transposed: with the vocabulary last, a product of few rows takes half the time on CPU.
        matrices = tuple(kernel[i] for i in range(loaded)) if kernel.ndim == 3 else (kernel,)
        return Weights(embedding_VxD, split(params["trunk"], num_trunk_layers(config)) if "trunk" in params else (),
                       split(params.get("heads", {}), kind.own(loaded)), params["final_norm"],
                       tuple(matrix.T for matrix in matrices), params.get("gate"))

    if layout is None:
        return jax.jit(build)(params)

    return jax.jit(build, out_shardings=_shardings(spec, loaded, layout))(params)


def abstract(spec: ModelSpec, *, heads: int, layout: Layout) -> Weights:
    """Returns jax.ShapeDtypeStructs of what `unstack` makes, to compile for devices that are not there."""
    loaded = get_head_kind(spec.config.head_kind).loaded(spec.config.num_heads, heads)
    shapes = jax.eval_shape(lambda params: unstack(spec, params, heads=heads), spec.shapes)
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes,
                        _shardings(spec, loaded, layout))


def _shardings(spec: ModelSpec, loaded: int, layout: Layout) -> Weights:
    """Returns how each of the weights lies on the mesh: as in training, without the axis that stacked them.

    Raises:
      ValueError: the mesh would split an axis that it does not divide.
    """
    def lay(part: str, stacked: bool) -> Any:
        def sharding(path: Any, leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> jax.sharding.Sharding:
            name = "/".join([part, *(key.key for key in path)])
            return layout.sharding(names[stacked:], leaf.shape[stacked:], name)

        return jax.tree_util.tree_map_with_path(sharding, spec.shapes[part], spec.axes[part])

    trunk = (lay("trunk", True),) * num_trunk_layers(spec.config) if "trunk" in spec.axes else ()
    matrices: Any = (layout.sharding(("embed", "vocab")),) * (loaded if spec.config.unembedding == "replicated" else 1)
    own = get_head_kind(spec.config.head_kind).own(loaded)
    return Weights(lay("embedding", False)["embedding"], trunk, (lay("heads", True),) * own if own else (),
                   lay("final_norm", False), matrices, lay("gate", False) if "gate" in spec.axes else None)


def first_heads(config: ModelConfig, weights: Weights, heads: int) -> Weights:
    """Returns the weights that using the first `heads` heads takes."""
    kind = get_head_kind(config.head_kind)
    loaded = kind.loaded(config.num_heads, heads)
    unembedding = weights.unembedding_DxV[:loaded] if len(weights.unembedding_DxV) > 1 else weights.unembedding_DxV
    return dataclasses.replace(weights, heads=weights.heads[:kind.own(loaded)], unembedding_DxV=unembedding)


def embed(config: ModelConfig, weights: Weights, tokens_BxQ: jax.Array) -> jax.Array:
    """Returns the token vectors, [B, Q, D]."""
    return weights.embedding_VxD[tokens_BxQ].astype(config.dtype)


def unembed(config: ModelConfig, weights: Weights, h_BxQxD: jax.Array, head: int) -> jax.Array:
    """Returns the logits of a head, [B, Q, V] in fp32 or wider; ids past `vocab_size` have -inf.

    Args:
      config: the model's shape.
      weights: its parameters.
      h_BxQxD: the head's states after the final norm.
      head: its number, from 1.
    """
    matrix_DxV = weights.unembedding_DxV[head - 1 if len(weights.unembedding_DxV) > 1 else 0]
    wide = jnp.promote_types(jnp.float32, h_BxQxD.dtype)
    B, Q, D = h_BxQxD.shape
    logits = jnp.matmul(h_BxQxD.reshape(B * Q, D), matrix_DxV, preferred_element_type=wide)
    real_V = (jnp.arange(config.padded_vocab_size) < (config.vocab_size or 0))[None, None]
    return jnp.where(real_V, logits.reshape(B, Q, matrix_DxV.shape[1]), -jnp.inf)
