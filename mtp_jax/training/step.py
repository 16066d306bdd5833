"""One optimizer step, and one batch of validation; pure functions to be jitted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtp_jax.config import Config
from mtp_jax.model import Execution, ModelSpec, get_head_kind
from mtp_jax.objective import (
    AgreementSums,
    HeadSums,
    HeadWeights,
    LoopSums,
    agreement_sums,
    every_loop_of,
    expected_loss,
    gate_loss,
    last_loop,
    loop_sums,
    mtp_cross_entropy,
    mtp_evaluate,
    multi_token_targets,
    num_chunks,
    positions_of,
)
from mtp_jax.parallel import Layout, constrain, use_layout
from mtp_jax.training import optimizer as optimizers
from mtp_jax.training.state import Params, TrainState, combine, partition

Batch = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What a step tells, on the devices until the loop reads it a step later.

    Attributes:
      loss: the objective, as it was differentiated.
      sums: per head, over the global batch; of a looped trunk, after its last loop.
      weights_N: loss weights of the step.
      grad_norm: Euclidean norm of the gradient before clipping.
      learning_rate: of the step.
      loops: of a trunk that is run more than once, the sums over its loops.
    """

    loss: jax.Array
    sums: HeadSums
    weights_N: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    loops: LoopSums | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ValidationSums:
    """Sums of a validation batch; batches add up."""

    heads: HeadSums
    agreement: AgreementSums
    loops: LoopSums | None = None


@dataclasses.dataclass(frozen=True)
class StepFunctions:
    """The pure functions of a run.

    Attributes:
      init: key -> TrainState.
      train: (TrainState, batch) -> (TrainState, StepMetrics).
      validate: (params, step, batch) -> ValidationSums.
    """

    init: Callable[[jax.Array], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    validate: Callable[[Params, jax.Array, Batch], ValidationSums]


def loss_chunks(config: Config, layout: Layout, rows: int) -> int:
    """Returns the number of chunks of the loss, for `rows` rows over all devices."""
    on_one_device = max(1, rows // layout.size("batch"))
    vocab = config.model.padded_vocab_size // layout.size("vocab")
    length = config.data.seq_len // layout.size("length")
    return num_chunks(on_one_device * config.model.loops, length, vocab, config.compute.logits_bytes)


def make_step_functions(config: Config, spec: ModelSpec, layout: Layout, execution: Execution, weights: HeadWeights,
                        optimizer: optax.GradientTransformation, trainable: frozenset[str]) -> StepFunctions:
    """Builds the functions of a run; none of them looks at the config when it runs.

    Args:
      config: the run's, validated.
      spec: the model.
      layout: mesh and rules.
      execution: how stacks run.
      weights: head weights by step.
      optimizer: from `make_optimizer`, for the parameters that train.
      trainable: their paths.
    """
    kind = get_head_kind(config.model.head_kind)
    rate = optimizers.learning_rate(config.optimizer, config.learning_rate_horizon)
    trainable_axes, _ = partition(spec.axes, trainable)
    parts = config.compute.microbatches
    vocab_size = config.model.vocab_size or 0
    chunks = loss_chunks(config, layout, config.data.batch_size // parts)
    how: dict[str, Any] = {"vocab_size": vocab_size, "chunks": chunks, "execution": execution}
    looped = config.model.loops > 1

    def targets_of(batch: Batch) -> tuple[jax.Array, jax.Array]:
        return multi_token_targets(batch["tokens"], batch["segments"], batch["positions"], config.model.num_heads,
                                   config.objective.prompt_end)

    def states_of(params: Params, batch: Batch, weights_N: jax.Array):
        """The heads' states (looped: after every loop, with the gate's logits) and the unembedding."""
        model = spec.bind(params)
        run = model.every_loop if looped else model
        states = run(batch["tokens"], batch["segments"], batch["positions"], weights_N=weights_N,
                     detach_trunk=config.objective.detach_trunk, execution=execution)
        return states, model.unembedding_matrix()

    def over_parts(run: Callable[[Batch], Any], batch: Batch) -> Any:
        """Returns the sum of what `run` returns for each microbatch."""
        if parts == 1:
            return run(batch)

        def of_part(part: Batch) -> Any:
            return run({name: constrain(x, "batch", "length") for name, x in part.items()})

        # Microbatch p holds rows p, p + parts, ...: every device keeps its share of each.
        cut = {name: jnp.swapaxes(x.reshape(-1, parts, x.shape[1]), 0, 1) for name, x in batch.items()}
        first = {name: x[0] for name, x in cut.items()}
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of_part, first))
        totals, _ = jax.lax.scan(lambda totals, part: (jax.tree.map(jnp.add, totals, of_part(part)), None), zeros, cut)
        return totals

    def init(key: jax.Array) -> TrainState:
        params = spec.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(partition(params, trainable)[0]))

    def seen(weights_N: jax.Array) -> jax.Array:
        """Weights by which heads are computed: the gate's stage reads head 1, whatever its weight."""
        gate_alone = looped and config.objective.loop_objective == "gate"
        return weights_N.at[0].set(jnp.maximum(weights_N[0], 1)) if gate_alone else weights_N

    def gradient(state: TrainState, batch: Batch, weights_N: jax.Array) -> tuple[jax.Array, Any, Params]:
        """Loss, sums and gradient of the global batch, microbatch by microbatch."""
        params, frozen = partition(state.params, trainable)
        # The denominators are those of the whole global batch, known before the first microbatch: gradients of
        # microbatches and devices then simply add up, however unevenly the targets are spread.
        mask_NxBxL = targets_of(batch)[1]
        counts_N = jnp.sum(mask_NxBxL.astype(jnp.float32), axis=(1, 2))
        scale_N = weights.reduce(weights_N) / jnp.maximum(counts_N, 1)
        places = jnp.sum(positions_of(mask_NxBxL).astype(jnp.float32)) if looped else None

        def loss_of(params: Params, batch: Batch) -> tuple[jax.Array, Any]:
            states, unembedding = states_of(combine(params, frozen), batch, seen(weights_N))
            targets_NxBxL, mask_NxBxL = targets_of(batch)
            if places is None:
                return mtp_cross_entropy(states, unembedding, targets_NxBxL, mask_NxBxL, scale_N, **how)
            (h_NxBxTxLxD, gate_TxBxL), objective = states, config.objective
            if objective.loop_objective == "gate":
                return gate_loss(h_NxBxTxLxD, gate_TxBxL, unembedding, targets_NxBxL, mask_NxBxL,
                                 1 / jnp.maximum(counts_N[0], 1), seen(weights_N) > 0,
                                 sharpness=objective.gate_sharpness, margin=objective.gate_margin, **how)
            return expected_loss(h_NxBxTxLxD, gate_TxBxL, unembedding, targets_NxBxL, mask_NxBxL, scale_N,
                                 objective.exit_entropy / jnp.maximum(places, 1), **how)

        def of_part(part: Batch) -> tuple[jax.Array, Any, Params]:
            (loss, sums), grads = jax.value_and_grad(loss_of, has_aux=True)(params, part)
            return loss, sums, jax.tree.map(lambda g: g.astype(jnp.promote_types(jnp.float32, g.dtype)), grads)

        return over_parts(of_part, batch)

    def train(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with use_layout(layout):
            weights_N = weights(state.step)
            loss, sums, grads = gradient(state, batch, weights_N)
            params, frozen = partition(state.params, trainable)
            updates, opt_state = optimizer.update(grads, state.opt_state, params)
            if execution.skip_idle_heads:
                updates = optimizers.rest_idle_heads(updates, trainable_axes, needed_N=kind.active(weights_N),
                                                     weighted_N=weights_N > 0)
            lr = rate(state.step + 1)
            params = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), params, updates)
            metrics = StepMetrics(loss, last_loop(sums) if looped else sums, weights_N, optax.tree.norm(grads),
                                  jnp.asarray(lr, jnp.float32), sums if looped else None)
            return TrainState(state.step + 1, combine(params, frozen), opt_state), metrics

    def validate(params: Params, step: jax.Array, batch: Batch) -> ValidationSums:
        with use_layout(layout):
            weights_N = weights(step)

            def of_part(part: Batch) -> ValidationSums:
                states, unembedding = states_of(params, part, weights_N)
                targets_NxBxL, mask_NxBxL = targets_of(part)
                active_N = weights_N > 0
                if looped:
                    h_NxBxTxLxD, gate_TxBxL = states
                    each, predictions_NxBxL = every_loop_of(h_NxBxTxLxD, unembedding, targets_NxBxL, mask_NxBxL,
                                                            active_N, **how)
                    loops = loop_sums(each, gate_TxBxL, mask_NxBxL)
                    sums = last_loop(loops)
                else:
                    loops = None
                    sums, predictions_NxBxL = mtp_evaluate(states, unembedding, targets_NxBxL, mask_NxBxL, active_N,
                                                           **how)
                return ValidationSums(sums, agreement_sums(predictions_NxBxL, mask_NxBxL, active_N), loops)

            return over_parts(of_part, batch)

    return StepFunctions(init, train, validate)

