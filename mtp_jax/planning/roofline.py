"""The least time that a step can take on given chips, from what it computes, reads and sends."""

from __future__ import annotations

import dataclasses

from mtp_jax.parallel.topology import HOST_DCN_GBPS, Topology
from mtp_jax.planning.hlo import Traffic

CHIPS_A_HOST = 4
ASSUMPTIONS = (
    "matmuls at the chip's published bfloat16 peak, and what full or partial remat computes again counted",
    "every byte of a collective over one ring of links in both directions, collectives one after the other",
    "memory read and written at the published bandwidth: arguments and results once, temporaries twice",
    "computing, memory and network wholly overlap: the step takes the longest of the three, and no program is as fast",
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
    # A chip's links serve all its devices, a host's network all its chips.
    ring = 2 * chip.link_gbps * 1e9 / chip.devices
    dcn = HOST_DCN_GBPS * 1e9 / (min(CHIPS_A_HOST, topology.chips) * chip.devices)
    return Roofline(executed_flops / (chip.tflops * 1e12), memory_bytes / (chip.hbm_gbps * 1e9),
                    traffic.wire_bytes(crossing=False) / ring, traffic.wire_bytes(crossing=True) / dcn)
