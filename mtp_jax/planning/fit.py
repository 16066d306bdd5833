"""Searches what may change on resume (mesh, remat, microbatches) for what fits a topology and takes the least time.

The batch is the run's identity and stays; how many rows of it a device takes at once is compute.microbatches. Formulas
rank all candidates (`estimate.py`), the compiler decides on the first few.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mtp_jax.config import Config
from mtp_jax.model import get_head_kind
from mtp_jax.parallel.mesh import parse_mesh
from mtp_jax.parallel.topology import GIB, Topology, parse_topology, topology_names
from mtp_jax.planning.estimate import Choice, Estimator, divisors
from mtp_jax.planning.roofline import Roofline

MOST_COMPILED = 3
HEADROOM = 0.97  # of HBM: what a candidate may need by estimate; gaps between arrays take the rest
LARGEST_TENSOR, LARGEST_SEQUENCE = 16, 16
SEARCHED = ("parallel.mesh", "compute.remat", "compute.microbatches")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A choice with its estimates.

    Attributes:
      choice: what it sets.
      needed_bytes: on a device.
      bounds: of a step.
    """

    choice: Choice
    needed_bytes: float
    bounds: Roofline


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate and what became of it.

    Attributes:
      candidate: as estimated.
      report: what `plan_training` returned; None where the program cannot be built.
      problem: why not.
    """

    candidate: Candidate
    report: dict[str, Any] | None
    problem: str = ""

    @property
    def fits(self) -> bool:
        return self.report is not None and self.report["fits"] is True

    @property
    def likely(self) -> float:
        """Seconds of a step to choose by: of the compiled program, but for what it moves through memory, which the
        compiler does not tell."""
        if self.report is None or not self.fits:
            return math.inf
        return dataclasses.replace(Roofline(**self.report["seconds_by_bound"]),
                                   memory=self.candidate.bounds.memory).likely


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
      best: the fastest that fits, or None.
      tried: in the order of compiling.
      considered: candidates that were ranked.
      seconds: of the search.
      stopped: why it ended before `MOST_COMPILED`, or an empty string.
      largest_rows: most rows of a microbatch on a device with the best mesh and remat, by estimate.
    """

    best: Tried | None
    tried: tuple[Tried, ...]
    considered: int
    seconds: float
    stopped: str
    largest_rows: int


def search(config: Config, topology: Topology, settings: Sequence[str], minutes: float,
           plan: Callable[[Config], dict[str, Any]], clock: Callable[[], float] = time.monotonic) -> Found:
    """Ranks all candidates and compiles the first few.

    Args:
      config: with the vocabulary's size.
      topology: of chips.
      settings: the command line's; what they set of `SEARCHED` stays.
      minutes: no compile is begun that would end later, going by the longest so far. One that runs is not cut short.
      plan: compiles a config; see `plan.plan_training`.
      clock: seconds.

    Raises:
      ValueError: the devices are fake, or no mesh goes with the config.
    """
    if topology.chip is None:
        raise ValueError(f"--fit with --topology={topology.name}: fake devices have no HBM and no rates to rank by; "
                         "name a TPU topology such as v5e:4x4.")
    start, estimator = clock(), Estimator.create(config, topology)
    ranked = rank(estimator, fixed(config, topology, settings))
    limit, correction = HEADROOM * topology.chip.hbm_bytes, 1.0
    tried: list[Tried] = []
    compiled, longest, stopped = 0, 0.0, ""
    while compiled < MOST_COMPILED:
        settled = {one.candidate.choice for one in tried}
        fast_enough = {(one.candidate.choice.mesh, one.candidate.choice.remat): one.candidate.choice.microbatches
                       for one in tried if one.fits}
        left = [one for one in ranked if one.choice not in settled and one.choice.microbatches < fast_enough.get(
            (one.choice.mesh, one.choice.remat), math.inf)]  # more microbatches only cost time
        fitting = [one for one in left if one.needed_bytes * correction <= limit]
        if not left or not (fitting or not fast_enough):
            stopped = "no other candidate fits by estimate"
            break
        if compiled and clock() - start + longest > 60 * minutes:
            stopped = f"--budget_minutes={minutes:g} does not last for another"
            break
        chosen = fitting[0] if fitting else min(left, key=lambda one: one.needed_bytes)
        begun = clock()
        try:
            report = plan(chosen.choice.apply(config))
        except ValueError as error:  # a kernel or a mesh that only building the program finds impossible
            tried.append(Tried(chosen, None, str(error)))
            if len(tried) - compiled > 10:
                stopped = "too many candidates cannot be built"
                break
            continue
        compiled, longest = compiled + 1, max(longest, clock() - begun)
        tried.append(Tried(chosen, report))
        correction = report["peak_bytes"] / chosen.needed_bytes
    best = min((one for one in tried if one.fits), key=lambda one: one.likely, default=None)
    rows = estimator.largest_rows(best.candidate.choice, limit / correction) if best else 0
    return Found(best, tuple(tried), len(ranked), clock() - start, stopped, rows)


def fixed(config: Config, topology: Topology, settings: Sequence[str]) -> dict[str, Any]:
    """Returns what the command line sets of `SEARCHED`."""
    names = {text.lstrip("-").removeprefix("config.").split("=")[0] for text in settings}
    values = {"parallel.mesh": lambda: tuple(parse_mesh(config.parallel.mesh, topology.num_devices).values()),
              "compute.remat": lambda: config.compute.remat,
              "compute.microbatches": lambda: config.compute.microbatches}
    return {name: value() for name, value in values.items() if name in names}


def rank(estimator: Estimator, settled: dict[str, Any]) -> list[Candidate]:
    """Returns all candidates that the config allows, fastest first by estimate.

    Raises:
      ValueError: there is none.
    """
    found = [Candidate(choice, estimator.memory(choice).total, estimator.bounds(choice))
             for choice in choices(estimator, settled)]
    if not found:
        sizes = settled.get("parallel.mesh")
        example = Choice(sizes or (1, estimator.topology.num_devices, 1, 1, 1), "full",
                         settled.get("compute.microbatches", 1))
        raise ValueError(f"--fit found no mesh for {estimator.topology.num_devices} devices: with {example.mesh_text}, "
                         f"{estimator.obstacle(example) or 'nothing is left to choose'}. Change data.batch_size, or "
                         "take fewer devices.")
    return sorted(found, key=lambda one: (one.bounds.likely, one.needed_bytes))


def choices(estimator: Estimator, settled: dict[str, Any]) -> Iterator[Choice]:
    """Yields every candidate that the config allows.

    All products of data, fsdp, tensor (at most 16) and, for head kinds that run abreast, pred_heads; sequence only
    where the batch has fewer rows than there are devices; every remat; every number of microbatches that divides the
    rows.
    """
    config, devices = estimator.config, estimator.topology.num_devices
    for mesh in [settled["parallel.mesh"]] if "parallel.mesh" in settled else _meshes(config, devices):
        if estimator.obstacle(Choice(mesh, "full", settled.get("compute.microbatches", 1))):
            continue
        rows = config.data.batch_size // estimator.parts("batch", Choice(mesh, "full", 1).sizes)
        parts = [settled["compute.microbatches"]] if "compute.microbatches" in settled else divisors(rows)
        for remat in [settled["compute.remat"]] if "compute.remat" in settled else ("none", "dots", "full"):
            for microbatches in parts:
                yield Choice(mesh, remat, microbatches)


def _meshes(config: Config, devices: int) -> Iterator[tuple[int, ...]]:
    """Yields sizes in the order of the mesh's axes."""
    heads = divisors(config.model.num_heads) if get_head_kind(config.model.head_kind).abreast else [1]
    lengths = divisors(LARGEST_SEQUENCE) if config.data.batch_size < devices else [1]
    for tensor in divisors(devices):
        for sequence in lengths:
            for abreast in heads:
                split = tensor * sequence * abreast
                if tensor > LARGEST_TENSOR or devices % split:
                    continue
                for fsdp in divisors(devices // split):
                    yield (devices // split // fsdp, fsdp, sequence, tensor, abreast)


def remedies(config: Config, topology: Topology, needed_bytes: int) -> list[str]:
    """Returns what would make a program fit that does not, by estimates that are put right by what it needs.

    Args:
      config: of the program.
      topology: of chips.
      needed_bytes: what the compiler said it needs.
    """
    if topology.chip is None:
        return []
    estimator = Estimator.create(config, topology)
    present = Choice(tuple(parse_mesh(config.parallel.mesh, topology.num_devices).values()), config.compute.remat,
                     config.compute.microbatches)
    correction = needed_bytes / estimator.memory(present).total
    limit = HEADROOM * topology.chip.hbm_bytes

    def needs(choice: Choice, there: Estimator = estimator) -> float:
        return there.memory(choice).total * correction

    found = []
    full = dataclasses.replace(present, remat="full")
    if present.remat != "full" and needs(full) <= limit:
        found.append(f"compute.remat=full ({needs(full) / GIB:.1f} GiB)")
    for remat in dict.fromkeys((present.remat, "full")):
        more = [one for one in choices(estimator, {"parallel.mesh": present.mesh, "compute.remat": remat})
                if one.microbatches > present.microbatches and needs(one) <= limit]
        if more:
            least = min(more, key=lambda one: one.microbatches)
            also = "" if remat == present.remat else f" with compute.remat={remat}"
            found.append(f"compute.microbatches={least.microbatches}{also} ({needs(least) / GIB:.1f} GiB)")
            break
    same = {"compute.remat": present.remat, "compute.microbatches": present.microbatches}
    meshes = [one for one in choices(estimator, same) if needs(one) <= limit]
    if meshes:
        best = min(meshes, key=lambda one: estimator.bounds(one).likely)
        found.append(f"parallel.mesh={best.mesh_text} ({needs(best) / GIB:.1f} GiB)")
    if not found:
        there = first_topology(estimator, correction)
        found.append(f"a larger topology: {there}" if there else f"no {topology.chip.name} topology by estimate; a "
                     "smaller data.batch_size or data.seq_len, which makes it another run")
    return found


def first_topology(estimator: Estimator, correction: float = 1.0) -> str:
    """Returns the smallest larger topology of the generation that some candidate fits, by estimate, or ""."""
    chip = estimator.topology.chip
    if chip is None:
        return ""
    seen = {estimator.topology.num_devices}
    for name in topology_names(chip):
        topology = parse_topology(f"{chip.name}:{name}", estimator.topology.slices)
        sides = [size & (size - 1) for size in topology.shape]
        if topology.num_devices <= max(seen) or any(sides):  # the usual ones: powers of two
            continue
        seen.add(topology.num_devices)
        there = estimator.on(topology)
        if any(there.memory(one).total * correction <= HEADROOM * chip.hbm_bytes for one in choices(there, {})):
            return topology.name
    return ""


def command(experiment: str, settings: Sequence[str], choice: Choice) -> str:
    """Returns the command that trains with a choice, to be pasted into a shell."""
    kept = [text for text in settings
            if text.lstrip("-").removeprefix("config.").split("=")[0] not in SEARCHED]
    module = experiment if "." in experiment else f"experiments.{experiment}"
    return shlex.join(["python", "-m", module, f"--workdir=runs/{module.split('.')[-1]}", *kept, *choice.settings()])


def table(found: Found) -> str:
    """Returns the candidates that were compiled, for people."""
    head = ("mesh", "remat", "microbatches", "GiB estimated", "compiled", "s estimated", "compiled", "")
    rows = [head]
    for one in found.tried:
        choice, report = one.candidate.choice, one.report
        size = f"{report['peak_bytes'] / GIB:.2f}" if report else "-"
        seconds = f"{report['step_seconds']:.3g}" if report and one.fits else "-"
        said = one.problem or ("best" if one is found.best else "fits" if one.fits else "does not fit")
        rows.append((choice.mesh_text, choice.remat, str(choice.microbatches),
                     f"{one.candidate.needed_bytes / GIB:.2f}", size, f"{one.candidate.bounds.seconds:.3g}", seconds,
                     said))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    return "\n".join("  ".join([*(part.ljust(width) for part, width in zip(row, widths)), row[-1]]).rstrip()
                     for row in rows)
