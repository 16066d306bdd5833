"""What a run would need on devices that are not there: its very train step, compiled ahead of time."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtp_jax.config import Config
from mtp_jax.data.tokenizer import build_tokenizer
from mtp_jax.parallel.topology import Topology, topology_devices
from mtp_jax.planning import estimate
from mtp_jax.planning.compiling import Compiled, DoesNotFit, compile_program
from mtp_jax.planning.roofline import ASSUMPTIONS, roofline
from mtp_jax.training.prepare import resolve_vocabulary
from mtp_jax.training.program import Program, build_program


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

    Attention runs on its causal half with the kernels that skip blocks, and else on all pairs.
    """
    return estimate.executed_flops(program.config, program.config.compute.remat, program.layout.mesh.size,
                                   program.layout.size("pred_heads"),
                                   executed=program.execution.kernel in ("xla", "cudnn"))


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
    try:
        compiled = compile_program(program.train_step, (program.state, program.batch),
                                   list(program.layout.mesh.devices.flat))
    except DoesNotFit as problem:
        return report | misfit(problem)
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


def misfit(problem: DoesNotFit) -> dict[str, Any]:
    """Returns the fields of a plan that does not fit."""
    unknown = ("argument_bytes", "temp_bytes", "output_bytes", "alias_bytes", "peak_temp_bytes",
               "compiler_flops_per_device", "collectives", "seconds_by_bound", "step_seconds", "bound", "mfu")
    return {**dict.fromkeys(unknown), "peak_bytes": problem.needed_bytes, "hbm_bytes": problem.available_bytes,
            "fits": False, "loops_of_unknown_length": [], "assumptions": [],
            "over_bytes": problem.needed_bytes - problem.available_bytes,
            "compile_seconds": round(problem.seconds, 1)}


def measured(compiled: Compiled, topology: Topology, *, flops: float, executed: float) -> dict[str, Any]:
    """Returns the fields of a plan that come from the compiled program."""
    hbm = topology.chip.hbm_bytes if topology.chip else None
    needed = compiled.needed_bytes
    moved = compiled.argument_bytes + compiled.output_bytes + 2 * compiled.peak_temp_bytes
    bounds = roofline(topology, executed_flops=executed, memory_bytes=moved, traffic=compiled.traffic)
    peak = topology.chip.tflops * 1e12 if topology.chip else None
    return {
        "argument_bytes": compiled.argument_bytes, "temp_bytes": compiled.temp_bytes,
        "output_bytes": compiled.output_bytes, "alias_bytes": compiled.alias_bytes, "peak_bytes": needed,
        "peak_temp_bytes": compiled.peak_temp_bytes, "hbm_bytes": hbm,
        "fits": None if hbm is None else True,  # else the compiler had refused it
        "over_bytes": None if hbm is None else 0,
        "compiler_flops_per_device": compiled.flops,
        "collectives": compiled.traffic.by_kind(), "loops_of_unknown_length": list(compiled.traffic.unknown_loops),
        "seconds_by_bound": {name: round(value, 6) for name, value in dataclasses.asdict(bounds).items()}
        if bounds else None,
        "step_seconds": bounds and bounds.seconds, "bound": bounds and bounds.bound,
        "mfu": flops / bounds.seconds / peak if bounds and peak else None,
        "assumptions": list(ASSUMPTIONS) if bounds else [], "compile_seconds": round(compiled.seconds, 1)}
