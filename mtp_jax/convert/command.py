"""What `python -m mtp_jax.convert` does: source, destination, and nothing half-written in between."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile

from absl import logging
from etils import epath

from mtp_jax.config import ConvertConfig
from mtp_jax.convert.formats import check_kind, get_format
from mtp_jax.data.sources.paths import nearest_sibling
from mtp_jax.files import REMOTE


def convert(options: ConvertConfig) -> list[str]:
    """Converts a model and returns lines that tell how the result is used.

    The destination is written under another name beside its place and renamed when all of it is there, so that what a
    killed command leaves is never taken for a model.

    Raises:
      ValueError: as `mtp_jax.convert.convert`.
    """
    options.validate()
    target = get_format("--dst_format", options.dst_format, reads=False)
    source = get_format("--src_format", options.src_format, reads=True)
    if REMOTE in options.dst or (REMOTE in options.src and options.src_format != "workdir"):
        raise ValueError(f"--{'dst' if REMOTE in options.dst else 'src'} lies in a bucket, where tensors cannot be "
                         "written or read in place: convert in a local folder and copy it. (A workdir may be read from "
                         "a bucket.)")
    # Where links lead: a link to a folder stays one.
    place, src = pathlib.Path(options.dst).expanduser().resolve(), pathlib.Path(options.src).expanduser()
    _check_destination(place, options.overwrite)
    if REMOTE in options.src:
        try:
            epath.Path(options.src).exists()
        except (KeyError, ImportError) as error:  # a kind that is not known, or whose library is not there
            raise ValueError(f"--src={options.src} cannot be read ({error}): install what is lacking, or copy the "
                             "workdir here.") from error
    else:
        if not src.exists():
            raise ValueError(f"--src={options.src} does not exist.{nearest_sibling(src)}")
        if place in (src.resolve(), *src.resolve().parents):
            raise ValueError(f"--dst={options.dst} holds --src={options.src}: name another folder.")
        if src.resolve() in place.parents and place.exists() and any(place.iterdir()):  # its checkpoints, perhaps
            raise ValueError(f"--dst={options.dst} is a part of --src={options.src} and not empty, so --overwrite "
                             "would destroy what is converted: name another folder.")
    model = source.read(src, options)
    if options.window is not None:
        model = dataclasses.replace(model, window=options.window)
    check_kind(model, options.dst_format)
    if options.heads is not None and options.heads > model.config.num_heads:
        raise ValueError(f"--heads={options.heads}, but {options.src} has {model.config.num_heads}.")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{place.name}.partial-", dir=place.parent) as temporary:
        folder, before = pathlib.Path(temporary) / "model", pathlib.Path(temporary) / "before"
        folder.mkdir()
        lines = target.write(model, folder, options)
        _check_destination(place, options.overwrite)  # writing may have taken an hour
        if place.exists():
            os.replace(place, before)
        try:
            os.replace(folder, place)
        except BaseException:
            if before.exists():
                os.replace(before, place)
            raise
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    logging.info("Wrote %s: %d files, %.1f MB.", place, sum(path.is_file() for path in place.rglob("*")), size / 1e6)
    return lines


def _check_destination(place: pathlib.Path, overwrite: bool) -> None:
    """Raises ValueError unless a folder may be put there."""
    if place.is_file():
        raise ValueError(f"--dst={place} is a file: name a folder.")
    if place.is_dir() and any(place.iterdir()) and not overwrite:
        raise ValueError(f"--dst={place} is not empty: name a new folder, or give --overwrite to replace it.")
    above = place.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"--dst={place} cannot be made in {above}: name a folder that you may write to.")
