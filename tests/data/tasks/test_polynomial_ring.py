"""The ring, against arithmetic that is spelt out on lists of coefficients, and expressions against their own text."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from mtp_jax.data.tasks.polynomial_ring import Bits, Ring, draw

PAPER = Ring(7, 5)


def add(a, b, p):
    return [(x + y) % p for x, y in itertools.zip_longest(a, b, fillvalue=0)]


def multiply(a, b, p):
    """The whole product, nothing dropped."""
    product = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] = (product[i + j] + x * y) % p
    return product


def compose(a, b, p):
    """The whole of a(b) as a sum of powers, nothing dropped."""
    total, power = [0], [1]
    for coefficient in a:
        total = add(total, multiply([coefficient], power, p), p)
        power = multiply(power, b, p)
    return total


def cut(a, ring):
    return (a + [0] * ring.degree)[:ring.degree]


def evaluate(text, ring):
    """Returns the value of an expression's text, and how many operations it has, by reading it."""
    def read(at):
        if text[at] != "(":
            return [int(digit) for digit in text[at:at + ring.degree]], 0, at + ring.degree
        if text[at + 1] == "-":
            a, count, at = read(at + 2)
            value = [-x % ring.prime for x in a]
        else:
            a, count, at = read(at + 1)
            sign = text[at]
            b, more, at = read(at + 1)
            count += more
            value = cut({"+": add, "*": multiply, "o": compose}[sign](a, b, ring.prime), ring)
        assert text[at] == ")"
        return value, count + 1, at + 1

    value, count, end = read(0)
    assert end == len(text)
    return value, count


def string(expressions, row):
    return expressions.text[row, :expressions.lengths[row]].tobytes().decode()


def one(method, *operands):
    return method(*(np.array([operand]) for operand in operands))[0].tolist()


def test_known_values():
    x, x4 = [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]
    assert one(PAPER.negate, [0, 1, 2, 3, 6]) == [0, 6, 5, 4, 1]
    assert one(PAPER.add, [6, 5, 0, 1, 2], [1, 1, 1, 6, 6]) == [0, 6, 1, 0, 1]
    assert one(PAPER.multiply, x, x4) == [0] * 5
    assert one(PAPER.multiply, [1, 1, 0, 0, 0], [1, 6, 0, 0, 0]) == [1, 0, 6, 0, 0]  # (1 + X)(1 - X)
    assert one(PAPER.compose, [0, 0, 1, 0, 0], [1, 1, 0, 0, 0]) == [1, 2, 1, 0, 0]  # (1 + X)^2
    assert one(PAPER.compose, [0, 0, 0, 1, 0], [0, 0, 1, 0, 0]) == [0] * 5  # (X^2)^3


def test_composition_is_that_of_the_representatives_of_least_degree():
    x, x4, unit = [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]
    zero = one(PAPER.multiply, x4, x)  # X^5
    assert one(PAPER.compose, zero, unit) == [0] * 5
    # Were composition defined on the ring, this would be the same.
    assert one(PAPER.multiply, one(PAPER.compose, x4, unit), one(PAPER.compose, x, unit)) == unit
    # X^4 and X^4 + X^5 are one element; only the first is composed.
    assert cut(compose([0, 0, 0, 0, 1], unit, 7), PAPER) == one(PAPER.compose, x4, unit) == unit
    assert cut(compose([0, 0, 0, 0, 1, 1], unit, 7), PAPER) == [2, 0, 0, 0, 0]


@strategies.composite
def pairs(draw_from):
    ring = Ring(draw_from(strategies.sampled_from([2, 3, 5, 7])), draw_from(strategies.integers(1, 6)))
    element = strategies.lists(strategies.integers(0, ring.prime - 1), min_size=ring.degree, max_size=ring.degree)
    return ring, draw_from(element), draw_from(element)


@hypothesis.given(pairs())
@hypothesis.settings(max_examples=150, deadline=None)
def test_every_operation_is_what_whole_polynomials_give(drawn):
    ring, a, b = drawn
    assert one(ring.add, a, b) == add(a, b, ring.prime)
    assert one(ring.multiply, a, b) == cut(multiply(a, b, ring.prime), ring)
    assert one(ring.compose, a, b) == cut(compose(a, b, ring.prime), ring)  # Horner's rule against powers
    assert one(ring.add, a, one(ring.negate, a)) == [0] * ring.degree


@pytest.mark.parametrize("ring", [PAPER, Ring(5, 3), Ring(2, 1)], ids=str)
def test_values_are_those_that_a_reader_of_the_text_finds(ring):
    operations = np.arange(220) % 11
    expressions = draw(ring, operations, Bits(3, 1, 4))
    for row, count in enumerate(operations):
        assert evaluate(string(expressions, row), ring) == (expressions.values[row].tolist(), count)
    assert expressions.values.min() >= 0 and expressions.values.max() < ring.prime


def test_operators_operands_and_shapes_are_uniform():
    count = 40_000
    expressions = draw(PAPER, np.full(count, 3), Bits(1, 0, 0))
    written = [string(expressions, row) for row in range(count)]
    signs = np.array([sum(text.count(sign) for text in written) for sign in "-+*o"]) / (3 * count)
    np.testing.assert_allclose(signs, 1 / 4, atol=0.006)  # four standard deviations
    digits = np.array([sum(text.count(digit) for text in written) for digit in "0123456"])
    np.testing.assert_allclose(digits / digits.sum(), 1 / 7, atol=0.002)
    # Of two operations below a node with two operands the first has 0, 1 or 2.
    binary = [text for text in written if text[1] != "-"]
    first = [evaluate_first(text) for text in binary]
    np.testing.assert_allclose(np.bincount(first) / len(first), 1 / 3, atol=0.012)


def evaluate_first(text):
    """Returns how many operations the first operand has."""
    depth, count = 0, 0
    for character in text[1:]:
        depth += (character == "(") - (character == ")")
        count += character == "("
        if depth == 0 and character in ")+*o":
            return count
    raise AssertionError(text)


def test_random_numbers_are_those_of_the_key():
    limits = np.full((2, 3), 100)
    assert Bits(1, 2, 3).below(limits).tolist() == Bits(1, 2, 3).below(limits).tolist()
    assert Bits(1, 2, 3).below(limits).tolist() != Bits(1, 2, 4).below(limits).tolist()
    assert Bits(1, 2, 3).below(limits).tolist() == [[47, 88, 64], [5, 3, 49]]  # on every machine
