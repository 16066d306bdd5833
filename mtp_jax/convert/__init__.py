"""Converting models: one file a format, each a table from our arrays to its names.

    from mtp_jax.convert import convert
    convert(src="runs/code_bytes", dst="exported", dst_format="hf")
"""

from __future__ import annotations

from typing import Any


def convert(**settings: Any) -> list[str]:
    """Converts a model; the settings are the flags of `python -m mtp_jax.convert`.

    Returns:
      Lines that tell how the result is used.

    Raises:
      ValueError: a setting, or what was found in the source, does not fit. Nothing is written then.
    """
    from mtp_jax.config import ConvertConfig
    from mtp_jax.convert import command  # imports that take seconds

    return command.convert(ConvertConfig(**settings))
