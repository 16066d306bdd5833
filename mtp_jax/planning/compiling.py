"""Compiling for devices that need not be there, and what the compiler tells of the program."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mtp_jax.parallel.topology import GIB
from mtp_jax.planning.hlo import Traffic, traffic


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler tells of a program; bytes are those of one device.

    Attributes:
      argument_bytes: what goes in: for a train step state and batch.
      temp_bytes: `temp_size_in_bytes`. On a CPU all temporaries; for a TPU the size of the heap that they are placed
        in, which with its gaps can be larger than what is ever in use, and which is 0 where they fit beside the heap.
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
        """Most that is in use at once."""
        whole = self.argument_bytes + self.temp_bytes + self.output_bytes - self.alias_bytes
        return self.peak_bytes or whole

    @property
    def peak_temp_bytes(self) -> int:
        """What is in use at once beside the arguments: temporaries, and results that take no argument's place."""
        return max(0, self.needed_bytes - self.argument_bytes)


class DoesNotFit(Exception):
    """The compiler refused a program that needs more memory than a device has.

    Attributes:
      needed_bytes: on one device.
      available_bytes: of one device.
      seconds: until it refused.
    """

    def __init__(self, needed_bytes: int, available_bytes: int, seconds: float = 0.0):
        super().__init__(f"needs {needed_bytes / GIB:.2f} GiB of a device's {available_bytes / GIB:.2f}")
        self.needed_bytes, self.available_bytes, self.seconds = needed_bytes, available_bytes, seconds


def compile_program(function: Any, arguments: Sequence[Any], devices: Sequence[Any]) -> Compiled:
    """Compiles a jitted function for devices that need not be there.

    Args:
      function: the jitted function.
      arguments: jax.ShapeDtypeStructs with shardings.
      devices: of the mesh, in its order.

    Raises:
      DoesNotFit: it needs more memory than a device has.
    """
    compiled, seconds = attempt(lambda: function.lower(*arguments).compile())
    return examine(compiled, devices, seconds)


def attempt(compile: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what `compile` returns, and the seconds that it took.

    Raises:
      DoesNotFit: the compiler refused for want of memory.
    """
    start = time.perf_counter()
    try:
        return compile(), time.perf_counter() - start
    except jax.errors.JaxRuntimeError as error:
        if sizes := too_large(str(error)):
            raise DoesNotFit(*sizes, time.perf_counter() - start) from None
        raise


def examine(compiled: Any, devices: Sequence[Any], seconds: float) -> Compiled:
    """Reads what there is to know of a compiled program.

    Args:
      compiled: `jitted.lower(...).compile()`.
      devices: of the mesh, in its order.
      seconds: that it took.
    """
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
