"""What a run would need on devices that are not there: its very train step, compiled ahead of time."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from mtp_jax.config import Config
from mtp_jax.data.tokenizer import build_tokenizer
from mtp_jax.parallel.topology import GIB, Topology, topology_devices
from mtp_jax.planning.hlo import Traffic, traffic
from mtp_jax.planning.roofline import ASSUMPTIONS, roofline
from mtp_jax.training.prepare import resolve_vocabulary
from mtp_jax.training.program import Program, build_program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler tells of a program; bytes are those of one device.

    Attributes:
      argument_bytes: what goes in: for a train step state and batch.
      temp_bytes: all temporaries that the compiler places; some share their time with none of the others.
      output_bytes: what comes out.
      alias_bytes: of the output, what lies where an argument lay.
      peak_bytes: most that is in use at once, arguments included; None where the compiler does not tell.
      flops: its own count, in which the body of a loop counts once; None where it has none.
      traffic: collectives.
      seconds: to compile.
    """

    argument_bytes: int
    temp_bytes: int
    output_bytes: int
    alias_bytes: int
    peak_bytes: int | None
    flops: float | None
    traffic: Traffic
    seconds: float

    @property
    def needed_bytes(self) -> int:
        """What a device must have."""
        whole = self.argument_bytes + self.temp_bytes + self.output_bytes - self.alias_bytes
        return self.peak_bytes or whole


class DoesNotFit(Exception):
    """The compiler refused a program that needs more memory than a device has.

    Attributes:
      needed_bytes: on one device.
      available_bytes: of one device.
    """

    def __init__(self, needed_bytes: int, available_bytes: int):
        super().__init__(f"needs {needed_bytes / GIB:.2f} GiB of a device's {available_bytes / GIB:.2f}")
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes


def compile_program(lower: Any, arguments: Sequence[Any], devices: Sequence[Any]) -> Compiled:
    """Compiles a jitted function for devices that need not be there.

    Args:
      lower: the jitted function.
      arguments: jax.ShapeDtypeStructs with shardings.
      devices: of the mesh, in its order.

    Raises:
      DoesNotFit: it needs more memory than a device has.
    """
    start = time.perf_counter()
    try:
        compiled = lower.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if sizes := too_large(str(error)):
            raise DoesNotFit(*sizes) from None
        raise
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes,
                    memory.alias_size_in_bytes,
                    memory.peak_memory_in_bytes if devices[0].platform == "tpu" else None,  # a CPU's lacks temporaries
                    cost.get("flops") if cost else None,
                    traffic(compiled.as_text(), len(devices),
                            lambda place: getattr(devices[place], "slice_index", None) or 0), seconds)


def too_large(message: str) -> tuple[int, int] | None:
    """Returns (bytes needed, bytes available) of a compiler's message, or None if it tells of something else."""
    number = r"([\d.]+)([KMGT]?)"
    for pattern in (rf"Used {number}i?B? of {number}i?B? hbm", rf"\({number}\) exceeds available HBM \({number}\)"):
        if found := re.search(pattern, message):
            scale = {letter: 1024**power for power, letter in enumerate(["", "K", "M", "G", "T"])}
            return int(float(found[1]) * scale[found[2]]), int(float(found[3]) * scale[found[4]])
    return None


def resolve(config: Config) -> Config:
    """Returns a validated config with the vocabulary's size; reads at most the tokenizer, no corpus.

    Raises:
      ValueError: a field does not fit, or the tokenizer is not there.
    """
    config.validate()
    if config.model.vocab_size is not None:
        return config
    return resolve_vocabulary(config, build_tokenizer(config.data))


def executed_flops(program: Program) -> float:
    """Returns the matmul FLOPs of a step on one device that are run: what remat computes again included.

    Full remat runs the layers' forward pass a second time; "dots" keeps its matmuls. The unembedding is never run
    again. Attention runs on its causal half with the kernels that skip blocks, and else on all pairs.
    """
    config = program.config
    whole = program.execution.kernel in ("xla", "cudnn")
    a_token = float(program.executed_flops_per_token if whole else program.flops_per_token)
    if config.compute.remat == "full":
        logits = 2 * config.model.d_model * config.model.padded_vocab_size * config.model.num_heads
        a_token = a_token + a_token / 3 - logits
    return a_token * config.data.batch_size * config.data.seq_len / program.layout.mesh.size


def plan_training(config: Config, topology: Topology, *, experiment: str) -> dict[str, Any]:
    """Compiles a run's train step for a topology and tells what it needs.

    Args:
      config: the run's.
      topology: what to run it on.
      experiment: its name, for the report.

    Returns:
      What `python -m mtp_jax.plan` prints; bytes and FLOPs are those of one device. Where the program does not fit,
      "fits" is False and what the compiler then does not tell is None.

    Raises:
      ValueError: the config, the topology and the mesh do not fit each other.
    """
    config = resolve(config)
    devices = topology_devices(topology)
    program = build_program(config, devices)
    flops = program.flops_per_token * config.data.batch_size * config.data.seq_len / len(devices)
    report = describe(program, topology, experiment=experiment, mode="train")
    report |= {"flops_per_device": flops, "executed_flops_per_device": executed_flops(program)}
    start = time.perf_counter()
    try:
        compiled = compile_program(program.train_step, (program.state, program.batch),
                                   list(program.layout.mesh.devices.flat))
    except DoesNotFit as problem:
        return report | misfit(problem, time.perf_counter() - start)
    return report | measured(compiled, topology, flops=flops, executed=executed_flops(program))


def describe(program: Program, topology: Topology, *, experiment: str, mode: str) -> dict[str, Any]:
    """Returns what is known of a plan before anything is compiled."""
    config = program.config
    return {
        "experiment": experiment, "mode": mode, "topology": topology.name, "slices": topology.slices,
        "devices": topology.num_devices, "params": program.spec.num_params,
        "mesh": ",".join(f"{axis}:{size}" for axis, size in program.layout.mesh.shape.items()),
        "batch_size": config.data.batch_size, "seq_len": config.data.seq_len, "num_heads": config.model.num_heads,
        "remat": config.compute.remat, "microbatches": config.compute.microbatches,
        "kernel": program.execution.kernel}


def misfit(problem: DoesNotFit, seconds: float) -> dict[str, Any]:
    """Returns the fields of a plan that does not fit."""
    unknown = ("argument_bytes", "temp_bytes", "output_bytes", "collectives", "step_seconds", "mfu")
    return {**dict.fromkeys(unknown), "peak_bytes": problem.needed_bytes, "hbm_bytes": problem.available_bytes,
            "fits": False, "over_bytes": problem.needed_bytes - problem.available_bytes,
            "compile_seconds": round(seconds, 1)}


def measured(compiled: Compiled, topology: Topology, *, flops: float, executed: float) -> dict[str, Any]:
    """Returns the fields of a plan that come from the compiled program."""
    hbm = topology.chip.hbm_bytes if topology.chip else None
    needed = compiled.needed_bytes
    moved = compiled.argument_bytes + compiled.output_bytes + 2 * compiled.temp_bytes
    bounds = roofline(topology, executed_flops=executed, memory_bytes=moved, traffic=compiled.traffic)
    peak = topology.chip.tflops * 1e12 if topology.chip else None
    return {
        "argument_bytes": compiled.argument_bytes, "temp_bytes": compiled.temp_bytes,
        "output_bytes": compiled.output_bytes, "alias_bytes": compiled.alias_bytes, "peak_bytes": needed,
        "hbm_bytes": hbm, "fits": None if hbm is None else needed <= hbm,
        "over_bytes": max(0, needed - hbm) if hbm is not None else None,
        "compiler_flops_per_device": compiled.flops,
        "collectives": compiled.traffic.by_kind(), "loops_of_unknown_length": list(compiled.traffic.unknown_loops),
        "seconds_by_bound": {name: round(value, 6) for name, value in dataclasses.asdict(bounds).items()}
        if bounds else None,
        "step_seconds": bounds and bounds.seconds, "bound": bounds and bounds.bound,
        "mfu": flops / bounds.seconds / peak if bounds and peak else None,
        "assumptions": list(ASSUMPTIONS) if bounds else [], "compile_seconds": round(compiled.seconds, 1)}
