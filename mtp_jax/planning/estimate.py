"""What a train step would need, by formula: good enough to rank meshes, not to trust; the compiler has the last word.

Letters as elsewhere: B rows, L positions, D model, F mlp, A and K heads, C head width, V vocabulary, N prediction
heads. T is the tokens of one microbatch on one device.

    state        parameters and both moments as the rules split them, exactly; the batch
    gradients    one array like the parameters that train, in fp32; a second one that adds up microbatches
    activations  what each layer keeps for the backward pass, T tokens of it
    loss         states of all heads and their gradients, 2 N T D, which tensor does not split; a block of logits; the
                 unembedding gathered, and its gradient
    working      of the backward pass: one layer's inside; where tensor splits states, whole ones before and after they
                 are; two layers' gathered weights

A looped trunk's loops, and the heads after each, count like layers and heads of their own.

The peak is state and activations with the larger of the two that come one after the other: loss, or gradients and
working.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from mtp_jax.config import Config, ModelConfig
from mtp_jax.model import ModelSpec, get_head_kind, num_trunk_layers
from mtp_jax.parallel.mesh import AXES, parse_dcn_mesh
from mtp_jax.parallel.topology import Topology
from mtp_jax.planning.roofline import Roofline, dcn_bandwidth, ring_bandwidth
from mtp_jax.training import flops
from mtp_jax.training.state import flatten_params, trainable_paths

# Checked against compiled programs; see docs/plan.md.
KEPT_BY_NONE = 1.65  # of a layer's inside, what is kept without remat: norms and rotation keep fp32 beside bfloat16
WORKING = 1.0  # of a layer's inside, what is in use while its backward pass runs
WHOLE_STATES = 5.0  # T D that tensor does not split, in use while the backward pass of a layer runs


@dataclasses.dataclass(frozen=True)
class Choice:
    """What may change on resume and decides what fits: a candidate of the search.

    Attributes:
      mesh: sizes in the order of `AXES`.
      remat: compute.remat.
      microbatches: compute.microbatches.
    """

    mesh: tuple[int, ...]
    remat: str
    microbatches: int

    @property
    def sizes(self) -> dict[str, int]:
        """{axis: size}."""
        return dict(zip(AXES, self.mesh))

    @property
    def mesh_text(self) -> str:
        """As parallel.mesh has it, without axes of size 1."""
        return ",".join(f"{axis}:{size}" for axis, size in self.sizes.items() if size > 1) or "data:1"

    def settings(self) -> tuple[str, ...]:
        """Returns the arguments that choose it."""
        return (f"--config.parallel.mesh={self.mesh_text}", f"--config.compute.remat={self.remat}",
                f"--config.compute.microbatches={self.microbatches}")

    def apply(self, config: Config) -> Config:
        """Returns the config with this choice."""
        compute = dataclasses.replace(config.compute, remat=self.remat, microbatches=self.microbatches)
        return dataclasses.replace(config, compute=compute,
                                   parallel=dataclasses.replace(config.parallel, mesh=self.mesh_text))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak, by what holds them."""

    state: float
    gradients: float
    activations: float
    loss: float
    working: float

    @property
    def total(self) -> float:
        return self.state + self.activations + max(self.loss, self.gradients + self.working)


@dataclasses.dataclass(frozen=True)
class Estimator:
    """The formulas for one config and topology.

    Attributes:
      config: with the vocabulary's size.
      topology: with chips whose rates are known.
      leaves: of each parameter its shape, its logical axes and whether it trains.
      rules: {logical axis: mesh axes}.
    """

    config: Config
    topology: Topology
    leaves: tuple[tuple[tuple[int, ...], tuple[str | None, ...], bool], ...]
    rules: Mapping[str, tuple[str, ...]]

    @classmethod
    def create(cls, config: Config, topology: Topology) -> Estimator:
        """Looks at the model's shapes once."""
        spec = ModelSpec.create(config.model)
        trainable, axes = trainable_paths(spec.shapes, config.train.trainable), flatten_params(spec.axes)
        rules = {name: () if target is None else (target,) if isinstance(target, str) else tuple(target)
                 for name, target in config.parallel.rules}
        return cls(config, topology, tuple((leaf.shape, axes[path], path in trainable)
                                           for path, leaf in flatten_params(spec.shapes).items()), rules)

    def on(self, topology: Topology) -> Estimator:
        """Returns the same for other chips."""
        return dataclasses.replace(self, topology=topology)

    def parts(self, logical: str | None, sizes: Mapping[str, int]) -> int:
        """Returns the number of parts that a mesh cuts a logical axis into."""
        return 1 if logical is None else math.prod(sizes[axis] for axis in self.rules[logical])

    def obstacle(self, choice: Choice) -> str:
        """Returns why a candidate cannot be had, or an empty string."""
        sizes, data, model = choice.sizes, self.config.data, self.config.model
        rows = self.parts("batch", sizes)
        if data.batch_size % (rows * choice.microbatches):
            return f"{data.batch_size} rows in {choice.microbatches} microbatches over {rows} devices"
        for logical in ("length", "residual"):
            if data.seq_len % self.parts(logical, sizes):
                return f"{data.seq_len} positions over {self.parts(logical, sizes)} devices"
        for shape, axes, _ in self.leaves:
            for length, axis in zip(shape, axes):
                if length % self.parts(axis, sizes):
                    return f"{axis} of length {length} over {self.parts(axis, sizes)} devices"
        heads = sizes["pred_heads"]
        if heads > 1 and (model.num_heads % heads or not get_head_kind(model.head_kind).abreast
                          or self.config.compute.run_heads == "scan"):
            return f"heads of kind {model.head_kind} over pred_heads:{heads}"
        try:
            parse_dcn_mesh(self.config.parallel.dcn_mesh, sizes, self.topology.slices)
        except ValueError as error:
            return str(error)
        return ""

    def memory(self, choice: Choice, rows: int | None = None) -> Memory:
        """Returns the bytes of one device.

        Args:
          choice: the candidate.
          rows: of a microbatch on a device; None: what the candidate gives.
        """
        model, compute, sizes = self.config.model, self.config.compute, choice.sizes
        there, trained = self._parameters(sizes)
        width, kept = jnp.dtype(model.dtype).itemsize, jnp.dtype(model.param_dtype).itemsize
        wide = max(4, kept)
        rows_here = self.config.data.batch_size // self.parts("batch", sizes)
        rows = rows_here // choice.microbatches if rows is None else rows
        tokens = rows * self.config.data.seq_len / self.parts("length", sizes)
        batch = 3 * 4 * rows * choice.microbatches * self.config.data.seq_len / self.parts("length", sizes)
        inside, residual, products = self._layer(sizes)
        unsplit = 2 * (model.d_model - residual)  # in use whole, kept split
        each = {"full": residual, "dots": residual + products, "none": KEPT_BY_NONE * (inside - unsplit)}[choice.remat]
        kind, split_heads = get_head_kind(model.head_kind), self.parts("pred_heads", sizes)
        # Heads side by side read the same state; those that stack keep one each.
        deep = kind.layers(model.num_heads) / split_heads
        layers = model.loops * (num_trunk_layers(model) + (0 if choice.remat == "full" and kind.abreast else deep))
        matrix = model.padded_vocab_size / self.parts("vocab", sizes) * model.d_model
        logits = min(compute.logits_bytes,
                     4 * model.loops * tokens * model.padded_vocab_size / self.parts("vocab", sizes))
        gathered = 2 * self._layer_parameters(sizes) * width if self.parts("embed", sizes) > 1 else 0
        whole = WHOLE_STATES * model.d_model if residual < model.d_model else 0
        return Memory(there * kept + 2 * trained * wide + batch, trained * wide * (2 if choice.microbatches > 1 else 1),
                      each * layers * tokens * width,
                      2 * model.loops * model.num_heads / split_heads * tokens * model.d_model * width + logits
                      + matrix * (wide + width), (WORKING * inside + whole) * tokens * width + gathered)

    def largest_rows(self, choice: Choice, limit: float) -> int:
        """Returns the most rows of a microbatch on a device that stay below `limit` bytes."""
        empty, one = self.memory(choice, 0).total, self.memory(choice, 1).total
        return max(0, int((limit - empty) / (one - empty)))

    def bounds(self, choice: Choice) -> Roofline:
        """Returns what bounds a step; collectives as `wire_bytes` has them.

        Memory: the state is read and written, weights are read for every pass over a microbatch, and what a layer
        computes inside goes through memory, whether it is kept or computed again.
        """
        chip = self.topology.chip
        if chip is None:
            raise ValueError("fake devices have no rates.")
        wires = self.wire_bytes(choice)
        slices = parse_dcn_mesh(self.config.parallel.dcn_mesh, choice.sizes, self.topology.slices)
        crossing = sum(sent for axis, sent in wires.items() if slices[axis] > 1)
        model, sizes = self.config.model, choice.sizes
        width, passes = jnp.dtype(model.dtype).itemsize, 3 if choice.remat == "full" else 2
        layers = _layers(model)
        tokens = (self.config.data.batch_size / self.parts("batch", sizes) * self.config.data.seq_len
                  / self.parts("length", sizes))
        moved = 2 * self.memory(choice).state + passes * width * layers * (
            2 * self._layer(sizes)[0] * tokens + choice.microbatches * self._layer_parameters(sizes))
        return Roofline(self.executed_flops(choice) / (chip.tflops * 1e12), moved / (chip.hbm_gbps * 1e9),
                        (sum(wires.values()) - crossing) / ring_bandwidth(self.topology),
                        crossing / dcn_bandwidth(self.topology))

    def executed_flops(self, choice: Choice) -> float:
        """Returns the matmul FLOPs of a step on one device, with what remat computes again.

        Full remat runs the layers' forward pass a second time, "dots" of it only attention. The unembedding is never
        run again. Devices along pred_heads all run the trunk.
        """
        return executed_flops(self.config, choice.remat, math.prod(choice.mesh), choice.sizes["pred_heads"],
                              executed=False)

    def wire_bytes(self, choice: Choice) -> dict[str, float]:
        """Returns the bytes that a device sends a step along each mesh axis, rings assumed.

        fsdp gathers every weight for the forward and for the backward pass and scatters its gradient, microbatch by
        microbatch. data adds up gradients. tensor gathers and scatters the states around attention and MLP, in both
        passes, and in what full remat runs again; sequence does so with keys and values.
        """
        model, sizes = self.config.model, choice.sizes
        width, wide = jnp.dtype(model.dtype).itemsize, max(4, jnp.dtype(model.param_dtype).itemsize)
        there, trained = self._parameters(sizes)
        fsdp = self.parts("embed", sizes)
        parts, again = choice.microbatches, 1 if choice.remat == "full" else 0
        rows = self.config.data.batch_size / self.parts("batch", sizes)
        tokens = rows * self.config.data.seq_len / self.parts("length", sizes)  # of all microbatches
        layers = _layers(model)

        def ring(axis: str) -> float:
            return (sizes[axis] - 1) / sizes[axis]

        states = tokens * model.d_model * width
        keys = rows * self.config.data.seq_len * 2 * model.kv_heads * model.attention_head_dim * width
        return {"data": ring("data") * parts * 2 * trained * wide,
                "fsdp": ring("fsdp") * parts * fsdp * (2 * model.loops * there * width + trained * wide),
                "sequence": ring("sequence") * (layers * (2 + again) * keys / self.parts("kv_heads", sizes)
                                                + parts * 2 * trained * wide * fsdp),
                "tensor": ring("tensor") * states * (layers * (8 + 3 * again) + 2 * model.loops * model.num_heads),
                "pred_heads": ring("pred_heads") * 2 * states}

    def _parameters(self, sizes: Mapping[str, int]) -> tuple[float, float]:
        """Returns how many parameters a device holds, and how many of them train."""
        there = trained = 0.0
        for shape, axes, trains in self.leaves:
            count = math.prod(shape) / math.prod(self.parts(logical, sizes) for logical in axes)
            there, trained = there + count, trained + (count if trains else 0)
        return there, trained

    def _layer_parameters(self, sizes: Mapping[str, int]) -> float:
        """Returns the parameters of a layer that a device needs to run it, gathered over fsdp."""
        model = self.config.model
        attention = 2 * (model.num_attention_heads + model.kv_heads) * model.attention_head_dim
        return (model.d_model * attention / self.parts("heads", sizes)
                + 3 * model.d_model * model.mlp_dim / self.parts("mlp", sizes))

    def _layer(self, sizes: Mapping[str, int]) -> tuple[float, float, float]:
        """Returns elements a token of a device's share: of a layer's inside, of its input, of its matmuls' results."""
        model = self.config.model
        D, F, C = model.d_model, model.mlp_dim, model.attention_head_dim
        heads, mlp = self.parts("heads", sizes), self.parts("mlp", sizes)
        residual = D * self.parts("length", sizes) / self.parts("residual", sizes)
        queries, keys = model.num_attention_heads * C / heads, 2 * model.kv_heads * C / heads
        products = queries + keys + 2 * F / mlp + 2 * residual
        return 2 * residual + 2 * D + 2 * queries + keys + 3 * F / mlp, residual, products


def executed_flops(config: Config, remat: str, devices: int, pred_heads: int, *, executed: bool) -> float:
    """Returns the matmul FLOPs of a step on one device that are run.

    Args:
      config: the run's.
      remat: "full" runs the layers' forward pass a second time, "dots" of it only attention, which is no product with
        weights; the unembedding is never run again.
      devices: of the mesh.
      pred_heads: size of that axis; along it every device runs the whole trunk.
      executed: count attention on all pairs and the padded vocabulary, as plain kernels run them.
    """
    model = config.model
    layer = flops.layer_flops(model, seq_len=config.data.seq_len, executed=executed)
    kind, again = get_head_kind(model.head_kind), {
        "none": 0, "dots": layer - flops.layer_flops(model, seq_len=0), "full": layer}[remat]
    vocab = model.padded_vocab_size if executed else model.vocab_size or 0
    trunk = num_trunk_layers(model) * (3 * layer + again)
    heads = (3 * kind.own(model.num_heads) * kind.matmul_flops(model, layer)
             + 3 * model.num_heads * 2 * model.d_model * vocab
             + kind.layers(model.num_heads) * again)  # linear heads are not run again
    tokens = config.data.batch_size * config.data.seq_len
    return model.loops * (trunk * pred_heads + heads) * tokens / devices


def _layers(model: ModelConfig) -> int:
    """Returns how many layers a token goes through, heads' and all loops of a looped trunk counted."""
    return model.loops * (num_trunk_layers(model) + get_head_kind(model.head_kind).layers(model.num_heads))


def divisors(number: int) -> Sequence[int]:
    """Returns the divisors of a number, rising."""
    return [size for size in range(1, number + 1) if number % size == 0]
