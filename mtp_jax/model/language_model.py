"""The multi-token language model: embedding, trunk, N heads, final norm, unembedding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig
from mtp_jax.model.exit_gate import ExitGate
from mtp_jax.model.heads import get_head_kind
from mtp_jax.model.layers import Block, RMSNorm, RowContext, parameter, row_context
from mtp_jax.model.stacks import PLAIN, Execution, checkpoint, scan, split_module
from mtp_jax.parallel import constrain

Params = dict[str, Any]


def num_trunk_layers(config: ModelConfig) -> int:
    """Returns the number of layers that all heads share."""
    kind = get_head_kind(config.head_kind)
    return config.num_layers - kind.layers_per_head * config.num_heads + config.extra_trunk_layers


class Embedding(nnx.Module):
    """Token vectors, [V, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.embedding = parameter(rngs, config, (), (config.padded_vocab_size, config.d_model), ("vocab", "embed"),
                                   config.init_std)
        self.dtype = config.dtype

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        # Gathered over fsdp before the lookup: afterwards every activation would have to change its layout.
        matrix_VxD = constrain(self.embedding[...].astype(self.dtype), "vocab", None)
        return matrix_VxD[tokens_BxL]


class Unembedding(nnx.Module):
    """Logit vectors, [V, D] or, replicated, [N, V, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        stack = (("pred_heads", config.num_heads),) if config.unembedding == "replicated" else ()
        self.kernel = parameter(rngs, config, stack, (config.padded_vocab_size, config.d_model), ("vocab", "embed"),
                                config.init_std)


class MultiTokenLM(nnx.Module):
    """A shared trunk and N heads; head k predicts, at position i, the token at i + k.

    With one head of a kind that has a layer of its own, this is a plain transformer of `num_layers` layers: the head is
    the last of them.

    Args:
      config: the model's shape; `vocab_size` must be resolved.
      rngs: source of the random initial parameters.

    Raises:
      ValueError: the head kind is unknown or does not fit the config, or a dtype needs 64-bit JAX.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        kind = get_head_kind(config.head_kind)
        kind.check(config)
        for name, dtype in (("dtype", config.dtype), ("param_dtype", config.param_dtype)):
            if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
                raise ValueError(f"model.{name}={dtype!r} would be cut to {jax.dtypes.canonicalize_dtype(dtype)}: set "
                                 f"JAX_ENABLE_X64=1 in the environment, or choose another model.{name}.")
        self.config = config
        self.embedding = Embedding(config, rngs)
        if num_trunk_layers(config):
            self.trunk = Block(config, rngs, (("layers", num_trunk_layers(config)),))
        self.heads = kind.parameters(config, rngs)
        self.final_norm = RMSNorm(config, rngs)
        if not config.tie_embedding:
            self.unembedding = Unembedding(config, rngs)
        if config.loops > 1:
            if not num_trunk_layers(config):
                raise ValueError(f"model.loops={config.loops} runs the trunk's layers, and this model has none: raise "
                                 "model.num_layers.")
            self.gate = ExitGate(config)

    def unembedding_matrix(self) -> jax.Array:
        """Returns the logit vectors in the parameters' dtype: [V, D] or, replicated, [N, V, D]."""
        return (self.embedding.embedding if self.config.tie_embedding else self.unembedding.kernel)[...]

    def run_trunk(self, tokens_BxL: jax.Array, context: RowContext, execution: Execution,
                  each: Callable[[jax.Array, jax.Array], Any] | None = None) -> tuple[jax.Array, Any]:
        """Runs embedding and trunk.

        A looped trunk (Zhu et al. 2025, section 3) runs the same layers again on what they made, normed:
        x_0 = embedding, z_t = layers(x_(t-1)), x_t = norm(z_t). The heads read z_t, as that of a plain trunk, which is
        one loop; the gate reads x_t.

        Args:
          tokens_BxL: ids.
          context: of the rows.
          execution: how to run stacks.
          each: what is wanted of every loop of a looped trunk: called with z_t and the gate's logits.

        Returns:
          z_BxLxD after the last loop, before any head or norm; and what `each` returned, stacked over the loops;
          None of a plain trunk.
        """
        x_BxLxD = constrain(self.embedding(tokens_BxL), "batch", "residual", None)

        def layers(x_BxLxD: jax.Array) -> jax.Array:
            if not num_trunk_layers(self.config):
                return x_BxLxD
            build, stacked = split_module(self.trunk)
            layer = checkpoint(lambda leaves, h_BxLxD: build(leaves)(h_BxLxD, context), execution.remat)
            return scan(lambda h_BxLxD, leaves: (layer(leaves, h_BxLxD), None), x_BxLxD, stacked, execution.unroll)[0]

        if self.config.loops == 1:
            return layers(x_BxLxD), None

        def loop(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
            del number
            z_BxLxD = layers(carry[0])
            x_BxLxD = self.final_norm(z_BxLxD)
            return (x_BxLxD, z_BxLxD), None if each is None else each(z_BxLxD, self.gate(x_BxLxD))

        (_, z_BxLxD), made = scan(loop, (x_BxLxD, x_BxLxD), jnp.arange(self.config.loops), execution.unroll)
        return z_BxLxD, made

    def __call__(self, tokens_BxL: jax.Array, segments_BxL: jax.Array, positions_BxL: jax.Array, *,
                 weights_N: jax.Array | None = None, detach_trunk: bool = False,
                 execution: Execution = PLAIN) -> jax.Array:
        """Runs trunk and heads; a looped trunk to its last loop.

        Args:
          tokens_BxL: token ids, int32.
          segments_BxL: document number in the row, from 1; 0 is padding.
          positions_BxL: position in the document, from 0.
          weights_N: loss weights; heads that none needs are skipped where `execution.skip_idle_heads`. None: all 1.
          detach_trunk: heads 2..N send no gradient into the trunk and head 1.
          execution: how to run stacks.

        Returns:
          h_NxBxLxD after the final norm, to be multiplied by `unembedding_matrix`.
        """
        context = row_context(self.config, segments_BxL, positions_BxL, execution.kernel)
        z_BxLxD, _ = self.run_trunk(tokens_BxL, context, execution)
        return self._heads(tokens_BxL, context, weights_N, detach_trunk, execution)(z_BxLxD)

    def every_loop(self, tokens_BxL: jax.Array, segments_BxL: jax.Array, positions_BxL: jax.Array, *,
                   weights_N: jax.Array | None = None, detach_trunk: bool = False,
                   execution: Execution = PLAIN) -> tuple[jax.Array, jax.Array]:
        """Runs the heads after every loop of a looped trunk; arguments as `__call__`.

        Returns:
          h_NxBxTxLxD after the final norm, and the gate's logits gate_TxBxL.
        """
        context = row_context(self.config, segments_BxL, positions_BxL, execution.kernel)
        heads = self._heads(tokens_BxL, context, weights_N, detach_trunk, execution)
        _, (h_TxNxBxLxD, gate_TxBxL) = self.run_trunk(tokens_BxL, context, execution, lambda z, gate: (heads(z), gate))
        h_NxBxTxLxD = jnp.moveaxis(h_TxNxBxLxD, 0, 2)
        return constrain(h_NxBxTxLxD, "pred_heads", "batch", None, "length", None), gate_TxBxL

    def _heads(self, tokens_BxL: jax.Array, context: RowContext, weights_N: jax.Array | None, detach_trunk: bool,
               execution: Execution) -> Callable[[jax.Array], jax.Array]:
        """Returns the function from the trunk's output to h_NxBxLxD."""
        kind = get_head_kind(self.config.head_kind)
        N = self.config.num_heads
        active_N = kind.active(jnp.ones(N) if weights_N is None else weights_N)

        def ahead(places: jax.typing.ArrayLike) -> jax.Array:
            # Shift first, shard after: where a mesh splits positions, the ids, a few bytes a token, are gathered.
            whole_BxE = jnp.pad(constrain(tokens_BxL, "batch", None), ((0, 0), (0, N)))
            shifted_BxL = jax.lax.dynamic_slice_in_dim(whole_BxE, places, tokens_BxL.shape[1], axis=1)
            return constrain(self.embedding(constrain(shifted_BxL, "batch", "length")), "batch", "residual", None)

        def heads(z_BxLxD: jax.Array) -> jax.Array:
            h_NxBxLxD = kind(self.heads, self.final_norm, z_BxLxD, context, active_N=active_N,
                             gates_N=kind.detached_gates(N) if detach_trunk else None, execution=execution, ahead=ahead)
            return constrain(h_NxBxLxD, "pred_heads", "batch", "length", None)

        return heads

    def logits(self, h_NxBxLxD: jax.Array) -> jax.Array:
        """Returns the logits of all heads, [N, B, L, V] in fp32; ids past `vocab_size` have -inf.

        For looking at a few positions: training never forms this array.
        """
        matrix = self.unembedding_matrix().astype(h_NxBxLxD.dtype)
        equation = "nbld,nvd->nblv" if matrix.ndim == 3 else "nbld,vd->nblv"
        wide = jnp.promote_types(jnp.float32, h_NxBxLxD.dtype)
        logits = jnp.einsum(equation, h_NxBxLxD, matrix, preferred_element_type=wide)
        real_V = jnp.arange(self.config.padded_vocab_size) < (self.config.vocab_size or 0)
        return jnp.where(real_V.reshape(1, 1, 1, -1), logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model without values: what init, sharding, checkpoints and converters need to know.

    Attributes:
      config: the model's shape.
      graph: NNX's static half of the model.
      shapes: nested dict of jax.ShapeDtypeStruct, one a parameter.
      axes: the same nesting, with the logical axes of each parameter.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    shapes: Params
    axes: Params

    @classmethod
    def create(cls, config: ModelConfig) -> ModelSpec:
        """Works out the parameters of a config without making any.

        Raises:
          ValueError: as `MultiTokenLM`.
        """
        graph, state = nnx.split(nnx.eval_shape(lambda: MultiTokenLM(config, nnx.Rngs(0))))
        axes: Params = {}
        for path, variable in nnx.to_flat_state(state):
            *parents, leaf = map(str, path)
            node = axes
            for name in parents:
                node = node.setdefault(name, {})
            if "logical_axes" not in variable.get_metadata():
                raise ValueError(f"The parameter {'/'.join(map(str, path))} has no logical axes, so no rule could lay "
                                 "it out: make it with mtp_jax.model.layers.parameter.")
            node[leaf] = variable.get_metadata()["logical_axes"]
        return cls(config, graph, nnx.to_pure_dict(state), axes)

    def init(self, key: jax.Array) -> Params:
        """Returns random initial parameters; pure, to be jitted with the shardings of the result."""
        return nnx.to_pure_dict(nnx.state(MultiTokenLM(self.config, nnx.Rngs(key))))

    def bind(self, params: Params) -> MultiTokenLM:
        """Returns the model with these parameters."""
        return nnx.merge(self.graph, params)

    @property
    def num_params(self) -> int:
        """Number of parameters, padding of the vocabulary included."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes))
