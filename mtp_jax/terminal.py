"""What is asked of a terminal before a progress bar or colours are put on it."""

from __future__ import annotations

import os
from typing import Any, TextIO


def bar_size(stream: TextIO) -> dict[str, Any]:
    """Returns how large tqdm is to make a bar: as the terminal is, or of a fixed size where it does not say.

    On a terminal of no lines, as in some containers, tqdm would hide its bar.
    """
    try:
        sized = os.get_terminal_size(stream.fileno()).lines > 0
    except OSError:
        sized = False
    return {"dynamic_ncols": True} if sized else {"ncols": 100, "nrows": 24}


def wants_colour(stream: TextIO) -> bool:
    """Tells whether to write colours: on a terminal, unless NO_COLOR is set; anywhere if FORCE_COLOR is."""
    if os.environ.get("FORCE_COLOR"):
        return True
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()
