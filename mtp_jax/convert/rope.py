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
      ValueError: a scaling that there is not here, one that lacks a number, or two that differ.
    """
    sets = [fields[name] for name in ("rope_scaling", "rope_parameters") if fields.get(name)]
    for given in sets:
        if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
            raise ValueError(f"{place}: the rotary angles {given} are not one set for all layers, which is what can be "
                             "read.")
    found = {name: value for given in sets for name, value in given.items()}
    kind = _kind(found)
    if len(sets) == 2 and (_kind(sets[0]) != _kind(sets[1]) or any(
            sets[0][name] != sets[1][name] for name in sets[0].keys() & sets[1].keys())):
        raise ValueError(f"{place}: rope_scaling={sets[0]} and rope_parameters={sets[1]} tell of different rotary "
                         "angles: keep the one that the model was trained with.")
    partial = found.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"{place}: partial_rotary_factor={partial}, and only models that rotate whole heads (1.0) can "
                         "be read.")
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise ValueError(f"{place} scales its rotary angles by {kind!r}, which is not known here: what can be read is "
                         f"default, linear and llama3.{nearest(str(kind), ('default', 'linear', 'llama3'))}")
    lacking = [name for name in _NUMBERS[kind] if found.get(name) is None]
    if lacking:
        raise ValueError(f"{place}: the scaling {kind!r} of its rotary angles has {found}, which lacks "
                         f"{', '.join(lacking)}: restore the file.")
    theta = number(found if "rope_theta" in found else fields, "rope_theta", place, default=10_000.0)
    numbers = {ours: number(found, theirs, place) for theirs, ours in _NUMBERS[kind].items()}
    return {"rope_theta": theta, "rope_scaling": kind,
            **{ours: int(value) if ours == "rope_original_window" else value for ours, value in numbers.items()}}


def _kind(found: Mapping[str, Any]) -> Any:
    """Returns the kind of a set of rotary angles, "none" where they are not scaled; None where it is not named."""
    kind = found.get("rope_type", found.get("type"))
    return "none" if kind == "default" or (kind is None and "factor" not in found) else kind
