"""Documents of TensorFlow Datasets, without tensorflow: an example is one, its text in the feature `data.field`."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.config import DataConfig, nearest
from mtp_jax.data.sources.base import Document, Piece, ranges, register_source, where
from mtp_jax.data.sources.fields import look_up, missing, names_of, no_string
from mtp_jax.data.sources.paths import is_remote, nearest_sibling, refuse

PIECE_BYTES = 32 * 1024**2
EXAMPLES = 1024  # read at a time; a read of few costs as much as one of many
INFO = "dataset_info.json"  # in the folder of every prepared dataset


@register_source("tfds")
def tfds(config: DataConfig) -> Sequence[Piece]:
    """The examples of a prepared dataset; each is a document, and a group of the split of its own.

    `data.path` is "name", "name/config:version" or the dataset's folder, with "#split" at the end for another than
    "#train"; a slice such as "#train[:80%]" is one too. Names are looked up in $TFDS_DATA_DIR, or in
    ~/tensorflow_datasets.
    """
    refuse(config, "extensions")
    name, _, split = config.path.partition("#")
    split = split or "train"
    if not name:
        raise ValueError(f"data.path={config.path!r} names no dataset, but data.source='tfds' reads it: set data.path "
                         'to a name such as "lm1b" or to the folder of a prepared dataset, with "#split" at the end.')
    if is_remote(name):
        raise ValueError(f"data.path={config.path!r} lies in a bucket, but its library reads local files only: copy "
                         "the folder to this machine, or mount the bucket, such as by gcsfuse.")
    builder = _builder(name, config)
    try:
        examples = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(
            f"data.path={config.path!r} is stored as {builder.info.file_format.value}, which needs tensorflow: add "
            f"ArrayRecord files by `tfds convert_format --dataset_version_dir={builder.data_path} "
            "--out_file_format=array_record`, where tensorflow is installed, or prepare it again with "
            'file_format="array_record".') from error
    except ValueError as error:
        splits = list(builder.info.splits)
        raise ValueError(f"data.path={config.path!r}: {split!r} is no split; there are {splits} and slices of them, "
                         f'such as "#{splits[0] if splits else "train"}[:80%]".{nearest(split, splits)}') from error
    _check_field(builder.info.features, config)
    total = max(builder.info.splits.total_num_examples, 1)
    size = builder.info.dataset_size * len(examples) // total
    count = min(max(-(-size // PIECE_BYTES), 1), len(examples))
    label = f"{builder.info.full_name}#{split}"
    return [Piece(label if count == 1 else f"{label}@{start:015d}", size * (stop - start) // len(examples),
                  functools.partial(_documents, os.fspath(builder.data_path), split, start, stop, config))
            for start, stop in ranges(len(examples), count)]


def _documents(folder: str, split: str, start: int, stop: int, config: DataConfig) -> Iterator[Document]:
    """Yields a document an example, named by its number in the split or slice."""
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(folder)
    examples = builder.as_data_source(split=split)
    for first in range(start, stop, EXAMPLES):
        try:
            read = examples.__getitems__(range(first, min(first + EXAMPLES, stop)))
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{where(config)}: the files in {folder} are cut short or damaged ({error}): prepare the "
                             "dataset again.") from error
        for index, example in enumerate(read, first):
            name = f"{builder.info.full_name}#{split}@{index}"
            yield Document(name, name, functools.partial(_text, look_up(example, config.field)))


def _text(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _builder(name: str, config: DataConfig) -> Any:
    """Returns the builder of a dataset that is prepared on this machine.

    Raises:
      ValueError: there is no such dataset, or it is not prepared.
    """
    import tensorflow_datasets
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    path = pathlib.Path(name).expanduser()
    folders = _prepared(path)
    if len(folders) == 1:
        return tensorflow_datasets.builder_from_directory(folders[0])
    if folders:
        raise ValueError(f"data.path={config.path!r} holds several datasets: name one of {folders[:8]}.")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"data.path={config.path!r} is not the folder of a prepared dataset: there is no {INFO} in it "
                         f"or in the folders of configs and versions below it.{nearest_sibling(path)}")
    home = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    data_dir = pathlib.Path(home).expanduser()
    try:
        builder = tensorflow_datasets.builder(name, data_dir=os.fspath(data_dir))
    except DatasetNotFoundError as error:
        base = name.split("/")[0].split(":")[0]
        there = [os.path.relpath(folder, data_dir) for folder in _prepared(data_dir / base)]
        if there:
            raise ValueError(f"data.path={config.path!r} is not in {data_dir}, but {there[:8]}: name a config and "
                             'version as in "name/config:version".') from error
        prepared = [folder.name for folder in data_dir.iterdir()] if data_dir.is_dir() else []
        known = [*prepared, *tensorflow_datasets.list_builders(with_community_datasets=False)]
        raise ValueError(f"data.path={config.path!r} is neither a prepared dataset in {data_dir} (set TFDS_DATA_DIR to "
                         "look elsewhere), nor a name that TensorFlow Datasets knows, nor the folder of a prepared "
                         f"one.{nearest(base, known)}") from error
    except (ValueError, AssertionError, ImportError) as error:  # a config, a version, or a library of its code
        raise ValueError(f"data.path={config.path!r} cannot be opened ({str(error).splitlines()[0]}): name a config "
                         "and version that exist, or the folder of the prepared dataset.") from error
    if not builder.is_prepared():
        raise ValueError(f"data.path={config.path!r} is not prepared in {data_dir}: prepare it there once, by "
                         f'`tensorflow_datasets.builder("{name}", data_dir="{data_dir}", file_format="array_record")'
                         ".download_and_prepare()` or by `tfds build --file_format=array_record`, which needs "
                         "tensorflow; or set TFDS_DATA_DIR to the folder where it is.")
    return builder


def _prepared(path: pathlib.Path) -> list[str]:
    """Returns the folders of prepared datasets that `path` is or holds: name/version or name/config/version."""
    for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}", f"*/*/*/{INFO}"):
        found = sorted(os.fspath(file.parent) for file in path.glob(pattern))
        if found:
            return found
    return []


def _check_field(features: Any, config: DataConfig) -> None:
    """Raises ValueError unless the feature exists and is one string."""
    place = f"An example of {where(config)}"
    fields = _plain(features)
    if not isinstance(fields, Mapping):
        raise no_string(config, place, f"{features} without fields")
    try:
        feature = look_up(fields, config.field)
    except KeyError:
        raise missing(config, place, sorted(names_of(fields))) from None
    if isinstance(feature, Mapping):
        raise no_string(config, place, f"the fields {sorted(feature)}")
    if tuple(feature.shape or ()) or np.dtype(feature.np_dtype).kind != "O":
        raise no_string(config, place, str(feature))


def _plain(feature: Any) -> Any:
    """Returns a dictionary of features as a plain one, and another feature as it is."""
    from tensorflow_datasets import features

    if isinstance(feature, features.FeaturesDict):
        return {name: _plain(inner) for name, inner in feature.items()}
    return feature
