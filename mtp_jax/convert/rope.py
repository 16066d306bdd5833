"""How configs of Hugging Face tell the rotary angles, in the words of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtp_jax.config import ModelConfig, nearest
from mtp_jax.convert.fields import number

# Their names of the numbers of a scaling -> ours.
_NUMBERS = {
    "none": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {"factor": "rope_factor", "low_freq_factor": "rope_low_freq_factor",
               "high_freq_factor": "rope_high_freq_factor",
               "original_max_position_embeddings": "rope_original_window"},
}


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of a config.json: "rope_parameters" is version 5's, the other two version 4's."""
    scaling = {theirs: getattr(config, ours) for theirs, ours in _NUMBERS[config.rope_scaling].items()}
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    return {"rope_theta": config.rope_theta,
            "rope_scaling": {"rope_type": kind, **scaling} if scaling else None,
            "rope_parameters": {"rope_type": kind, "rope_theta": config.rope_theta, **scaling}}


def from_fields(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Returns rope_* of our ModelConfig for the fields of a config.json, in either version's words.

    Args:
      fields: of the file.
      place: the file, for messages.

    Raises:
      ValueError: a scaling that there is not here, or one that lacks a number.
    """
    found = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(found, Mapping) or any(isinstance(value, Mapping) for value in found.values()):
        raise ValueError(f"{place}: the rotary angles {found} are not one set for all layers, which is what can be "
                         "read.")
    partial = found.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"{place}: partial_rotary_factor={partial}, and only models that rotate whole heads (1.0) can "
                         "be read.")
    kind = found.get("rope_type", found.get("type")) or "default"
    kind = "none" if kind == "default" else kind
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise ValueError(f"{place} scales its rotary angles by {kind!r}, which is not known here: what can be read is "
                         f"default, linear and llama3.{nearest(str(kind), _NUMBERS)}")
    lacking = [name for name in _NUMBERS[kind] if found.get(name) is None]
    if lacking:
        raise ValueError(f"{place}: the scaling {kind!r} of its rotary angles has {found}, which lacks "
                         f"{', '.join(lacking)}: restore the file.")
    theta = number(found if "rope_theta" in found else fields, "rope_theta", place, default=10_000.0)
    numbers = {ours: number(found, theirs, place) for theirs, ours in _NUMBERS[kind].items()}
    return {"rope_theta": theta, "rope_scaling": kind,
            **{ours: int(value) if ours == "rope_original_window" else value for ours, value in numbers.items()}}
