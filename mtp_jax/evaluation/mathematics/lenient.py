r"""Answers compared by value: 0.25 and \frac{1}{4}, 1\frac{4}{5} and 9/5, (1, \frac12) and (1, 0.5) are equal here.

A small reader of numbers in LaTeX: + - * / ^, fractions, mixed numbers, roots, pi and brackets. It computes with
fractions as long as all is rational, and reads nothing else: no variables, no functions.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from mtp_jax.evaluation.mathematics.normal import normal, strictly_equal

MOST = 200  # characters of an answer that is read as a number
DEEPEST = 40  # brackets in each other
_TOKEN = re.compile(r"\\[a-zA-Z]+|\d+(?:\.\d+)?|[-+*/^(){}\[\]]")
_SIGNS = {"\\cdot": "*", "\\times": "*", "\\div": "/"}
_WORD = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf)\{([^{}]*)\}")
_OPEN, _CLOSE = "([{", ")]}"

Number = Fraction | float


class _NoNumberError(ValueError):
    """A text is no number that is read here."""


def value(text: str) -> Number | None:
    r"""Returns the number that a text in LaTeX stands for; None where it stands for none that is read here.

    A fraction is exact where no root, pi or power with a broken exponent is in it.
    """
    form = normal(text)
    if len(form) > MOST:
        return None
    tokens = _TOKEN.findall(form)
    if "".join(tokens) != form or not tokens:
        return None
    try:
        reader = _Reader([_SIGNS.get(token, token) for token in tokens])
        number = reader.sum()
        return number if reader.place == len(reader.tokens) and math.isfinite(number) else None
    except (_NoNumberError, ZeroDivisionError, OverflowError):
        return None


class _Reader:
    """Reads tokens from left to right; each method reads one kind of expression and returns its value."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place, self.depth = tokens, 0, 0

    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next()
        self.place += 1
        return token

    def sum(self) -> Number:
        number = self.product()
        while self.next() in ("+", "-"):
            number = number + self.product() if self.take() == "+" else number - self.product()
        return number

    def product(self) -> Number:
        number = self.signed()
        while self.next() and self.next() not in ("+", "-", ")", "}", "]"):
            if self.next() in ("*", "/"):
                number = number * self.signed() if self.take() == "*" else number / self.signed()
            elif self.next().replace(".", "").isdigit():
                raise _NoNumberError  # two numbers side by side
            else:
                number = number * self.power()
        return number

    def signed(self) -> Number:
        if self.next() in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        return self.power()

    def power(self) -> Number:
        base = self.one()
        if self.next() != "^":
            return base
        self.take()
        exponent = self.group() if self.next() in ("{", "(") else self.one()
        if math.fabs(exponent) > 64 or isinstance(base, Fraction) and not _small(base):
            raise _NoNumberError  # no answer is that large, and it would take long
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return base ** int(exponent)
        if base < 0:
            raise _NoNumberError
        return float(base) ** float(exponent)

    def one(self) -> Number:
        token = self.next()
        if token in ("(", "{", "["):
            return self.group()
        self.take()
        if token.replace(".", "").isdigit():
            whole = Fraction(token)
            if "." not in token and self.next() == "\\frac":
                broken = self.one()  # a mixed number, not a product
                if not isinstance(broken, Fraction) or not 0 < broken < 1:
                    raise _NoNumberError
                return whole + broken
            return whole
        if token == "\\pi":
            return math.pi
        if token == "\\frac":
            return self.group() / self.group()
        if token == "\\sqrt":
            degree: Number = self.group() if self.next() == "[" else Fraction(2)
            inside = self.group()
            if inside < 0 or degree <= 0:
                raise _NoNumberError
            return _exact_root(inside) if degree == 2 else float(inside) ** (1 / float(degree))
        raise _NoNumberError

    def group(self) -> Number:
        self.depth += 1
        start = self.take()
        if start not in ("(", "{", "[") or self.depth > DEEPEST:
            raise _NoNumberError
        number = self.sum()
        if self.take() != _CLOSE[_OPEN.index(start)]:
            raise _NoNumberError
        self.depth -= 1
        return number


def _small(number: Fraction) -> bool:
    """Tells whether powers of a fraction can be formed quickly."""
    return abs(number.numerator) <= 10**6 and number.denominator <= 10**6


def _exact_root(number: Number) -> Number:
    """Returns the square root, exact where it is a fraction."""
    if isinstance(number, Fraction):
        root = Fraction(math.isqrt(number.numerator), math.isqrt(number.denominator))
        if root * root == number:
            return root
    return math.sqrt(number)


def leniently_equal(answer: str | None, reference: str) -> bool:
    r"""Tells whether an answer has the reference's value, or says the same words.

    Numbers are equal by value (irrational ones to nine digits); lists, points, intervals and sets item by item, with
    the same brackets; units and "x =" or "x \in" before the answer, case, and the brackets of a choice such as (C) are
    ignored. All that is strictly equal is leniently so.
    """
    if answer is None:
        return False
    if strictly_equal(answer, reference):
        return True
    first, second = _bare(answer), _bare(reference)
    return first == second or _same_value(first, second)


def _bare(text: str) -> str:
    """Returns the lower-case text without what stands before = or \\in, and without words behind a number."""
    text = normal(re.sub(r"^[a-zA-Z]\s*(?:=|\\in(?![a-zA-Z]))", "", text.strip().strip("$").strip()))
    number = re.match(r"(.*\d[})]*)" + _WORD.pattern + r"(?:\^\{?\d\}?)?$", text)
    text = number[1] if number else _WORD.sub(r"\1", text)
    choice = re.fullmatch(r"\(([a-zA-Z])\)", text)
    return (choice[1] if choice else text).lower()


def _same_value(first: str, second: str) -> bool:
    """Compares two numbers, or two lists of them item by item."""
    items = [_items(text) for text in (first, second)]
    if len(items[0]) > 1 or len(items[1]) > 1:
        ends = [(text[0], text[-1]) if text[0] in _OPEN + "\\" else ("", "") for text in (first, second)]
        return len(items[0]) == len(items[1]) and ends[0] == ends[1] and all(
            a == b or _same_value(a, b) for a, b in zip(*items))
    a, b = value(first), value(second)
    if a is None or b is None:
        return False
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return math.isclose(a, b, rel_tol=1e-9)


def _items(text: str) -> list[str]:
    """Returns what stands between the commas of a list, outside of all brackets but those around the list."""
    inside = text
    for start, end in (("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), ("\\{", "\\}")):
        if text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end):
            inside = text[len(start):-len(end)]
            break
    items, depth = [""], 0
    for letter in inside:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return items if depth == 0 and all(items) else [text]
