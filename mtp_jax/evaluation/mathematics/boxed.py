r"""The answer of a text that ends in \boxed{...}."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\f?boxed(?![a-zA-Z])|\\fbox(?![a-zA-Z])")


def last_boxed(text: str) -> str | None:
    r"""Returns what stands in the last \boxed{...} or \fbox{...} of a text, or the digit or word of a bare \boxed 5.

    Braces inside are matched, and \{ and \} are none. None: there is no box, or the last one is empty or never closed,
    as where a text was cut: an earlier box is not taken for it.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    rest = text[boxes[-1].end():].lstrip()
    inside = group(rest) if rest.startswith("{") else re.split(r"[\s$]", rest, maxsplit=1)[0].rstrip(".,;")
    return inside.strip() or None if inside is not None else None


def group(text: str) -> str | None:
    r"""Returns what stands in the braces that a text begins with; None: they are not closed."""
    depth, i = 0, 0
    while i < len(text):
        if text[i] == "\\":
            i += 2  # \{ and \} are letters of the answer, and \\ is no escape of what follows it
            continue
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[1:i]
        i += 1
    return None
