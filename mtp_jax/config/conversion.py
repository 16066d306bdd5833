"""Between a Config, nested dicts (config.json), and the ConfigDict that absl flags override."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from mtp_jax.config.checks import nearest
from mtp_jax.config.sections import Config

# Dotted names that may differ between a workdir's config.json and the run that goes on. All others are identity.
FREE_ON_RESUME = ("compute", "checkpoint", "init_from", "parallel", "logging", "train.num_steps",
                  "train.checkpoint_every", "train.validate_every", "data.num_workers", "data.validation_batches")


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"section.field": value} of a config or of its dict, with lists as tuples."""
    def frozen(value):
        if isinstance(value, Mapping):
            return {name: frozen(inner) for name, inner in value.items()}
        return tuple(frozen(v) for v in value) if isinstance(value, (list, tuple)) else value

    sections = to_dict(config) if isinstance(config, Config) else config
    return {f"{section}.{name}": frozen(value) for section, fields in sections.items() if isinstance(fields, Mapping)
            for name, value in fields.items()}


def differences(old: Config | Mapping[str, Any], new: Config | Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {"section.field": (old value, new value)} of the fields that differ."""
    before, after = flatten(old), flatten(new)
    return {name: (before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)}


def with_defaults(values: Mapping[str, Any], cls: Any = Config) -> dict[str, Any]:
    """Returns the dict of an older config.json with the fields that it lacks, in entries of lists too, as defaults."""
    hints, found = typing.get_type_hints(cls), dict(values)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        entry = next((inner for inner in typing.get_args(hint) if dataclasses.is_dataclass(inner)), None)
        if dataclasses.is_dataclass(hint):
            found[field.name] = with_defaults(values.get(field.name, {}), hint)
        elif entry is not None:
            found[field.name] = tuple(with_defaults(part, entry) for part in values.get(field.name, ()))
        elif field.default is not dataclasses.MISSING:
            found.setdefault(field.name, field.default)
    return found


def free_on_resume(name: str) -> bool:
    """Tells whether the dotted field `name` may change when a workdir is resumed."""
    return name in FREE_ON_RESUME or name.split(".")[0] in FREE_ON_RESUME


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the config as nested dicts that json can write."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """Builds a Config from nested dicts, such as those of config.json.

    Args:
      values: {section: {field: value}}; what is left out takes its default.

    Returns:
      The config, not yet validated.

    Raises:
      ValueError: an unknown section or field (the nearest known one is named), or a value of the wrong type.
    """
    sections = {field.name: field for field in dataclasses.fields(Config)}
    built = {}
    for section, fields in values.items():
        if section not in sections:
            raise ValueError(f"config.{section} is unknown.{nearest(section, sections)}")
        if not isinstance(fields, Mapping):
            raise ValueError(f"config.{section}={fields!r} must hold fields, such as {{...}}.")
        built[section] = _build(section, type(sections[section].default), fields)
    return Config(**built)


def _build(where: str, cls: Any, values: Any) -> Any:
    """Returns a dataclass from {field: value}, or raises ValueError."""
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}={values!r} must hold fields, such as {{'name': ...}}"
                         f"{'; are quotes and brackets all there?' if isinstance(values, str) else ''}.")
    hints = {field.name: typing.get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
    required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
    for name in values:
        if name not in hints:
            raise ValueError(f"config.{where}.{name} is unknown.{nearest(name, hints)}")
    for name in required:
        if name not in values:
            raise ValueError(f"config.{where}: {dict(values)!r} has no {name!r}.")
    return cls(**{name: _coerce(f"{where}.{name}", value, hints[name]) for name, value in values.items()})


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the type that the field declares, or raises ValueError."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if hint is Any:
        return tuple(value) if isinstance(value, list) else value
    if dataclasses.is_dataclass(hint):
        return _build(name, hint, value)
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            inner = typing.get_args(hint)
            if inner[-1] is Ellipsis:
                inner = (inner[0],) * len(value)
            if len(inner) != len(value):
                raise ValueError(f"{name}={value!r} must have {len(inner)} entries.")
            return tuple(_coerce(name, v, h) for v, h in zip(value, inner))
        raise ValueError(f"{name}={value!r} must be a list.")
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{name}={value!r} must be of type {origin.__name__}, got {type(value).__name__}.")


def default_config():
    """Returns the defaults as a locked ConfigDict, for an experiment's get_config to change."""
    return to_config_dict(Config())


def to_config_dict(config: Config):
    """Returns a locked ml_collections.ConfigDict for absl flags; a None field accepts a value of its declared type."""
    from ml_collections import config_dict  # the edge only: GPU images without it still train from Python

    root = config_dict.ConfigDict()
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        hints = typing.get_type_hints(type(part))
        node = config_dict.ConfigDict()
        for field in dataclasses.fields(part):
            value, hint = getattr(part, field.name), hints[field.name]
            if isinstance(hint, types.UnionType):
                kind = next(arg for arg in typing.get_args(hint) if arg is not type(None))
                reference = config_dict.placeholder(kind)
                reference.set(value)
                node[field.name] = reference
            else:
                node[field.name] = value
        root[section.name] = node
    return root.lock()


def from_config_dict(values) -> Config:
    """Builds a Config from a ConfigDict made by `to_config_dict`; sections that it does not know are refused.

    Raises:
      ValueError: an unknown section or field, or a value of the wrong type.
    """
    return from_dict({section: {name: values[section][name] for name in values[section]} for section in values})


def dumps(config: Config, **extra: Any) -> str:
    """Returns the text of config.json: every section, and `extra` facts (version, corpus hash) at the top level."""
    return json.dumps({**to_dict(config), **extra}, indent=2) + "\n"
