"""Numbers in running text: "$1,450.00", "20%", "-3", "3/4"."""

from __future__ import annotations

import re
from fractions import Fraction

# A minus behind a digit, letter or bracket is a subtraction; a comma counts inside a number only before three digits.
_NUMBER = re.compile(r"(?:(?<![\w).])-\s?)?[$€£]?\s?(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
                     r"(?:/(?P<under>\d+)(?![\d/]))?")
LONGEST = 60  # digits: a longer row of them is no number, and Python would not read a very long one


def last_number(text: str) -> Fraction | None:
    """Returns the last number of a text; None where there is none.

    Currency and per cent signs, commas between thousands and zeros at the end do not count: "$1,450.00" is 1450 and
    "20%" is 20. A fraction of whole numbers, "3/4", is one number.
    """
    every = list(_NUMBER.finditer(text))
    if not every:
        return None
    found = every[-1]
    digits, under = found["digits"].replace(",", ""), found["under"] or "1"
    if len(digits) + len(under) > LONGEST:
        return None
    number = Fraction(digits)
    if int(under) == 0:
        return None
    sign = -1 if found[0].lstrip().startswith("-") else 1
    return sign * number / int(under)


def written(number: Fraction | None) -> str | None:
    """Returns a number as text for a results file: "18", "2.5", "1/3"; None for none."""
    if number is None:
        return None
    short = Fraction(repr(float(number))) if abs(number) < 10**15 else number
    if number.denominator == 1 or short != number:
        return str(number)
    return f"{float(number):.15g}"
