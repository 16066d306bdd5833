"""A trained model from its workdir, with the heads that decoding uses and no others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from mtp_jax.checkpoints import CheckpointError, load_extra, load_params, structure
from mtp_jax.checkpoints.reading import finished_steps
from mtp_jax.config import Config, from_dict
from mtp_jax.data.sources.paths import nearest_sibling
from mtp_jax.data.tokenizer import Tokenizer, build_tokenizer
from mtp_jax.decoding.model import DecodingModel, check_loops, check_use
from mtp_jax.model import ModelSpec
from mtp_jax.model.heads import get_head_kind
from mtp_jax.model.redistribution import Redistribution
from mtp_jax.parallel import Layout, make_mesh
from mtp_jax.training import workdir as workdirs
from mtp_jax.training.state import flatten_params

_told: set[str] = set()  # workdirs whose lack of a tokenizer's hash was told


def load_model(workdir: epath.PathLike, *, heads: int | None = None, window: int | None = None,
               mesh: str | None = None, cache_dtype: str | None = None, tokenizer: str | Tokenizer | None = None,
               step: int | None = None, exit_threshold: float | None = None, loops: int | None = None,
               redistribution: Redistribution | None = None) -> DecodingModel:
    """Reads a trained model for decoding.

    Heads that are not asked for are neither read nor held, nor is the optimizer's state. (Anticausal heads stack from
    the last to the first: all of them are needed for any.)

    Args:
      workdir: folder of a run, here or in a bucket.
      heads: k, how many heads to load, from the first; 1 decodes without drafts. None: all.
      window: tokens of context, prompt and new ones together. None: data.seq_len, the length it was trained on.
      mesh: devices, such as "data:2,tensor:2", with the run's own rules for what is split. None: one device.
      cache_dtype: "float32" or "bfloat16", what keys and values are kept in. None: the model's own dtype.
      tokenizer: where the run's tokenizer lies now, or the tokenizer itself. None: where data.tokenizer says.
      step: of the checkpoint. None: the newest undamaged one.
      exit_threshold: of a looped trunk: each position leaves it after the first loop in which the exit gate's
        probability to have left is at least this, in (0, 1]. None: all loops are run, the gate is not asked.
      loops: of a looped trunk, how many loops to run at most. None: all that it was trained with.
      redistribution: of the first layer's activations (mtp_jax/model/redistribution.py). None: they stay as they are.

    Returns:
      The model, ready for `generate`.

    Raises:
      ValueError: the folder is no run's, its config.json is damaged, an argument does not fit it, or the tokenizer is
        not the one that it was trained with.
      CheckpointError: there is no checkpoint, or each is damaged.
    """
    folder = epath.Path(workdir).expanduser()
    run = read_run(folder, tokenizer=tokenizer, step=step)
    config = run.config
    heads = config.model.num_heads if heads is None else heads
    window = config.data.seq_len if window is None else window
    check_use(config.model, heads=heads, window=window, cache_dtype=cache_dtype or config.model.dtype)
    check_loops(config.model, loops=loops, exit_threshold=exit_threshold)
    if window > config.data.seq_len:
        logging.warning("window=%d is longer than the %d tokens of context that %s was trained on: what comes after "
                        "those may be poor.", window, config.data.seq_len, folder)
    layout = None if mesh is None else Layout.create(make_mesh(mesh), config.parallel.rules)
    spec = ModelSpec.create(config.model)
    rows = get_head_kind(config.model.head_kind).loaded(config.model.num_heads, heads)
    like = _wanted(spec, rows, layout)
    source = load_params(run.checkpoint, like=like, heads=rows, verify=config.checkpoint.verify)
    structure.check_same(
        structure.flatten(source.params), structure.flatten(like), where=f"The checkpoint {source.path}",
        remedy=f"{folder / workdirs.CONFIG_FILE} tells of another model: restore the one that training wrote, or "
               "delete it, for the checkpoints hold the same settings.")
    model = DecodingModel.from_params(spec, source.params, heads=heads, tokenizer=run.tokenizer, window=window,
                                      layout=layout, cache_dtype=cache_dtype, exit_threshold=exit_threshold,
                                      loops=loops)
    return dataclasses.replace(model.redistributing(redistribution), source=os.fspath(folder), step=source.step)


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a workdir says of its run.

    Attributes:
      checkpoint: what `load_params` is to read: the workdir, or one of its checkpoints.
      stored: config.json as it stands, with the facts beside the settings.
      config: the settings.
      tokenizer: the run's, checked.
    """

    checkpoint: epath.Path
    stored: Mapping[str, Any]
    config: Config
    tokenizer: Tokenizer


def read_run(folder: epath.Path, *, tokenizer: str | Tokenizer | None = None, step: int | None = None) -> SavedRun:
    """Reads what a workdir says of its run, and no array; arguments and errors are those of `load_model`."""
    path = _checkpoint(folder, step)
    stored = _stored(folder, path)
    config = _config(folder, stored)
    config.model.validate()
    return SavedRun(path, stored, config, _tokenizer(config, tokenizer, stored.get("tokenizer_hash") or None,
                                                          folder))  # "": converted from where none was told


def read_config(workdir: epath.PathLike) -> Config:
    """Returns the settings of a run that has saved.

    Raises:
      ValueError, CheckpointError: as `load_model`.
    """
    folder = epath.Path(workdir).expanduser()
    return _config(folder, _stored(folder, _checkpoint(folder, None)))


def _checkpoint(folder: epath.Path, step: int | None) -> epath.Path:
    """Returns what `load_params` is to read: the workdir, or one of its checkpoints."""
    if not folder.exists():
        raise ValueError(f"The workdir {folder} does not exist.{nearest_sibling(folder)} Name the --workdir of a run "
                         "that has trained.")
    steps = finished_steps(folder / workdirs.CHECKPOINTS)
    if not steps:
        raise CheckpointError(f"The workdir {folder} has no checkpoint: name the --workdir of a run that has saved "
                              "(every train.checkpoint_every steps and at its end), or start that run's command again.")
    if step is None:
        return folder
    if step not in steps:
        raise ValueError(f"step={step}, but {folder} has checkpoints of the steps {', '.join(map(str, steps))}: choose "
                         "one of these, or none to have the newest.")
    return folder / workdirs.CHECKPOINTS / str(step)


def _stored(folder: epath.Path, path: epath.Path) -> dict[str, Any]:
    """Returns the settings of config.json with the facts beside them, or those of the checkpoint where it is missing.

    Raises:
      ValueError: it is damaged.
    """
    stored = workdirs.read_config(folder)
    if stored is None:
        logging.warning("%s is missing; the checkpoint tells the settings.", folder / workdirs.CONFIG_FILE)
        extra = load_extra(path)
        stored = {**extra["config"], **{name: extra[name] for name in ("tokenizer_hash",) if name in extra}}
    return stored


def _config(folder: epath.Path, stored: Any) -> Config:
    """Returns the settings as a Config.

    Raises:
      ValueError: they are of another form than this version of mtp_jax writes and reads.
    """
    try:
        if not isinstance(stored, Mapping) or not isinstance(stored.get("model"), Mapping):
            raise ValueError("it has no section model")
        return from_dict({name: fields for name, fields in stored.items() if isinstance(fields, Mapping)})
    except ValueError as error:
        raise ValueError(f"{folder / workdirs.CONFIG_FILE} is damaged, or of a newer mtp_jax ({error}): restore it, "
                         "update mtp_jax, or delete the file, for the checkpoints hold the same settings.") from error


def _tokenizer(config: Config, given: str | Tokenizer | None, wanted: str | None, folder: epath.Path) -> Tokenizer:
    """Returns the run's tokenizer.

    Args:
      config: of the run.
      given: a tokenizer or its place, instead of config.data.tokenizer.
      wanted: hash of the one that the run trained with; None where an older mtp_jax did not note it.
      folder: the workdir, for messages.

    Raises:
      ValueError: it cannot be read, or is another than the run's.
    """
    if given is None or isinstance(given, str):
        name = given or config.data.tokenizer
        try:
            found = build_tokenizer(dataclasses.replace(config.data, tokenizer=name))
        except ValueError as error:
            remedy = f"Where it lies elsewhere now, name its place: --tokenizer=FILE; {folder} was trained with it."
            raise ValueError(str(error).replace("data.tokenizer=", "tokenizer=", 1) if given else
                             f"{error} {remedy}") from error
    else:
        name, found = type(given).__name__, given
    size = config.model.vocab_size or 0
    if wanted is None and str(folder) not in _told:
        _told.add(str(folder))
        logging.warning("%s does not say which tokenizer it was trained with (an older mtp_jax wrote it): taking %r, "
                        "of %d ids, for a vocabulary of %d.", folder, name, found.vocab_size, size)
    if wanted is None and found.vocab_size > size:
        raise ValueError(f"tokenizer={name!r} has {found.vocab_size} ids, more than the vocabulary of {size} of "
                         f"{folder}: it is another tokenizer. Name the run's own: --tokenizer=FILE.")
    if wanted is not None and found.hash != wanted:
        raise ValueError(f"tokenizer={name!r} has the hash {found.hash[:16]}, but {folder} was trained with another, "
                         f"{wanted[:16]} (data.tokenizer={config.data.tokenizer!r} then): its ids mean other text. "
                         "Name the run's own: --tokenizer=FILE.")
    return found


def _wanted(spec: ModelSpec, rows: int, layout: Layout | None) -> dict[str, Any]:
    """Returns shapes, dtypes and shardings of the parameters, those with an entry a head cut to the first `rows` heads.

    Decoding runs heads one after the other, so the axis of heads is not split, whatever the rules say of training.
    """
    axes, wanted = flatten_params(spec.axes), {}
    first_own = get_head_kind(spec.config.head_kind).first_own
    for name, leaf in structure.first_heads(structure.flatten(spec.shapes), rows, first_own).items():
        names = tuple(None if axis == "pred_heads" else axis for axis in axes[name])
        sharding = None if layout is None else layout.sharding(names, leaf.shape, name)
        wanted[name] = structure.placed(leaf, sharding)
    return structure.nest(wanted)
