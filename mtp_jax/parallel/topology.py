"""Devices that need not be there: the chips of a TPU topology for the ahead-of-time compiler, and what a chip can do.

libtpu holds the TPU compiler and compiles for any topology without a TPU (extra `tpu`). `fake:8` is eight devices of
the CPU, for machines without libtpu.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

from mtp_jax.config import nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a TPU generation: published rates, and the memory that the compiler lets a program use.

    Attributes:
      name: as in a topology's name.
      dims: of the torus that chips form.
      devices: JAX devices a chip; of two, each has half the chip.
      hbm_bytes: memory of a device that a program may use.
      tflops: peak of bfloat16 matmuls of a device.
      hbm_gbps: memory bandwidth of a device, 10^9 bytes a second.
      link_gbps: of one inter-chip link in one direction, 10^9 bytes a second; a chip has two a torus dimension.
      dcn_gbps: a chip's share of its host's network in one direction, 10^9 bytes a second, between slices.
      largest: chips of the largest topology.
      config: of the compiler; "megacore" makes both cores of a chip one device.
    """

    name: str
    dims: int
    devices: int
    hbm_bytes: int
    tflops: float
    hbm_gbps: float
    link_gbps: float
    dcn_gbps: float
    largest: int
    config: str = "default"


# HBM: "available HBM" in the message with which libtpu 0.0.42 refuses a program that is too large. Rates: those of
# Google Cloud's pages on each generation, which count all links of a chip in both directions; of v4 they tell no DCN.
CHIPS = {chip.name: chip for chip in (
    Chip("v4", 3, 1, int(30.75 * GIB), 275.0, 1228.0, 50.0, 6.25, 4096, "megacore"),
    Chip("v5e", 2, 1, int(15.75 * GIB), 197.0, 819.0, 50.0, 3.125, 256),
    Chip("v5p", 3, 1, int(95.74 * GIB), 459.0, 2765.0, 100.0, 6.25, 6144, "megacore"),
    Chip("v6e", 2, 1, int(31.25 * GIB), 918.0, 1638.0, 100.0, 12.5, 256),
    Chip("tpu7x", 3, 2, int(94.75 * GIB), 1153.5, 3690.0, 100.0, 12.5, 9216),
)}
FAKE = "fake"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A topology by name, checked.

    Attributes:
      name: such as "v5p:4x4x4" or "fake:8".
      chip: of its devices; None for fake ones.
      shape: chips along each dimension; (8,) of "fake:8".
      slices: copies of it, joined by the data-center network.
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """JAX devices of all slices."""
        return self.chips * (self.chip.devices if self.chip else 1)


def topology_names(chip: Chip) -> list[str]:
    """Returns the topologies of a generation, smallest first.

    A 2D generation comes in rectangles of powers of two; a 3D one in blocks of 4 x 4 x 4 that are joined to any box, of
    which a part can be had below that.
    """
    if chip.dims == 2:
        shapes: list[tuple[int, ...]] = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    else:
        sides = range(4, 4 * math.ceil(chip.largest / 64) + 1, 4)
        shapes = [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
        boxes: Iterable[tuple[int, ...]] = itertools.chain.from_iterable(
            ((a, b, c) for c in sides if c >= b and a * b * c <= chip.largest)
            for a in sides if a**3 <= chip.largest for b in sides if b >= a and a * b * b <= chip.largest)
        shapes += sorted(boxes, key=lambda shape: (math.prod(shape), shape))
    return ["x".join(map(str, shape)) for shape in shapes]


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Reads the name of a topology; needs no libtpu.

    Args:
      name: "GENERATION:SHAPE" such as "v5p:4x4x4", in chips, or "fake:N".
      slices: copies of it.

    Raises:
      ValueError: there is none of that name; lists those that there are.
    """
    generation, _, shape = name.strip().lower().partition(":")
    if slices < 1:
        raise ValueError(f"--slices={slices} must be at least 1.")
    if generation == FAKE:
        if not shape.isdigit() or int(shape) < 1:
            raise ValueError(f"--topology={name}: fake devices are counted, such as fake:8.")
        if slices > 1:
            raise ValueError(f"--slices={slices}: fake devices form no slices; name a TPU topology.")
        return Topology(name, None, (int(shape),))
    if generation not in CHIPS:
        raise ValueError(f"--topology={name}: there is no generation {generation!r}; there are {', '.join(CHIPS)} and "
                         f"{FAKE}, as in v5p:4x4x4 or fake:8.{nearest(generation, [*CHIPS, FAKE])}")
    chip = CHIPS[generation]
    known = topology_names(chip)
    if shape not in known:
        sides = {option: list(map(int, option.split("x"))) for option in known}
        usual = [option for option, n in sides.items()
                 if all(side & (side - 1) == 0 for side in n) and (min(n) < 4 or max(n) <= 2 * min(n))]
        turned = "x".join(sorted(shape.split("x"), key=lambda side: (len(side), side)))
        meant = nearest(turned, [turned] if turned in known else usual)
        raise ValueError(f"--topology={name}: {generation} has no topology {shape!r}; it has "
                         f"{', '.join(f'{generation}:{option}' for option in usual)}"
                         f"{' and other boxes of multiples of 4' if chip.dims == 3 else ''}.{meant}")
    return Topology(name, chip, tuple(map(int, shape.split("x"))), slices)


def prepare_environment(topology: Topology, environ: MutableMapping[str, str]) -> None:
    """Sets what libtpu and JAX's backends read when they start, so that they look for no TPU.

    Args:
      topology: to be compiled for.
      environ: os.environ.
    """
    environ["JAX_PLATFORMS"] = "cpu"
    # Without these libtpu asks the metadata server which machine this is, and complains of the answer on stderr.
    # Its lock keeps two processes from one TPU: none is used here, and several may compile at a time.
    for name, value in (("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"), ("TPU_SKIP_MDS_QUERY", "1"),
                        ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_ACCELERATOR_TYPE", "v5p-8"),
                        ("TPU_MIN_LOG_LEVEL", "3"), ("TPU_STDERR_LOG_LEVEL", "3"), ("TF_CPP_MIN_LOG_LEVEL", "3")):
        environ.setdefault(name, value)
    if topology.chip is None:
        environ.pop("TPU_LIBRARY_PATH", None)  # JAX would load it
        flags = [flag for flag in environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
        environ["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={topology.num_devices}"])


def prepare_jax(topology: Topology) -> None:
    """Tells JAX, which read the environment when it was imported, to start no backend but the CPU's.

    Without a TPU what its persistent compile cache has of a TPU's programs cannot be loaded, so that is left out.

    Args:
      topology: to be compiled for.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    if topology.chip is not None:
        jax.config.update("jax_enable_compilation_cache", False)


def has_libtpu() -> bool:
    """Tells whether the TPU compiler is installed: JAX takes the file that TPU_LIBRARY_PATH names, else the package."""
    return os.path.isfile(os.environ.get("TPU_LIBRARY_PATH", "")) or importlib.util.find_spec("libtpu") is not None


def topology_devices(topology: Topology) -> Sequence[Any]:
    """Returns the devices of a topology, to make a mesh of; they compile and cannot compute, but for fake ones.

    Raises:
      ValueError: libtpu is missing, or JAX has fewer CPU devices than fake ones were asked for.
    """
    import jax

    if topology.chip is None:
        devices = jax.devices("cpu")
        if len(devices) < topology.num_devices:
            raise ValueError(f"--topology={topology.name}: JAX was started with {len(devices)} CPU devices; set "
                             f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.num_devices} before.")
        return devices[:topology.num_devices]
    if not has_libtpu():
        raise ValueError(f"--topology={topology.name} needs the TPU compiler: pip install 'mtp_jax[tpu]' (Linux on "
                         "x86-64; it needs no TPU), or take --topology=fake:8.")
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": topology.chip.config}
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    return topologies.get_topology_desc(topology.name.strip().lower(), platform="tpu", **options).devices
