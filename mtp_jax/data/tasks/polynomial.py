"""Polynomial arithmetic (section 4.2 of the paper): expressions in F_p[X]/(X^d), each with its value.

    ((53262*41343)o(-52034))=61015

Read by the tokenizer "bytes", a character is a token. An operand is its d coefficients, that of X^0 first; every
operation is in brackets: (-a), (a+b), (a*b), (aob), the last a(b). Pause tokens, "." each, stand between question and
"=". What is drawn, and what composition means, is in polynomial_ring.py.

A question whose hash is divisible by 10 is never trained on, and test questions are drawn from those: whatever the
seed and the number of examples, training has not seen them. Where a space is small, such as the p^d negations of one
operation, a tenth of it is what a test set can hold, and so it has fewer of them than the draw alone would give.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from mtp_jax.config import DataConfig
from mtp_jax.data.sources.base import Document, Piece, register_source
from mtp_jax.data.tasks.options import read_options
from mtp_jax.data.tasks.polynomial_ring import Bits, Expressions, Ring, draw

NAME = "polynomial"
PAUSE, EQUALS = ".", "="
PRIMES = (2, 3, 5, 7)
HELD_OUT = 10  # one question in so many is for testing only
PIECE_EXAMPLES = 4096
TRAINING, TEST = 0, 1  # streams of random numbers
TEST_DRAWS = 200_000  # of a test set at most, beyond which its space is taken to be used up


@dataclasses.dataclass(frozen=True)
class PolynomialOptions:
    """Settings of `data.options`. The defaults are the paper's, as far as it tells them."""

    prime: int = 7  # p
    degree: int = 5  # d: elements have coefficients of X^0 to X^(d-1)
    min_operations: int = 1  # in a training example; their number is uniform between both bounds
    max_operations: int = 5
    pause: int = 0  # pause tokens before "=": 0, 5 or 10 in the paper
    examples: int = 1_000_000  # training examples, validation included
    seed: int = 0  # of the training examples; test questions are the same for every seed

    @property
    def ring(self) -> Ring:
        return Ring(self.prime, self.degree)

    def validate(self) -> None:
        """Raises ValueError for a ring or numbers that make no sense."""
        if self.prime not in PRIMES:
            raise ValueError(f"data.options: prime={self.prime} must be one of {PRIMES}: a coefficient is one digit.")
        for name, least in (("degree", 1), ("min_operations", 1), ("pause", 0), ("examples", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.options: {name}={getattr(self, name)} must be at least {least}.")
        if self.max_operations < self.min_operations:
            raise ValueError(f"data.options: max_operations={self.max_operations} is below min_operations="
                             f"{self.min_operations}: raise it.")
        if self.seed >= 2**32:
            raise ValueError(f"data.options: seed={self.seed} must be below 2**32.")


@register_source(NAME, takes_options=True)
def polynomial(config: DataConfig) -> Sequence[Piece]:
    """Expressions and their values, made as they are read; `config.options` are `PolynomialOptions`."""
    options = read_options(PolynomialOptions, config.options, NAME)
    size = PIECE_EXAMPLES * (2 * options.degree + options.pause)  # about
    return [Piece(f"{NAME}@{start:012d}", size, functools.partial(documents, options, number))
            for number, start in enumerate(range(0, options.examples, PIECE_EXAMPLES))]


def documents(options: PolynomialOptions, piece: int) -> Iterator[Document]:
    """Yields the examples of a piece, PIECE_EXAMPLES of them but for the last piece."""
    first = piece * PIECE_EXAMPLES
    count = min(PIECE_EXAMPLES, options.examples - first)
    for number, text in enumerate(texts(training_expressions(options, piece), options), first):
        if number >= first + count:
            return
        name = f"{NAME}@{number:09d}"
        yield Document(name, name, functools.partial(bytes, text))


def training_expressions(options: PolynomialOptions, piece: int) -> Expressions:
    """Returns the PIECE_EXAMPLES expressions of a piece; none is a test question, and pauses change nothing."""
    bits = Bits(options.seed, TRAINING, piece)
    span = options.max_operations - options.min_operations + 1
    found: list[Expressions] = []
    missing = PIECE_EXAMPLES
    while missing > 0:
        operations = options.min_operations + bits.below(np.full(PIECE_EXAMPLES * 5 // 4, span))
        drawn = draw(options.ring, operations, bits)
        found.append(drawn.take(np.flatnonzero(~held_out(drawn))[:missing]))
        missing -= len(found[-1].lengths)
    return join(found)


def test_expressions(options: PolynomialOptions, operations: int, count: int) -> Expressions:
    """Returns test questions: all different, none ever trained on; fewer of a larger `count` begin it.

    Args:
      options: their ring.
      operations: in each, 1 or more.
      count: how many; fewer come back where the space of questions is used up.
    """
    bits = Bits(operations, TEST)
    chosen: list[Expressions] = []
    seen: set[bytes] = set()
    for _ in range(-(-TEST_DRAWS // PIECE_EXAMPLES)):
        drawn = draw(options.ring, np.full(PIECE_EXAMPLES, operations), bits)
        fresh = []
        for index in np.flatnonzero(held_out(drawn)):
            question = drawn.text[index, :drawn.lengths[index]].tobytes()
            if question not in seen and len(seen) < count:
                seen.add(question)
                fresh.append(index)
        chosen.append(drawn.take(np.array(fresh, np.int64)))
        if len(seen) == count:
            break
    return join(chosen)


def held_out(expressions: Expressions) -> np.ndarray:
    """Returns [K] bool: the question is for testing only."""
    return expressions.hashes() % np.uint64(HELD_OUT) == 0


def texts(expressions: Expressions, options: PolynomialOptions) -> list[bytes]:
    """Returns the text of each expression: question, pauses, "=", the d coefficients of its value."""
    width = expressions.text.shape[1]
    added = np.frombuffer((PAUSE * options.pause + EQUALS + "0" * options.degree).encode(), np.uint8)
    rows = np.zeros((len(expressions.text), width + len(added)), np.uint8)
    rows[:, :width] = expressions.text
    place = expressions.lengths[:, None] + np.arange(len(added))
    tail = np.tile(added, (len(rows), 1))
    tail[:, -options.degree:] += expressions.values.astype(np.uint8)
    np.put_along_axis(rows, place, tail, axis=1)
    everything, step = rows.tobytes(), rows.shape[1]
    ends = expressions.lengths + len(added)
    return [everything[row * step:row * step + end] for row, end in enumerate(ends.tolist())]


def join(parts: Sequence[Expressions]) -> Expressions:
    """Returns the expressions of all parts as one."""
    width = max(part.text.shape[1] for part in parts)
    return Expressions(
        text=np.concatenate([np.pad(part.text, ((0, 0), (0, width - part.text.shape[1]))) for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        operations=np.concatenate([part.operations for part in parts]))
