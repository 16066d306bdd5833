"""The formats by name. One file a format; this one imports none of them before it is asked for.

A format's module has

    HEAD_KINDS                         the head kinds that it can hold
    write(model, folder, options)      fills an empty folder; returns lines that tell how the result is used
    read(path, options) -> Model       where the format can be read
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Sequence
from typing import Protocol, cast

from mtp_jax.config import ConvertConfig, check_choice
from mtp_jax.convert.model import Model

FORMATS = {
    "workdir": "mtp_jax.convert.workdir",
    "hf": "mtp_jax.convert.hf",
    "hf_parallel": "mtp_jax.convert.hf_parallel",
    "hf_mtp": "mtp_jax.convert.hf_mtp",
    "medusa": "mtp_jax.convert.medusa",
    "meta": "mtp_jax.convert.meta",
    "fast_llm": "mtp_jax.convert.fast_llm",
    "gguf": "mtp_jax.convert.gguf",
    "stablehlo": "mtp_jax.convert.stablehlo",
}
ANY_TRUNK = ("workdir", "stablehlo")  # hold trunks that others' transformers cannot be
READABLE = ("workdir", "hf", "hf_parallel", "meta", "fast_llm")


class Format(Protocol):
    """What a format's module offers; `read` only where READABLE says so."""

    HEAD_KINDS: Sequence[str]

    def write(self, model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
        """Writes a model into an empty folder."""
        ...

    def read(self, path: pathlib.Path, options: ConvertConfig) -> Model:
        """Opens a model."""
        ...


def get_format(flag: str, name: str, *, reads: bool) -> Format:
    """Returns a format's module.

    Args:
      flag: that named it, for messages.
      name: of the format.
      reads: whether it is to be read.

    Raises:
      ValueError: unknown, with the nearest; or it can be written only.
    """
    check_choice(flag, name, FORMATS)
    if reads and name not in READABLE:
        raise ValueError(f"{flag}={name} can be written and not read: choose one of {', '.join(READABLE)}.")
    return cast(Format, importlib.import_module(FORMATS[name]))


def check_kind(model: Model, name: str) -> None:
    """Raises ValueError where a format cannot hold the model's trunk or heads; says which can."""
    kind = model.config.head_kind
    if name not in ANY_TRUNK and (model.config.loops > 1 or model.config.sandwich_norm):
        trunk = (f"a looped trunk (model.loops={model.config.loops})" if model.config.loops > 1 else
                 "norms behind attention and MLP (model.sandwich_norm=True)")
        raise ValueError(f"--dst_format={name} cannot hold {trunk}: choose {', '.join(ANY_TRUNK)}.")
    own = get_format("--dst_format", name, reads=False).HEAD_KINDS
    if kind in own:
        return
    able = [other for other in FORMATS if kind in get_format("--dst_format", other, reads=False).HEAD_KINDS]
    raise ValueError(f"--dst_format={name} cannot hold heads of the kind {kind!r} (it holds {', '.join(own)}): choose "
                     f"{', '.join(able)}.")
