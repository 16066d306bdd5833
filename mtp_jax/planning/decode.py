"""What decoding would need on devices that are not there: its two programs, compiled ahead of time.

A block is one turn of the generation loop: the heads draft, one forward verifies, and between 1 and k tokens a row come
out. Batch is data.batch_size, window (prompt and new tokens together) data.seq_len, k model.num_heads; prompts are
compiled at the length of the window, the most that they can need.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from mtp_jax.config import Config
from mtp_jax.decoding import weights as weights_of
from mtp_jax.decoding.cache import cache_bytes
from mtp_jax.decoding.generate import DecodingModel, bucket, compiled, room
from mtp_jax.decoding.tree import Tree
from mtp_jax.model import ModelSpec, get_head_kind, num_trunk_layers
from mtp_jax.parallel import Layout, make_mesh
from mtp_jax.parallel.topology import GIB, Topology, topology_devices
from mtp_jax.planning.compiling import DoesNotFit, attempt, examine
from mtp_jax.planning.plan import misfit
from mtp_jax.planning.roofline import NETWORK, least_and_most, roofline
from mtp_jax.training import flops

ASSUMPTIONS = (
    "a block reads every weight in use, a looped trunk's once a loop, and the whole cache once, at the chip's "
    "published bandwidth",
    "matmuls at the chip's published bfloat16 peak",
    NETWORK,
    "computing, memory and network wholly overlap: the block takes the longest of them",
    "tokens_per_second is a bound for each number of tokens that a block may yield a row; training tells how many",
)


def plan_decoding(config: Config, topology: Topology, *, experiment: str) -> dict[str, Any]:
    """Compiles the programs of decoding for a topology and tells what they need.

    Args:
      config: the run's, with the vocabulary's size.
      topology: what to run it on.
      experiment: its name, for the report.

    Returns:
      What `python -m mtp_jax.plan --mode=decode` prints; bytes and FLOPs are those of one device and one block.

    Raises:
      ValueError: the config, the topology and the mesh do not fit each other.
    """
    shape, batch, window = config.model, config.data.batch_size, config.data.seq_len
    kind = get_head_kind(shape.head_kind)
    kind.check(shape)
    heads = shape.num_heads
    mesh = make_mesh(config.parallel.mesh, topology_devices(topology), config.parallel.dcn_mesh)
    layout = Layout.create(mesh, config.parallel.rules)
    _check(config, layout)
    layout = dataclasses.replace(layout, rules={**layout.rules, "length": (), "residual": ()})
    spec = ModelSpec.create(shape)
    weights = weights_of.abstract(spec, heads=heads, layout=layout)
    model = DecodingModel(shape, weights, heads, window, None, layout, shape.dtype)
    tree, devices = Tree.chain(heads), list(mesh.devices.flat)
    capacity = room(model, window, heads)
    held = _bytes(weights)
    cache = cache_bytes(shape, batch=batch, capacity=capacity, heads=heads) / (
        layout.size("batch") * layout.size("kv_heads"))
    report: dict[str, Any] = {
        "experiment": experiment, "mode": "decode", "topology": topology.name, "slices": topology.slices,
        "devices": topology.num_devices, "params": spec.num_params,
        "mesh": ",".join(f"{axis}:{size}" for axis, size in mesh.shape.items()), "batch_size": batch,
        "seq_len": window, "num_heads": heads, "capacity": capacity, "weight_bytes": held,
        "cache_bytes": round(cache), "flops_per_device": block_flops(config, capacity) / mesh.size}
    try:
        programs, seconds = attempt(lambda: compiled(model, tree, (batch, bucket(model, window)), capacity))
    except DoesNotFit as problem:
        return report | misfit(problem) | {"prompt_peak_bytes": None, "tokens_per_second": None}
    prompt, block = examine(programs.start, devices, 0.0), examine(programs.run, devices, seconds)
    hbm = topology.chip.hbm_bytes if topology.chip else None
    embedding = _bytes(weights.embedding_VxD)
    read = held - (0 if shape.tie_embedding else embedding) + cache  # of the embedding a few rows
    read += (shape.loops - 1) * _bytes(weights.trunk)
    flops_a_device = report["flops_per_device"]
    bounds = roofline(topology, executed_flops=flops_a_device, memory_bytes=read, traffic=block.traffic)
    peak = topology.chip.tflops * 1e12 if topology.chip else None
    return report | {
        "argument_bytes": block.argument_bytes, "temp_bytes": block.temp_bytes, "output_bytes": block.output_bytes,
        "alias_bytes": block.alias_bytes, "peak_bytes": max(prompt.needed_bytes, block.needed_bytes),
        "peak_temp_bytes": block.peak_temp_bytes, "prompt_peak_bytes": prompt.needed_bytes, "hbm_bytes": hbm,
        "fits": None if hbm is None else True, "over_bytes": None if hbm is None else 0,
        "compiler_flops_per_device": block.flops, "collectives": block.traffic.by_kind(),
        "loops_of_unknown_length": [],  # the generation loop itself, whose one turn is planned
        "seconds_by_bound": {name: value for name, value in dataclasses.asdict(bounds).items()} if bounds else None,
        "step_seconds": bounds and bounds.seconds, "bound": bounds and bounds.bound,
        "mfu": flops_a_device / bounds.seconds / peak if bounds and peak else None,
        "tokens_per_second": {str(tokens): batch * tokens / bounds.seconds for tokens in range(1, heads + 1)}
        if bounds else None,
        "assumptions": list(ASSUMPTIONS) if bounds else [], "compile_seconds": round(seconds, 1)}


def block_flops(config: Config, capacity: int) -> float:
    """Returns the matmul FLOPs of a block over all devices.

    Trunk, in all its loops, head 1 and its unembedding run at all k positions of a row, heads 2..k and theirs at one;
    what those write into the cache everywhere is counted as their keys' and values' products. Heads that draft in turn
    run at 2 (k - 1) positions each, the last of them at one.

    Args:
      config: with the vocabulary's size.
      capacity: positions that attention looks at.
    """
    model, k = config.model, config.model.num_heads
    layer = flops.layer_flops(model, seq_len=capacity, executed=True)
    kind = get_head_kind(model.head_kind)
    head, logits = kind.matmul_flops(model, layer), 2 * model.d_model * model.padded_vocab_size
    written = 4 * model.d_model * model.kv_heads * model.attention_head_dim if kind.caches else 0
    first = head if kind.own(1) else 0
    window = 2 * (k - 1) if kind.in_turn else k  # positions at which a further head writes into the cache
    others = max(0, k - 2) if kind.in_turn else 0  # further heads that run at all of these
    trunk = model.loops * num_trunk_layers(model) * layer
    a_row = k * (trunk + first + logits) + (k - 1) * (head + logits + (window - 1) * written)
    a_row += others * (window - 1) * (head - written)
    return config.data.batch_size * a_row


def sentence(report: dict[str, Any]) -> str:
    """Returns what a plan comes to, for people."""
    needed, hbm = report["peak_bytes"], report["hbm_bytes"]
    parts = f"{report['weight_bytes'] / GIB:.2f} of weights, {report['cache_bytes'] / GIB:.2f} of cache"
    if hbm is None:
        return f"Needs {needed / GIB:.2f} GiB a device ({parts})."
    if not report["fits"]:
        return (f"Does not fit: needs {needed / GIB:.2f} GiB a device ({parts}), {report['over_bytes'] / GIB:.2f} GiB "
                f"more than the {hbm / GIB:.2f} GiB that it has. Fewer rows (data.batch_size), a shorter window "
                "(data.seq_len), more of tensor in parallel.mesh, or a larger topology would.")
    rates = list(report["tokens_per_second"].values())
    more = f", {rates[-1]:,.0f} with {len(rates)}" if len(rates) > 1 else ""
    least, most = least_and_most(report["bound"])
    return (f"Fits: {needed / GIB:.2f} of {hbm / GIB:.2f} GiB a device ({parts}); {least} "
            f"{report['step_seconds']:.3g} s a block, bound by {report['bound']}, so {most} {rates[0]:,.0f} tokens a "
            f"second over all rows with one token a block{more}.")


def _check(config: Config, layout: Layout) -> None:
    """Raises ValueError where rows or positions cannot be shared out for decoding."""
    rows, lengths = layout.size("batch"), layout.size("length")
    if lengths > 1:
        raise ValueError(f"parallel.mesh={config.parallel.mesh!r} splits the positions of a row in {lengths}, and "
                         "decoding adds a few at a time: give these devices to data, fsdp or tensor.")
    if config.data.batch_size % rows:
        raise ValueError(f"data.batch_size={config.data.batch_size} is not divisible by the {rows} devices that rows "
                         f"are spread over by parallel.mesh={config.parallel.mesh!r}: choose a multiple of {rows}, or "
                         "give devices to tensor.")


def _bytes(tree: Any) -> int:
    """Returns the bytes of arrays on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
