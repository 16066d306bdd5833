"""The least time that a step can take on given chips, from what it computes, reads and sends."""

from __future__ import annotations

import dataclasses

from mtp_jax.parallel.topology import Topology
from mtp_jax.planning.hlo import Traffic

NETWORK = ("every byte of a collective over one ring of links in both directions, collectives one after the other: "
           "along several dimensions of the torus at once the network can be faster")
ASSUMPTIONS = (
    "matmuls at the chip's published bfloat16 peak, and what full or partial remat computes again counted",
    NETWORK,
    "what crosses slices at a chip's share of its host's network",
    "memory read and written at the published bandwidth: arguments and results once, temporaries twice",
    "computing, memory and network wholly overlap: the step takes the longest of them",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step by what bounds it, on one device.

    Attributes:
      compute: matmuls.
      memory: reading and writing HBM.
      network: collectives inside a slice.
      dcn: collectives between slices.
    """

    compute: float
    memory: float
    network: float
    dcn: float

    @property
    def seconds(self) -> float:
        """The longest of them."""
        return max(dataclasses.astuple(self))

    @property
    def likely(self) -> float:
        """What candidates are ranked by: the longest, and a fifth of the others, for no program overlaps all of it."""
        return self.seconds + 0.2 * (sum(dataclasses.astuple(self)) - self.seconds)

    @property
    def bound(self) -> str:
        """Its name."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def roofline(topology: Topology, *, executed_flops: float, memory_bytes: float, traffic: Traffic) -> Roofline | None:
    """Returns the bounds of a step, or None for devices whose rates are not known.

    Args:
      topology: the chips.
      executed_flops: of a step on one device, recomputation included.
      memory_bytes: read and written by one device.
      traffic: its collectives.
    """
    chip = topology.chip
    if chip is None:
        return None
    return Roofline(executed_flops / (chip.tflops * 1e12), memory_bytes / (chip.hbm_gbps * 1e9),
                    traffic.wire_bytes(crossing=False) / ring_bandwidth(topology),
                    traffic.wire_bytes(crossing=True) / dcn_bandwidth(topology))


def ring_bandwidth(topology: Topology) -> float:
    """Returns the bytes a second that a device sends round a ring of links, both ways; a chip's serve its devices."""
    if topology.chip is None:
        raise ValueError(f"--topology={topology.name}: fake devices have no rates.")
    return 2 * topology.chip.link_gbps * 1e9 / topology.chip.devices


def dcn_bandwidth(topology: Topology) -> float:
    """Returns a device's share of its host's network, bytes a second in one direction; a chip's serves its devices."""
    if topology.chip is None:
        raise ValueError(f"--topology={topology.name}: fake devices have no rates.")
    return topology.chip.dcn_gbps * 1e9 / topology.chip.devices


def least_and_most(bound: str) -> tuple[str, str]:
    """Returns how to speak of seconds and rates: of matmuls and memory they are bounds, of the network an estimate."""
    return ("about", "about") if bound == "network" else ("at least", "at most")
