"""Arithmetic of F_p[X]/(X^d), and random expressions in it with their text; whole arrays at a time.

An element is its d coefficients, that of X^0 first. Arrays of K elements are [K, d] integers in 0..p-1.

Composition is no operation of the quotient ring: where the inner polynomial has a constant term, a and a + X^d stand
for the same element, but a(b) and (a + X^d)(b) do not. Here it means: compose the representatives of degree d - 1 at
most, then drop what has X^d or higher. In F_7[X]/(X^5), X^4 X is 0, and so is (X^4 X)(1), but X^4(1) X(1) is 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np

LEAF, NEGATE, ADD, MULTIPLY, COMPOSE = range(5)
SYMBOLS = np.frombuffer(b" -+*o", np.uint8)  # of the operations, by number
NUM_OPERATIONS = 4  # NEGATE to COMPOSE
COUNT_OF_OPERANDS = np.array([0, 1, 2, 2, 2])
BRACKETS = np.array([0, 3, 3, 3, 3])  # characters of a node beside those of its operands: "(-a)", "(a+b)"


@dataclasses.dataclass(frozen=True)
class Ring:
    """F_p[X]/(X^d).

    Attributes:
      prime: p, at most 7, so that a coefficient is one digit.
      degree: d, the coefficients of an element.
    """

    prime: int
    degree: int

    def negate(self, a: np.ndarray) -> np.ndarray:
        """Returns -a [K, d]."""
        return -a % self.prime

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns a + b [K, d]."""
        return (a + b) % self.prime

    def multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns a b [K, d], what has X^d or higher dropped."""
        product = a[:, :1] * b
        for power in range(1, self.degree):
            product[:, power:] += a[:, power:power + 1] * b[:, :-power]
        return product % self.prime

    def compose(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns a(b) [K, d] of the representatives, by Horner's rule, what has X^d or higher dropped.

        Dropping it on the way changes nothing: a product's low coefficients depend on its factors' low ones alone.
        """
        result = np.zeros_like(a)
        for power in reversed(range(self.degree)):
            result = self.multiply(result, b)
            result[:, 0] += a[:, power]
            result[:, 0] %= self.prime
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class Expressions:
    """K expressions and their values.

    Attributes:
      text: [K, W] uint8, characters of each, zeros after them.
      lengths: [K] characters of each.
      values: [K, d] what each is equal to.
      operations: [K] operations in each.
    """

    text: np.ndarray
    lengths: np.ndarray
    values: np.ndarray
    operations: np.ndarray

    def take(self, chosen: np.ndarray) -> Expressions:
        """Returns those that an index array or a mask chooses."""
        return Expressions(self.text[chosen], self.lengths[chosen], self.values[chosen], self.operations[chosen])

    def hashes(self) -> np.ndarray:
        """Returns [K] uint64, a number that depends on an expression's text alone."""
        weights = _mix(np.arange(1, self.text.shape[1] + 1, dtype=np.uint64))
        return _mix(self.text.astype(np.uint64) @ weights)


class Bits:
    """Random numbers that a key determines, on every machine and with every version of numpy."""

    def __init__(self, *key: int) -> None:
        """Starts the stream of a key of whole numbers of at most 32 bits."""
        self._bits = np.random.Philox(key=sum(part << (32 * place) for place, part in enumerate(key)))

    def below(self, limits: np.ndarray) -> np.ndarray:
        """Returns an int64 array like `limits`, each entry uniform from 0 to one below its limit."""
        return (self._bits.random_raw(limits.size).reshape(limits.shape) % limits.astype(np.uint64)).astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
    """All nodes at one depth of a batch of trees.

    Attributes:
      operation: [K] LEAF to COMPOSE.
      child: [K] where a node's first operand is in the level below; the second follows it.
      values: [K, d] first of the leaves, then of all.
      lengths: [K] characters.
    """

    operation: np.ndarray
    child: np.ndarray
    values: np.ndarray
    lengths: np.ndarray


def draw(ring: Ring, operations: np.ndarray, bits: Bits) -> Expressions:
    """Returns random expressions.

    Operators are uniform over the four, coefficients over the p. Of the operations that are left below a node with two
    operands the first gets 0, 1, ..., all, each with the same probability, and the second the rest.

    Args:
      ring: where they are computed.
      operations: [K] int, how many operations each has.
      bits: what is drawn from.

    Returns:
      The expressions, in order.
    """
    levels = []
    left = operations.astype(np.int64)
    while len(left):
        level, left = _draw_level(ring, left, bits)
        levels.append(level)
    for level, below in zip(reversed(levels[:-1]), reversed(levels[1:])):
        _evaluate(ring, level, below)
    return Expressions(_write(levels), levels[0].lengths, levels[0].values, operations.astype(np.int64))


def _draw_level(ring: Ring, left: np.ndarray, bits: Bits) -> tuple[_Level, np.ndarray]:
    """Draws the nodes that have `left` [K] operations in them; returns them and how many their operands have."""
    operation = np.where(left > 0, NEGATE + bits.below(np.full(len(left), NUM_OPERATIONS)), LEAF)
    first = np.where(operation == NEGATE, left - 1, bits.below(np.maximum(left, 1)))
    operands = COUNT_OF_OPERANDS[operation]
    child = np.cumsum(operands) - operands
    below = np.zeros(operands.sum(), np.int64)
    has_one, has_two = operands > 0, operands == 2
    below[child[has_one]] = first[has_one]
    below[child[has_two] + 1] = (left - 1 - first)[has_two]
    values = np.zeros((len(left), ring.degree), np.int64)
    leaf = operation == LEAF
    values[leaf] = bits.below(np.full((leaf.sum(), ring.degree), ring.prime))
    return _Level(operation, child, values, np.full(len(left), ring.degree)), below


def _evaluate(ring: Ring, level: _Level, below: _Level) -> None:
    """Fills in the values and lengths of the nodes of a level that have operands."""
    for operation in range(NEGATE, COMPOSE + 1):
        nodes = np.flatnonzero(level.operation == operation)
        first = level.child[nodes]
        length = below.lengths[first] + BRACKETS[operation]
        if operation == NEGATE:
            level.values[nodes] = ring.negate(below.values[first])
        else:
            compute = {ADD: ring.add, MULTIPLY: ring.multiply, COMPOSE: ring.compose}[operation]
            level.values[nodes] = compute(below.values[first], below.values[first + 1])
            length = length + below.lengths[first + 1]
        level.lengths[nodes] = length


def _write(levels: list[_Level]) -> np.ndarray:
    """Returns the text [K, W] of the trees: top down, each node writes what is its own."""
    width = int(levels[0].lengths.max(initial=1))
    text = np.zeros((len(levels[0].operation), width), np.uint8)
    flat = text.reshape(-1)
    start = np.arange(len(text)) * width
    for level, below in zip(levels, [*levels[1:], None]):
        leaf = level.operation == LEAF
        digits = level.values[leaf]
        flat[start[leaf][:, None] + np.arange(digits.shape[1])] = digits + ord("0")
        if below is None:
            return text
        inner, one = ~leaf, level.operation == NEGATE
        two = inner & ~one
        flat[start[inner]] = ord("(")
        flat[start[inner] + level.lengths[inner] - 1] = ord(")")
        first = level.child[inner]
        starts = np.empty(len(below.operation), np.int64)
        starts[first] = start[inner] + 1 + one[inner]  # "(-a)": the sign comes first
        first_of_two = level.child[two]
        sign = start[two] + 1 + below.lengths[first_of_two]
        starts[first_of_two + 1] = sign + 1
        flat[start[one] + 1] = SYMBOLS[NEGATE]
        flat[sign] = SYMBOLS[level.operation[two]]
        start = starts
    return text


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Returns uint64 numbers, well mixed (the finaliser of SplitMix64)."""
    mixed = (numbers + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
