"""What a compiled program sends between devices, read from its HLO text.

XLA's own cost analysis counts the body of a loop once. Here each collective is counted as often as it runs: times the
trip counts of the loops around it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
               "collective-broadcast")
# Dtypes of less than a byte count as one.
_BITS = re.compile(r"(?:[a-z]+?)(\d+)")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
# The TPU compiler hands what crosses slices to the host's network: as a send with the kind and the slices beside it.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# The TPU compiler hides a collective behind computations by fusing a piece of it with each: it stands in all of them.
_CHAIN = re.compile(r'channel_id=(\d+),.*chain_id="')
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    type: str  # as text
    operands: tuple[str, ...]
    attributes: str
    root: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of `COLLECTIVES`.
      count: how often a step runs it.
      bytes: of the whole array that it deals with on one device, all runs: what is gathered, reduced or sent.
      wire_bytes: that one device sends if the group is a ring, all runs.
      group: devices that take part.
      crosses: whether some group has devices of several slices.
    """

    kind: str
    count: int
    bytes: int
    wire_bytes: float
    group: int
    crosses: bool = False


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of a program.

    Attributes:
      collectives: in the order of the text.
      unknown_loops: loops whose trip count could not be read; they count once.
    """

    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Returns {kind: {"count", "bytes", "wire_bytes"}}, of the kinds that occur."""
        found: dict[str, dict[str, int]] = {}
        for kind in COLLECTIVES:
            those = [collective for collective in self.collectives if collective.kind == kind]
            if those:
                found[kind] = {"count": sum(c.count for c in those), "bytes": sum(c.bytes for c in those),
                               "wire_bytes": round(sum(c.wire_bytes for c in those))}
        return found

    def wire_bytes(self, *, crossing: bool) -> float:
        """Returns the bytes that a device sends a step inside its slice, or to other slices."""
        return sum(c.wire_bytes for c in self.collectives if c.crosses is crossing)


def traffic(text: str, num_devices: int, slice_of: Callable[[int], int] = lambda device: 0) -> Traffic:
    """Reads the collectives of a compiled program.

    Args:
      text: `compiled.as_text()`.
      num_devices: that the program runs on.
      slice_of: from a device's place in the mesh to its slice.
    """
    entry, computations = parse(text)
    found: list[Collective] = []
    unknown: list[str] = []

    def visit(name: str, times: int, scattered: bool, chains: set[str]) -> None:
        here = {instruction.name: instruction for instruction in computations[name]}
        for instruction in computations[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                chain = _CHAIN.search(instruction.attributes)
                if chain and chain[1] in chains:
                    continue
                if chain:
                    chains.add(chain[1])
                found.append(_collective(instruction, here, times, num_devices, slice_of, scattered))
            elif instruction.opcode == "send" and _BETWEEN_SLICES.search(instruction.attributes):
                found.append(_between_slices(instruction, here, times))
            elif instruction.opcode == "while":
                body = _attribute(instruction, "body")
                trips = _trip_count(instruction, here, computations)
                if trips is None:
                    unknown.append(instruction.name)
                visit(body, times * (1 if trips is None else trips), False, set())
            elif instruction.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                names = ([part.strip().lstrip("%") for part in branches[1].split(",")] if branches
                         else _CALLED.findall(instruction.attributes))
                visit(max(names, key=lambda branch: _weight(branch, computations)), times, False, set())
            else:  # a fusion, a call, or one that runs beside others: "async-start", on TPU7x "call-start"
                for called in _CALLED.findall(instruction.attributes):
                    if called in computations:
                        # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
                        visit(called, times, "all-reduce-scatter" in called, chains)

    visit(entry, 1, False, set())
    return Traffic(tuple(found), tuple(unknown))


def parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Returns the entry computation's name, and {computation: its instructions}.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])  # until the next: a kernel's settings may hold any line
            entry = header[2] if header[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            kind, rest = _split_type(match[3])
            opcode, _, after = rest.partition("(")
            inside, attributes = _balanced(after)
            # An operand may be written with its type before its name.
            operands = tuple(re.findall(r"%([\w.\-]+)", inside) or
                             [part.split()[-1] for part in inside.split(",") if part.strip()])
            if opcode in ("constant", "parameter"):
                operands = (inside,)
            current.append(Instruction(match[2], opcode.strip(), kind, operands, attributes, bool(match[1])))
    if not entry:
        raise ValueError("The program's text has no entry computation: is it `compiled.as_text()`?")
    return entry, computations


def type_bytes(text: str) -> int:
    """Returns the bytes of a type such as `bf16[8,128]{1,0}`, or of all arrays of a tuple."""
    total = 0
    for dtype, shape in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", text)):
        bits = 8 if dtype in ("pred", "token", "opaque") else int(m[1]) if (m := _BITS.match(dtype)) else 8
        dims = [int(part.lstrip("<=")) for part in shape.split(",") if part]
        total += math.prod(dims) * max(1, bits // 8)
    return total


def _split_type(text: str) -> tuple[str, str]:
    """Splits `TYPE opcode(...)` behind the type, which may be a tuple."""
    if text.startswith("("):
        inside, rest = _balanced(text[1:])
        return f"({inside})", rest.strip()
    kind, _, rest = text.partition(" ")
    return kind, rest


def _balanced(text: str) -> tuple[str, str]:
    """Returns what lies before the parenthesis that closes the one just opened, and what lies behind it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:place], text[place + 1:]
    return text, ""


def _attribute(instruction: Instruction, name: str) -> str:
    """Returns the computation that an attribute names."""
    found = re.search(rf"{name}=%?([\w.\-]+)", instruction.attributes)
    if found is None:
        raise ValueError(f"{instruction.opcode} {instruction.name} of the program's text has no {name}.")
    return found[1]


def _weight(name: str, computations: dict[str, list[Instruction]]) -> int:
    """Returns a measure of a branch's size: of the branches the largest is counted."""
    return sum(1 + sum(_weight(called, computations) for called in _CALLED.findall(instruction.attributes)
                       if called in computations) for instruction in computations[name])


def _trip_count(loop: Instruction, here: dict[str, Instruction],
                computations: dict[str, list[Instruction]]) -> int | None:
    """Returns how often a `while` runs: as the compiler noted it, or from its counter's start, step and end."""
    if noted := re.search(r'known_trip_count"?:? ?\{"?n"?: ?"?(\d+)', loop.attributes):
        return int(noted[1])
    condition = {i.name: i for i in computations[_attribute(loop, "condition")]}
    root = next(i for i in condition.values() if i.root)
    if root.opcode != "compare":
        return None
    direction = re.search(r"direction=(\w+)", root.attributes)
    counter, end = (condition.get(name) for name in root.operands)
    if counter is None or end is None or direction is None or counter.opcode != "get-tuple-element":
        return None
    last, index = _constant(end), re.search(r"index=(\d+)", counter.attributes)
    start = here.get(loop.operands[0])
    if last is None or index is None or start is None or start.opcode != "tuple":
        return None
    first = _constant(_origin(here.get(start.operands[int(index[1])]), here))
    step = _step(computations[_attribute(loop, "body")], int(index[1]))
    if first is None or step is None or direction[1] not in ("LT", "LE", "NE", "GT", "GE"):
        return None
    distance = last - first + (step // abs(step) if direction[1] in ("LE", "GE") else 0)
    return max(0, math.ceil(distance / step))


def _origin(instruction: Instruction | None, here: dict[str, Instruction]) -> Instruction | None:
    """Follows copies back to what they copy."""
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        instruction = here.get(instruction.operands[0])
    return instruction


def _constant(instruction: Instruction | None) -> int | None:
    """Returns the value of an integer constant, else None."""
    if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
        return None
    return int(instruction.operands[0])


def _step(body: list[Instruction], index: int) -> int | None:
    """Returns what a loop's body adds to its counter, element `index` of the carried tuple."""
    here = {instruction.name: instruction for instruction in body}
    root = next(instruction for instruction in body if instruction.root)
    if root.opcode != "tuple":
        return None
    total, place = 0, _origin(here.get(root.operands[index]), here)
    while place is not None and place.opcode in ("add", "subtract"):
        values = [_constant(_origin(here.get(name), here)) for name in place.operands]
        known = [value for value in values if value is not None]
        if len(known) != 1:
            return None
        total += known[0] if place.opcode == "add" else -known[0]
        place = _origin(here.get(place.operands[values.index(None)]), here)
    reads = place is not None and place.opcode == "get-tuple-element" and f"index={index}" in place.attributes
    return total if reads and total else None


def _collective(instruction: Instruction, here: dict[str, Instruction], times: int, num_devices: int,
                slice_of: Callable[[int], int], scattered: bool) -> Collective:
    """Returns what a collective does in `times` runs."""
    kind = instruction.opcode.removesuffix("-start")
    sent = sum(type_bytes(here[name].type) for name in instruction.operands if name in here)
    groups = list(_groups(instruction.attributes, num_devices))
    size = max(map(len, groups))
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
    crosses = any(len({slice_of(device) for device in group}) > 1 for group in groups)
    return _counted(kind, sent, size, times, crosses)


def _between_slices(instruction: Instruction, here: dict[str, Instruction], times: int) -> Collective:
    """Returns what a send to other slices does in `times` runs; the group is the slices."""
    transfer = _BETWEEN_SLICES.search(instruction.attributes)
    kind = transfer[1].lower().replace("_", "-") if transfer else ""
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', instruction.attributes)
    size = 2
    if target:
        ends = [[int(end) for end in part.split(":")] for part in target[1].split(",")]
        size = max(2, sum(end[-1] - end[0] + 1 for end in ends))
    sent = sum(type_bytes(here[name].type) for name in instruction.operands[:1] if name in here)
    return _counted(kind if kind in COLLECTIVES else "collective-permute", sent, size, times, True)


def _counted(kind: str, sent: int, size: int, times: int, crosses: bool) -> Collective:
    """Returns a collective in a ring of `size` devices, each of which puts `sent` bytes in."""
    whole = sent * size if kind == "all-gather" else sent
    share = {"collective-permute": 1.0, "collective-broadcast": 1.0, "all-reduce": 2 * (size - 1) / size}.get(
        kind, (size - 1) / size)
    return Collective(kind, times, whole * times, whole * share * times, size, crosses)


def _groups(attributes: str, num_devices: int) -> Iterator[list[int]]:
    """Yields the groups of devices of a collective, in any of the notations."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        for source, target in re.findall(r"\{(\d+),(\d+)", pairs[1] + "}"):
            yield [int(source), int(target)]
    elif listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        for group in re.findall(r"\{([\d,]+)\}", listed[1]):
            yield [int(device) for device in group.split(",")]
    elif iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        order = [int(n) for n in iota[3].split(",")] if iota[3] else range(len(dims))
        yield from np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape).reshape(
            -1, shape[-1]).tolist()
    elif mesh := re.search(r"replica_groups=@?mesh\w*\[(.*?)\](?:[^{]*?)\{(.*?)\}", attributes):
        dims_by_name = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        inner = [name for name in re.findall(r"'([^']+)'", mesh[2])]
        names = list(dims_by_name)
        order = [names.index(name) for name in names if name not in inner] + [names.index(name) for name in inner]
        grid = np.arange(math.prod(dims_by_name.values())).reshape(list(dims_by_name.values())).transpose(order)
        yield from grid.reshape(-1, math.prod(dims_by_name[name] for name in inner)).tolist()
    else:
        yield list(range(num_devices))
