"""What a head kind has to say of itself."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtp_jax.config import ModelConfig, check_choice
from mtp_jax.model.cached import BlockContext, KeysValues
from mtp_jax.model.layers import RowContext
from mtp_jax.model.stacks import Execution, map_heads
from mtp_jax.registry import claim

Norm = Callable[[jax.Array], jax.Array]
Ahead = Callable[[jax.typing.ArrayLike], jax.Array]

HEAD_KINDS: dict[str, HeadKind] = {}


class HeadKind(abc.ABC):
    """The wiring of N heads.

    Attributes:
      layers_per_head: transformer layers that a head has of its own; they are taken out of the trunk, so that
        `num_layers` counts both and the number of parameters does not depend on N.
      abreast: whether heads may be computed side by side.
      caches: whether a head has keys and values to remember when decoding.
      first_own: number of the first head with parameters of its own, 1 or 2. Where it is 2, head 1 is the trunk with
        the final norm and the unembedding, and the stacks of `parameters` have N - 1 entries: none of them is head 1's.
      in_turn: whether the heads draft one after the other, each from the draft of the head before it, by `in_line`
        instead of `further`. Such drafts are a chain.
      backwards: whether the layers of the heads run from the last head to the first.
    """

    layers_per_head: int = 1
    abreast: bool = True
    caches: bool = True
    first_own: int = 1
    in_turn: bool = False
    backwards: bool = False

    @abc.abstractmethod
    def parameters(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """Makes the parameters of all heads from `first_own` on, each with a leading axis `pred_heads`; `nnx.Module()`
        where there are none."""

    @abc.abstractmethod
    def __call__(self, heads: nnx.Module, norm: Norm, z_BxLxD: jax.Array, context: RowContext, *,
                 active_N: jax.Array, gates_N: jax.Array | None, execution: Execution, ahead: Ahead) -> jax.Array:
        """Runs the heads.

        Args:
          heads: what `parameters` made.
          norm: the model's final norm.
          z_BxLxD: output of the trunk.
          context: of the rows.
          active_N: bool, False where the head need not be computed; its output is then not read.
          gates_N: factor, 0 or 1, on the gradient that head k sends through its input; None: all 1.
          execution: how to run stacks.
          ahead: (m) -> the embedding of the token m places after each position, [B, L, D]; past the row's end that of
            id 0. Document ends are not looked at.

        Returns:
          h_NxBxLxD, ready for the unembedding. Row k - 1 predicts the token k places ahead. It depends on no token
          after its own position; a kind that reads `ahead(m)` in it, on none more than m <= k - 1 places after.
        """

    def first(self, heads: Sequence[Any], norm: Norm, z_BxQxD: jax.Array, context: BlockContext,
              memories: Sequence[KeysValues | None], dtype: jax.typing.DTypeLike) -> tuple[jax.Array, Any]:
        """Decoding, first half: what head 1 says after every position of a block.

        Args:
          heads: a module for each head that is loaded and has parameters, from head `first_own` on.
          norm: the model's final norm.
          z_BxQxD: output of the trunk on the block.
          context: of the block.
          memories: for each of `heads` what it has cached; None: nothing yet.
          dtype: of the cache.

        Returns:
          h_BxQxD of head 1, ready for the unembedding, and what `further` needs of this half.

        Raises:
          NotImplementedError: the kind can be trained but not decoded with.
        """
        raise NotImplementedError(f"{type(self).__name__} lacks `first` and `further`, which decoding needs.")

    def further(self, heads: Sequence[Any], norm: Norm, halfway: Any, index_B: jax.Array | None, context: BlockContext,
                memories: Sequence[KeysValues | None], dtype: jax.typing.DTypeLike, used: int
                ) -> tuple[list[jax.Array], list[KeysValues]]:
        """Decoding, second half: what heads 2..`used` say after one position of each row.

        Every head makes keys and values of every position, whether it drafts there or not: it will read them later.

        Args:
          heads: as for `first`.
          norm: the model's final norm.
          halfway: from `first`.
          index_B: the position in the block; None: the states of all of them are wanted, h_BxQxD.
          context: of the block.
          memories: as for `first`.
          dtype: of the cache.
          used: how many heads draft, head 1 included; at most as many as are loaded.

        Returns:
          h_Bx1xD of heads 2..used, and the block's keys and values for each of `heads` (none if the kind caches
          nothing).
        """
        raise NotImplementedError(f"{type(self).__name__} lacks `first` and `further`, which decoding needs.")

    def in_line(self, heads: Sequence[Any], h_BxQxD: jax.Array, line_BxE: jax.Array, index_B: jax.Array | None,
                context: BlockContext, memories: Sequence[KeysValues | None], dtype: jax.typing.DTypeLike,
                embed: Norm, say: Callable[[jax.Array, int], jax.Array]
                ) -> tuple[jax.Array, list[jax.Array], list[KeysValues]]:
        """Decoding, second half, of a kind that drafts `in_turn`: heads 2, 3, .. each read the draft before theirs.

        Args:
          heads: a module for each of the J heads from head 2 on.
          h_BxQxD: states of head 1 over settled tokens, from `first`.
          line_BxE: ids, E = Q + J + 1: those of the same positions, that after `index_B` settled as well, and room
            for the drafts.
          index_B: the last settled position that has a state; the drafts are for two places after it and on. None: the
            whole line is settled, nothing is drafted and the states of all Q positions are wanted.
          context: of the Q positions.
          memories: for each of the heads what it has cached; None: nothing yet.
          dtype: of the cache.
          embed: ids -> token vectors.
          say: (state of one position [B, 1, D], number of the head) -> its likeliest id [B].

        Returns:
          The line with the drafts in it, h_Bx1xD of each of the heads (h_BxQxD without an index), and the keys and
          values of the Q positions for each.
        """
        raise NotImplementedError(f"{type(self).__name__} lacks `in_line`, which decoding `in_turn` needs.")

    def loaded(self, num_heads: int, used: int) -> int:
        """Returns how many heads, counted from head 1, must be loaded so that the first `used` can be run."""
        del num_heads
        return used

    def own(self, heads: int) -> int:
        """Returns how many of the first so many heads have parameters of their own."""
        return max(0, heads - self.first_own + 1)

    def layers(self, heads: int) -> int:
        """Returns how many transformer layers the first so many heads run after the trunk."""
        return self.layers_per_head * heads

    def active(self, weights_N: jax.Array) -> jax.Array:
        """Returns which heads have to be computed, [N] bool, for these loss weights."""
        return weights_N > 0

    def detached_gates(self, num_heads: int) -> jax.Array:
        """Returns the factors on the gradient through each head's input, [N], with which heads 2..N send none into the
        trunk and head 1."""
        return jnp.where(jnp.arange(num_heads) > 0, 0.0, 1.0)

    def matmul_flops(self, config: ModelConfig, layer_flops: float) -> float:
        """Returns the forward matmul FLOPs of one head with parameters for one token, without the unembedding.

        Args:
          config: the model's.
          layer_flops: those of one transformer layer.
        """
        del config
        return self.layers_per_head * layer_flops

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError where the kind does not fit the config."""
        taken = self.layers_per_head * config.num_heads
        if config.num_layers < taken or (config.num_layers == taken and config.num_heads > 1):
            raise ValueError(
                f"model.num_heads={config.num_heads} is too large for model.num_layers={config.num_layers}: a "
                f"{config.head_kind!r} head takes {self.layers_per_head} of them and the trunk needs one; raise "
                "model.num_layers or lower model.num_heads.")


def register_head_kind(name: str) -> Callable[[type[HeadKind]], type[HeadKind]]:
    """Registers a head kind under `name`; a decorator.

    Raises:
      ValueError: the name is taken by another class.
    """
    def register(cls: type[HeadKind]) -> type[HeadKind]:
        claim("head kind", name, HEAD_KINDS, cls)
        HEAD_KINDS[name] = cls()
        return cls

    return register


def get_head_kind(name: str) -> HeadKind:
    """Returns the head kind of that name.

    Raises:
      ValueError: unknown; the nearest name is suggested.
    """
    check_choice("model.head_kind", name, HEAD_KINDS)
    return HEAD_KINDS[name]


def scale_gradient(x: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Returns `x`; its gradient is multiplied by the scalar `gate`, 0 or 1, or left alone where it is None.

    Arithmetic instead of a custom_vjp, which vmap would take to be independent of the gate.
    """
    if gate is None:
        return x
    gate = gate.astype(x.dtype)
    return x * gate + jax.lax.stop_gradient(x * (1 - gate))


def run_abreast(run: Callable[[Any, Any, jax.Array], jax.Array], z_BxLxD: jax.Array, stacked: Any, active_N: jax.Array,
                gates_N: jax.Array | None, execution: Execution) -> jax.Array:
    """Runs heads that do not see each other, and skips those that rest where `execution` says so.

    Args:
      run: (one head's parameters, its gate or None, z_BxLxD) -> h_BxLxD.
      z_BxLxD: what all heads read.
      stacked: parameters with a leading axis N.
      active_N: as in `HeadKind.__call__`.
      gates_N: as in `HeadKind.__call__`.
      execution: how to run stacks.

    Returns:
      h_NxBxLxD, zeros for a head that was skipped.
    """
    def head(inputs):
        leaves, active, gate = inputs
        if not execution.skip_idle_heads:
            return run(leaves, gate, z_BxLxD)
        return jax.lax.cond(active, run, lambda leaves, gate, z_BxLxD: jnp.zeros_like(z_BxLxD), leaves, gate, z_BxLxD)

    return map_heads(head, (stacked, active_N, gates_N), execution)
