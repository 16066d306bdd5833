"""A run's folder: which run it belongs to, and what may change when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

import mtp_jax
from mtp_jax import files
from mtp_jax.checkpoints import load_extra
from mtp_jax.config import Config, differences, dumps, free_on_resume, with_defaults

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
PLACES = ("path", "validation_path", "tokenizer")  # of data: where it lies; the hash tells whether it is the same


def read_config(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns what config.json holds, or None if there is none.

    Raises:
      ValueError: the file is damaged.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or delete it, for the checkpoints hold the same "
                         "settings.") from error


def check_folder(workdir: epath.Path) -> None:
    """Raises ValueError unless `workdir` is a folder or can become one."""
    place = workdir
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.exists() and not place.is_dir():
        raise ValueError(f"--workdir={workdir} cannot be a folder, for {place} is a file: name another.")


def check_identity(workdir: epath.Path, config: Config, corpus_hash: str) -> None:
    """Checks that a workdir with a checkpoint belongs to the run that is to go on in it, and tells what changed.

    Args:
      workdir: the run's folder.
      config: of this run, with the vocabulary size resolved.
      corpus_hash: of this run's corpus.

    Raises:
      ValueError: fields that make up the run's identity differ; names each with both values.
    """
    stored = read_config(workdir)
    if stored is None:
        extra = load_extra(workdir)
        logging.warning("%s is missing; the newest checkpoint tells whose run this is.", workdir / CONFIG_FILE)
        stored = {**extra["config"], "corpus_hash": extra["corpus_hash"]}
    changed = differences(with_defaults(stored), config)  # what did not exist when it was written was as by default
    if stored.get("corpus_hash") != corpus_hash:
        changed["corpus_hash"] = (stored.get("corpus_hash"), corpus_hash)
    fixed = fixed_fields(changed)
    if fixed:
        lines = "".join(f"\n  {name}: the workdir has {old!r}, this run {new!r}" for name, (old, new) in fixed.items())
        hint = (" The corpus itself changed: its files or the tokenizer's were edited, or another Python brought "
                "another standard library."
                if set(fixed) == {"corpus_hash"} else "")
        raise ValueError(f"--workdir={workdir} holds another run:{lines}\nSet these as they were, or use another "
                         f"--workdir; init_from.path starts a new run from these parameters.{hint}")
    for name, (old, new) in changed.items():
        logging.info("Changed since the workdir's last run: %s from %r to %r.", name, old, new)
    if "train.num_steps" in changed:
        follow = [f"optimizer.schedule={config.optimizer.schedule!r}"] if (
            config.optimizer.schedule != "constant" and not config.optimizer.schedule_steps) else []
        follow += [f"objective.schedule={config.objective.schedule!r}"] if (
            config.objective.schedule != "constant" and not config.objective.schedule_steps) else []
        for name in follow:
            logging.warning("train.num_steps went from %r to %r, and %s spans train.num_steps: the schedule jumps. Set "
                            "its schedule_steps to keep it as it was.", *changed["train.num_steps"], name)


def fixed_fields(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Returns those of the changed fields that make up a run's identity.

    Args:
      changed: {dotted name: (old, new)}, and "corpus_hash" where the corpus itself is another; without it, fields that
        say where the data lie may change.
    """
    same = "corpus_hash" not in changed
    return {name: values for name, values in changed.items()
            if not free_on_resume(name) and not (same and _only_moved(name, *values))}


def _only_moved(name: str, old: Any, new: Any) -> bool:
    """Tells whether a field that changed says no more than where the data lie."""
    if name != "data.mixture":
        return name in [f"data.{place}" for place in PLACES]
    parts = [[{key: value for key, value in part.items() if key not in PLACES} for part in mixture]
             for mixture in (old, new)]
    return parts[0] == parts[1]


def write_config(workdir: epath.Path, config: Config, *, corpus_hash: str, tokenizer_hash: str) -> None:
    """Writes config.json, whole or not at all."""
    text = dumps(config, version=mtp_jax.__version__, corpus_hash=corpus_hash, tokenizer_hash=tokenizer_hash)
    files.replace(workdir / CONFIG_FILE, text.encode())
