"""Files of safetensors, written and read tensor by tensor.

The library writes what is in memory all at once; here a tensor goes to its place in the file as it comes. The format:
eight bytes with the length of the header, the header in JSON (name -> dtype, shape, place), the numbers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CODES = {"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
         "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
         "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_)}
_NAMES = {dtype: code for code, dtype in CODES.items()}
_HEADER_LIMIT = 100_000_000  # bytes; the library's own


@dataclasses.dataclass(frozen=True)
class Info:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """A file, or several with an index, whose tensors come one at a time and in any order.

        with SafetensorsWriter(folder, infos, shard_bytes=5 * 10**9) as writer:
            writer.write(name, tensor)  # each once

    Args:
      folder: to write to.
      infos: name -> shape and dtype of every tensor that will come.
      shard_bytes: largest file, but for a tensor that is larger by itself.
      name: of a single file; of several it becomes "NAME-00001-of-00003.safetensors".
      index: write the index for a single file too.
      metadata: more of the header's facts, strings; "format": "pt", which older readers want, is always there.
    """

    def __init__(self, folder: pathlib.Path, infos: Mapping[str, Info], *, shard_bytes: int = 5 * 10**9,
                 name: str = SINGLE, index: bool = False, metadata: Mapping[str, str] | None = None):
        shards: list[list[str]] = [[]]
        size = 0
        for tensor, info in infos.items():
            if shards[-1] and size + info.nbytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(tensor)
            size += info.nbytes
        stem = name.removesuffix(".safetensors")
        files = [name] if len(shards) == 1 else [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
                                                 for i in range(1, len(shards) + 1)]
        self._infos, self._missing = dict(infos), set(infos)
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        self._files: list[BinaryIO] = []
        for file, tensors in zip(files, shards):
            header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
            offset = 0
            for tensor in tensors:
                info = infos[tensor]
                header[tensor] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape),
                                  "data_offsets": [offset, offset + info.nbytes]}
                offset += info.nbytes
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            handle = open(folder / file, "wb")
            self._files.append(handle)
            handle.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                self._places[tensor] = (handle, 8 + len(text) + header[tensor]["data_offsets"][0])
        if len(files) > 1 or index:
            weight_map = {tensor: file for file, tensors in zip(files, shards) for tensor in tensors}
            told = {"metadata": {"total_size": sum(info.nbytes for info in infos.values())}, "weight_map": weight_map}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Puts a tensor into its place.

        Raises:
          ValueError: it was not announced so.
        """
        info = self._infos[name]
        if tensor.shape != info.shape or tensor.dtype != info.dtype:
            raise ValueError(f"{name} was announced as {info.dtype}{list(info.shape)} and is {tensor.dtype}"
                             f"{list(tensor.shape)}.")
        handle, offset = self._places[name]
        handle.seek(offset)
        # Row by row where it is laid out otherwise: a copy of the whole would double what the largest tensor takes.
        rows = [tensor] if tensor.flags.c_contiguous or tensor.ndim < 2 else np.array_split(
            tensor, max(1, tensor.nbytes // 2**24))
        for part in rows:
            handle.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        self._missing.discard(name)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for handle in self._files:
            handle.close()
        if kind is None and self._missing:
            raise ValueError(f"{sorted(self._missing)} were announced and never came.")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Tensors on disk.

    Attributes:
      place: the file or folder, for messages.
      infos: name -> shape and dtype.
      places: name -> file and offset in it, bytes.
      metadata: of the headers.
    """

    place: str
    infos: Mapping[str, Info]
    places: Mapping[str, tuple[pathlib.Path, int]]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, read into memory of its own."""
        (path, offset), info = self.places[name], self.infos[name]
        with open(path, "rb") as handle:
            handle.seek(offset)
            raw = np.fromfile(handle, np.uint8, info.nbytes)
        if raw.size < info.nbytes:
            raise ValueError(f"{path} ends within {name}: it was cut off while it was being read.")
        return raw.view(info.dtype).reshape(info.shape)


def open_file(path: pathlib.Path) -> Tensors:
    """Reads the header of a file.

    Raises:
      ValueError: it is no safetensors file, is cut off, or has a dtype that is not known here.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ValueError(f"{path} is no safetensors file, or is cut off in its header ({size} bytes): copy it "
                             "again, whole.")
        try:
            header = json.loads(handle.read(length))
            metadata = header.pop("__metadata__", {})
            raw = {name: _facts(told) for name, told in header.items()}
            metadata = {str(name): str(value) for name, value in dict(metadata).items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no safetensors file: its header cannot be read ({error}).") from error
    infos, places, end = {}, {}, 0
    for name, (code, shape, begin, stop) in sorted(raw.items(), key=lambda item: item[1][2]):
        if code not in CODES:
            raise ValueError(f"{path}: {name} has the dtype {code}, and what can be read is {', '.join(CODES)}: "
                             "convert it to one of these first.")
        infos[name] = Info(shape, CODES[code])
        if stop - begin != infos[name].nbytes or begin != end:
            raise ValueError(f"{path} is damaged: {name} should have {infos[name].nbytes} bytes from {end} on, and its "
                             f"header says {begin} to {stop}.")
        places[name], end = (path, 8 + length + begin), stop
    if size != 8 + length + end:
        raise ValueError(f"{path} has {size} bytes and its header tells of {8 + length + end}: it is cut off or "
                         "damaged; copy it again, whole.")
    return Tensors(str(path), infos, places, metadata)


def _facts(told: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Returns what a header tells of a tensor: dtype, shape, first byte and end."""
    begin, stop = map(_whole, told["data_offsets"])
    return str(told["dtype"]), tuple(map(_whole, told["shape"])), begin, stop


def _whole(value: Any) -> int:
    """Returns a number of a header; ValueError unless it is whole and not below 0."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def open_folder(folder: pathlib.Path) -> Tensors:
    """Reads the headers of a folder's model.safetensors, or of the shards that its index lists.

    Raises:
      ValueError: neither is there, a shard is missing or not what the index says, or as `open_file`.
    """
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            found = sorted(path.name for path in folder.iterdir() if path.is_file())
            bins = " (pytorch_model*.bin runs code when it is read: save it as safetensors first)" * any(
                name.endswith(".bin") for name in found)
            raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}{bins}; it has "
                             f"{', '.join(found) or 'no file'}.")
        return dataclasses.replace(open_file(folder / SINGLE), place=str(folder))
    try:
        weight_map = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        away = [file for file in weight_map.values()
                if type(file) is not str or not file or pathlib.PurePath(file).name != file]
        if away:
            raise ValueError(f"{away[0]!r} is no name of a file in the folder")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error}): copy it again.") from error
    infos: dict[str, Info] = {}
    places: dict[str, tuple[pathlib.Path, int]] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).exists():
            raise ValueError(f"{folder} lacks {file}, which {INDEX} lists: copy the whole checkpoint.")
        shard = open_file(folder / file)
        infos.update(shard.infos)
        places.update(shard.places)
    lost = [name for name, file in weight_map.items() if name not in places or places[name][0].name != file]
    if lost:
        raise ValueError(f"{folder}: {INDEX} says that {lost[0]} is in {weight_map[lost[0]]}, where it is not.")
    return Tensors(str(folder), infos, places)
