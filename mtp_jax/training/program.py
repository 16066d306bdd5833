"""From a config and devices to compiled functions: the one place that knows how the pieces of a run fit together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mtp_jax.checkpoints.structure import nest
from mtp_jax.config import Config
from mtp_jax.model import Execution, ModelSpec, get_head_kind, num_trunk_layers, resolve_execution
from mtp_jax.model.attention import resolve_kernel
from mtp_jax.objective import HeadWeights, head_weights
from mtp_jax.parallel import Layout, check_batch, check_length, make_mesh, put_rows, rows_of_processes
from mtp_jax.training import flops
from mtp_jax.training.optimizer import make_optimizer, state_shardings
from mtp_jax.training.state import TrainState, flatten_params, partition, trainable_paths
from mtp_jax.training.step import Batch, make_step_functions

BATCH_FIELDS = ("tokens", "segments", "positions")


@dataclasses.dataclass(frozen=True)
class Program:
    """A run, ready to be compiled.

    Attributes:
      config: with the vocabulary size resolved.
      spec: the model without values.
      layout: mesh and rules.
      execution: how stacks run.
      weights: head weights by step.
      state: jax.ShapeDtypeStructs of the train state, with shardings.
      batch: jax.ShapeDtypeStructs of a global batch, with shardings.
      init: jitted, key -> TrainState, made where it belongs: no host ever holds the whole model.
      train_step: jitted, donates the state.
      validation_step: jitted, (params, step, batch) -> ValidationSums.
    """

    config: Config
    spec: ModelSpec
    layout: Layout
    execution: Execution
    weights: HeadWeights
    state: Any
    batch: dict[str, Any]
    init: Callable[..., Any]
    train_step: Callable[..., Any]
    validation_step: Callable[..., Any]

    @functools.cached_property
    def rows_of_process(self) -> np.ndarray:
        """Numbers of the rows of the global batch that this process reads, ascending; see mtp_jax/parallel/rows.py."""
        batch = self.batch["tokens"]
        return rows_of_processes(batch.sharding, batch.shape)[jax.process_index()]

    def put(self, batch: dict[str, np.ndarray]) -> Batch:
        """Makes the global batch of this process's rows [len(rows_of_process), L], in the order of their numbers."""
        return {name: put_rows(batch[name], self.batch[name].sharding, self.rows_of_process, self.batch[name].shape)
                for name in BATCH_FIELDS}

    @property
    def flops_per_token(self) -> int:
        """Model FLOPs of a training step per token; see training/flops.py for the formula."""
        return self._flops(executed=False)

    @property
    def executed_flops_per_token(self) -> int:
        """Matmul FLOPs that plain kernels run: attention over the whole row, padded vocabulary."""
        return self._flops(executed=True)

    def _flops(self, executed: bool) -> int:
        model, L = self.config.model, self.config.data.seq_len
        layer = flops.layer_flops(model, seq_len=L, executed=executed)
        kind = get_head_kind(model.head_kind)
        return flops.train_flops(model, seq_len=L, trunk_layers=num_trunk_layers(model),
                                 head_flops=int(kind.matmul_flops(model, layer)), own_heads=kind.own(model.num_heads),
                                 executed=executed)

    def state_bytes(self) -> int:
        """Returns the bytes of parameters and optimizer state on one device."""
        return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
                   for leaf in jax.tree.leaves(self.state))

    def estimated_bytes(self) -> int:
        """Returns a rough estimate of the peak bytes on one device: state, gradient, kept activations, one block of
        logits. The compiler's own figure is `train_step.lower(state, batch).compile().memory_analysis()`."""
        model, compute = self.config.model, self.config.compute
        params = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * 4
                     for leaf in jax.tree.leaves(self.state.params))
        rows = self.config.data.batch_size // compute.microbatches // self.layout.size("batch")
        tokens = max(1, rows) * self.config.data.seq_len // self.layout.size("length")
        width = np.dtype(jax.numpy.dtype(model.dtype)).itemsize
        attention = (model.num_attention_heads + model.kv_heads) * 2 * model.attention_head_dim
        kept = {"none": 4 * model.d_model + attention + 3 * model.mlp_dim, "dots": 2 * model.d_model + attention
                + 2 * model.mlp_dim, "full": model.d_model}[compute.remat]
        layers = num_trunk_layers(model) + get_head_kind(model.head_kind).layers(model.num_heads)
        activations = tokens * width * (layers * kept + 2 * model.num_heads * model.d_model) * model.loops
        logits = 3 * min(compute.logits_bytes, 4 * tokens * model.padded_vocab_size)
        return self.state_bytes() + params + activations + logits


def platform_of(mesh: Mesh) -> str:
    """Returns "cpu", "gpu" or "tpu"; of a topology that is compiled for ahead of time, too."""
    return mesh.devices.flat[0].platform


def build_program(config: Config, devices: Sequence[jax.Device] | None = None) -> Program:
    """Works out shapes, layout and functions of a run; computes nothing on a device.

    Args:
      config: validated, with the vocabulary size resolved.
      devices: what to run on; None: all devices of all processes.

    Returns:
      The program.

    Raises:
      ValueError: model, mesh, rules and batch do not fit each other; names the fields.
    """
    kind = get_head_kind(config.model.head_kind)
    kind.check(config.model)
    if config.objective.detach_trunk:
        kind.detached_gates(config.model.num_heads)
    weights = head_weights(config.objective, config.model.num_heads, config.objective_horizon)
    spec = ModelSpec.create(config.model)
    trainable = trainable_paths(spec.shapes, config.train.trainable)

    mesh = make_mesh(config.parallel.mesh, devices, config.parallel.dcn_mesh)
    layout = Layout.create(mesh, config.parallel.rules)
    check_batch(config.data.batch_size, config.compute.microbatches, mesh, layout.rules["batch"])
    check_length(config.data.seq_len, mesh, layout.rules)
    kernel = resolve_kernel(config.compute.attention, platform_of(mesh), seq_len=config.data.seq_len,
                            head_dim=config.model.attention_head_dim, dtype=config.model.dtype,
                            parts=layout.size("length"))
    execution = resolve_execution(config.compute, num_heads=config.model.num_heads,
                                  pred_heads_axis=layout.size("pred_heads"),
                                  platform=platform_of(mesh), kernel=kernel, skip_idle_heads=weights.heads_may_rest)
    if not kind.abreast and layout.size("pred_heads") > 1:
        raise ValueError(f"parallel.mesh has pred_heads:{layout.size('pred_heads')}, but heads of model.head_kind="
                         f"{config.model.head_kind!r} run one after the other, so that every device would gather each: "
                         "set pred_heads:1 and give the devices to data, fsdp or tensor.")
    if config.compute.run_heads == "vmap" and not kind.abreast:
        raise ValueError(f"compute.run_heads='vmap' cannot be had with model.head_kind={config.model.head_kind!r}, "
                         "whose heads run one after the other: choose 'auto' or 'scan'.")

    flat_axes = flatten_params(spec.axes)
    shardings = nest({path: layout.sharding(flat_axes[path], leaf.shape, path)
                             for path, leaf in flatten_params(spec.shapes).items()})
    optimizer = make_optimizer(config.optimizer, partition(spec.axes, trainable)[0])
    opt_shapes, opt_shardings = state_shardings(optimizer, partition(spec.shapes, trainable)[0],
                                                partition(shardings, trainable)[0], layout.replicated)
    step_shape: Any = jax.ShapeDtypeStruct((), np.int32)
    step_sharding: Any = layout.replicated
    state_shape = TrainState(step_shape, spec.shapes, opt_shapes)
    state_sharding = TrainState(step_sharding, shardings, opt_shardings)
    state = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                         state_shape, state_sharding)
    shape = (config.data.batch_size, config.data.seq_len)
    rows = layout.sharding(("batch", "length"), shape, "batch")
    layout.sharding(("batch", "residual"), shape, "the residual stream")
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=rows) for name in BATCH_FIELDS}
    batch_sharding = {name: rows for name in BATCH_FIELDS}

    rows_of_processes(rows, shape)  # raises where the processes cannot share the rows out

    functions = make_step_functions(config, spec, layout, execution, weights, optimizer, trainable)
    return Program(
        config, spec, layout, execution, weights, state, batch,
        init=jax.jit(functions.init, out_shardings=state_sharding),
        train_step=jax.jit(functions.train, in_shardings=(state_sharding, batch_sharding),
                           out_shardings=(state_sharding, layout.replicated), donate_argnums=0),
        validation_step=jax.jit(functions.validate, in_shardings=(shardings, layout.replicated, batch_sharding),
                                out_shardings=layout.replicated))
