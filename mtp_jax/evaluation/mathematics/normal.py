r"""Answers in LaTeX brought to one form, so that the same answer written in two usual ways is the same text.

What counts as the same way is what the MATH data set's own comparison (Hendrycks et al. 2021) takes for it: spacing,
\left and \right, \dfrac and \tfrac, degrees, units behind the number, dollar and per cent signs, \frac12, \sqrt3, 1/2
and 0.5 for \frac{1}{2}, a leading 0, and "x=" before the answer. Further: an answer wholly in \text{} or \mbox{},
commas between groups of three digits, and braces around one letter of an index or power.

Texts are compared, and no values: 0.25 and \frac{1}{4} differ here (`lenient` compares values).
"""

from __future__ import annotations

import re

_DROPPED = ("\\!", "\\,", "\\;", "\\:", "\\ ", "~", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\degree", "\\$", "$",
            "\\%", "%", "\\displaystyle")
_WORDS = r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf)"
_WRAPPED = re.compile(_WORDS + r"\{([^{}]*)\}")
_UNITS = re.compile(r"(?<=[\d})])\s*(?:\\(?:text|mbox|mathrm)\{\s*[a-zA-Z][^{}]*\}\s*(?:\^\{?\d\}?)?)+$")
_THOUSANDS = re.compile(r"(-?\d{1,3})((?:,\d{3})+)(\.\d+)?")


def normal(answer: str) -> str:
    """Returns the one form of an answer in LaTeX, without spaces; for comparing, not for reading."""
    text = answer.strip().replace("\n", " ").replace("{,}", ",")
    text = text.replace("\\\\", "\\cr ")  # a matrix's line break is no escape
    for name in ("dfrac", "tfrac", "cfrac"):
        text = text.replace("\\" + name, "\\frac")
    for piece in _DROPPED:
        text = _without(text, piece)
    text = _UNITS.sub("", text.strip().rstrip("."))
    whole = _WRAPPED.fullmatch(text.strip())
    text = re.sub(r"\s+", "", whole[1] if whole else text)
    head, equals, tail = text.partition("=")
    if equals and "=" not in tail and 0 < len(head) <= 2:
        text = tail
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"(^|[^\d.])\.(?=\d)", r"\g<1>0.", text)
    thousands = _THOUSANDS.fullmatch(text)
    if thousands:
        text = text.replace(",", "")
    text = _braced(_braced(text, "\\sqrt", 1), "\\frac", 2)
    text = re.sub(r"^(-?)(\d+)/(-?\d+)$", r"\1\\frac{\2}{\3}", text)
    return "\\frac{1}{2}" if text == "0.5" else text


def _without(text: str, piece: str) -> str:
    """Drops a piece; one that ends in a letter only where the command ends there: \\left, not \\leftarrow."""
    if piece[-1].isalpha():
        return re.sub(re.escape(piece) + r"(?![a-zA-Z])", "", text)
    return text.replace(piece, "")


def _braced(text: str, command: str, arguments: int) -> str:
    """Puts braces around each argument of a command that is one letter or digit: \\frac12 is \\frac{1}{2}."""
    parts = text.split(command)
    for number in range(1, len(parts)):
        rest, done = parts[number], ""
        for _ in range(arguments):
            if rest.startswith("{"):
                end = _closing(rest)
                done, rest = done + rest[:end], rest[end:]
            elif rest and (rest[0].isalnum()):
                done, rest = f"{done}{{{rest[0]}}}", rest[1:]
            else:
                break
        parts[number] = done + rest
    return command.join(parts)


def _closing(text: str) -> int:
    """Returns where the braces that a text begins with end; its length where they do not."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return i + 1
    return len(text)


def strictly_equal(answer: str | None, reference: str) -> bool:
    """Tells whether an answer is the reference, but for how it is written; None, no answer, never is."""
    return answer is not None and normal(answer) == normal(reference)
