"""TPU slices by name: "v5p:4x4x4" (what the plan says) or "v5p-128" (what Cloud TPU says), and what each takes."""

from __future__ import annotations

import dataclasses
import math
import re

from launch.job import nearest


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs.

    Attributes:
      prefix: of its accelerator types, as in v5litepod-16.
      unit: what that number counts per chip: TensorCores (2) or the chip itself (1).
      dimensions: of its topologies.
      max_chips: of one slice.
      runtime: version of the TPU VM's software that is for jax; empty: not offered by the Cloud TPU API.
      gke: value of GKE's node label cloud.google.com/gke-tpu-accelerator.
    """

    prefix: str
    unit: int
    dimensions: int
    max_chips: int
    runtime: str
    gke: str


GENERATIONS = {
    "v4": Generation("v4", 2, 3, 4096, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": Generation("v5litepod", 1, 2, 256, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v5p": Generation("v5p", 2, 3, 6144, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": Generation("v6e", 1, 2, 256, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
    "tpu7x": Generation("tpu7x", 2, 3, 9216, "", "tpu7x"),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # every topology of two dimensions
SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # of three dimensions; larger ones are multiples of 4, ascending
USUAL_CUBES = ("4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU slice.

    Attributes:
      generation: key of GENERATIONS.
      topology: such as "4x4x4".
      accelerator_type: such as "v5p-128" if it was named so; empty: it was named by its topology.
    """

    generation: str
    topology: str
    accelerator_type: str = ""

    @property
    def kind(self) -> Generation:
        """The generation's facts."""
        return GENERATIONS[self.generation]

    @property
    def chips(self) -> int:
        """Chips of the slice."""
        return _chips(self.topology)

    @property
    def chips_per_host(self) -> int:
        """Chips of a host: 4, or all of a slice that one host can hold."""
        if self.kind.dimensions == 2:
            return self.chips if self.chips in (1, 4, 8) else 4
        return 4

    def hosts(self, chips_per_host: int = 0) -> int:
        """Returns the hosts of the slice.

        Args:
          chips_per_host: of another machine type; 0: the usual one's.

        Raises:
          ValueError: the chips do not fill hosts of that size.
        """
        per_host = chips_per_host or self.chips_per_host
        if per_host not in (1, 4, 8) or self.chips % per_host:
            raise ValueError(f"chips_per_host={chips_per_host} does not divide the {self.chips} chips of {self.name} "
                             "into hosts of 1, 4 or 8 chips; 0 takes the usual number.")
        return self.chips // per_host

    @property
    def name(self) -> str:
        """Such as "v5p:4x4x4"."""
        return f"{self.generation}:{self.topology}"


def parse(text: str) -> Slice:
    """Returns the slice of a name such as "v5p:4x4x4", "v5p-128", "v5litepod-16" or "v6e-16".

    Raises:
      ValueError: no such slice; names the nearest and lists what there is.
    """
    generation, colon, topology = text.partition(":")
    if colon:
        _check_generation(text, generation)
        if topology not in topologies(generation) and not _is_cube(generation, topology):
            known = topologies(generation)
            more = " or multiples of 4 in ascending order" if GENERATIONS[generation].dimensions == 3 else ""
            raise ValueError(f"accelerator={text!r}: {generation} has no topology {topology!r}; it has "
                             f"{', '.join(known)}{more}.{nearest(topology, known)}")
        return Slice(generation, topology)
    found = re.fullmatch(r"(\w+)-(\d+)", text)
    if not found:
        raise ValueError(f"accelerator={text!r} is neither GENERATION:TOPOLOGY (v5p:4x4x4) nor an accelerator type "
                         "(v5p-128).")
    prefix, count = found[1], int(found[2])
    generation = next((name for name, kind in GENERATIONS.items() if prefix in (name, kind.prefix)), prefix)
    _check_generation(text, generation)
    kind = GENERATIONS[generation]
    for topology in topologies(generation):
        if _chips(topology) * kind.unit == count:
            return Slice(generation, topology, f"{kind.prefix}-{count}")
    sizes = [f"{kind.prefix}-{_chips(topology) * kind.unit}" for topology in topologies(generation)]
    cube = f" A slice of another shape is named by it, such as {generation}:4x4x12." if kind.dimensions == 3 else ""
    raise ValueError(f"accelerator={text!r} is not among {', '.join(sizes)}.{cube}")


def topologies(generation: str) -> tuple[str, ...]:
    """Returns the usual topologies of a generation, smallest first; one for each number of chips."""
    if GENERATIONS[generation].dimensions == 2:
        return FLAT
    return SMALL_CUBES + USUAL_CUBES


def _is_cube(generation: str, topology: str) -> bool:
    """Tells whether a topology of three dimensions is one of the larger, freely chosen ones."""
    if GENERATIONS[generation].dimensions != 3 or not re.fullmatch(r"\d+x\d+x\d+", topology):
        return False
    sides = [int(side) for side in topology.split("x")]
    return (all(side and side % 4 == 0 for side in sides) and sides == sorted(sides)
            and math.prod(sides) <= GENERATIONS[generation].max_chips)


def _check_generation(text: str, generation: str) -> None:
    """Raises ValueError unless the generation is known."""
    if generation not in GENERATIONS:
        raise ValueError(f"accelerator={text!r}: the generation {generation!r} is not among {', '.join(GENERATIONS)}."
                         f"{nearest(generation, GENERATIONS)}")


def _chips(topology: str) -> int:
    """Returns the number of chips of a topology."""
    return math.prod(int(side) for side in topology.split("x"))
