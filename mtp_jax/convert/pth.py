"""Files of `torch.save` that hold tensors by name, read and written without torch, tensor by tensor.

Such a file is a zip archive: `data.pkl`, a pickle of the names and shapes, and one stored entry a storage. A pickle can
call anything; this one may build dicts and tensors, and whatever else it names is refused before it is looked up.
"""

from __future__ import annotations

import collections
import io
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mtp_jax.convert.safetensors_file import Info, Tensors

STORAGES = {"FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
            "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "DoubleStorage": np.dtype(np.float64),
            "LongStorage": np.dtype(np.int64), "IntStorage": np.dtype(np.int32)}
_NAMES = {dtype: name for name, dtype in STORAGES.items()}
_ROOT = "archive"


class _Storage(NamedTuple):  # tuples: what a pickle makes of them it cannot change later
    """What a pickle says of a storage."""

    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """What a pickle says of a tensor."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands for torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor of it has no storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(tensor: Any, *_: Any) -> Any:
    """Stands for torch._utils._rebuild_parameter."""
    return tensor


_ALLOWED = {("torch._utils", "_rebuild_tensor_v2"): _rebuild, ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): collections.OrderedDict,
            **{("torch", name): name for name in STORAGES}}


class _Refused(ValueError):
    """A pickle that names what it may not."""


class _Damaged(ValueError):
    """A pickle that cannot be read."""


class _Unpickler(pickle.Unpickler):
    """Builds dicts and `_Tensor`s, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            if module == "torch" and name.endswith("Storage"):
                raise pickle.UnpicklingError(f"it holds a torch.{name}, and what can be read is {', '.join(STORAGES)}")
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in STORAGES:
            raise pickle.UnpicklingError("it names what is no storage")
        return _Storage(str(pid[2]), STORAGES[pid[1]])


def open_pth(path: pathlib.Path) -> Tensors:
    """Reads names, shapes and places of the tensors of a file; runs no code that it names.

    Raises:
      ValueError: the file is cut off or of an older format, its pickle names anything but tensors and dicts, or a
        tensor does not lie as one block of a known dtype.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
            entries = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
            if "data.pkl" not in entries:
                raise ValueError(f"{path} is a zip archive without data.pkl, which torch.save writes: name "
                                 "another file.")
            for entry in entries.values():
                _check_plain(entry, path)
            if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
                raise ValueError(f"{path} was written on a big-endian machine: save it again on a little-endian one.")
            found = _unpickle(archive.read(entries["data.pkl"]))
            starts = {name.removeprefix("data/"): (_start(raw, entry, path), entry.file_size)
                      for name, entry in entries.items() if name.startswith("data/")}
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f"{path} ({size} bytes) is no zip archive, so it is cut off or from before torch 1.6 "
                         f"({error}): copy it again, whole, or load it and save it with a newer torch.") from error
    except _Refused as error:
        raise ValueError(f"{path} names {error} in its pickle, which weights have no need of and which could run code: "
                         "it is refused. Take the checkpoint from a source that you trust, as safetensors.") from error
    except _Damaged as error:
        raise ValueError(f"{path}: data.pkl is damaged, or is no dict of tensors that are known here ({error}): copy "
                         "it again, or save it in another dtype.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} and no dict of tensors: name a state dict.")
    infos, places = {}, {}
    for name, tensor in found.items():
        infos[name], places[name] = _locate(path, str(name), tensor, starts)
    return Tensors(str(path), infos, places)


def _check_plain(entry: zipfile.ZipInfo, path: pathlib.Path) -> None:
    """Raises ValueError for an entry whose bytes are not in the file as they are."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        how = "encrypted" if entry.flag_bits & 1 else "compressed"
        raise ValueError(f"{path}: {entry.filename} is {how}, which torch.save never does: save it again.")


def _unpickle(data: bytes) -> Any:
    """Returns what a pickle builds.

    Raises:
      _Refused: it names what it may not.
      _Damaged: it cannot be read.
    """
    try:
        for code, argument, _ in pickletools.genops(data):
            # Python's memo grows to the number that is named, so that a few bytes would take all memory.
            if "PUT" in code.name and argument is not None and int(argument) > len(data):
                raise pickle.UnpicklingError(f"{code.name} {argument} in a pickle of {len(data)} bytes")
        return _Unpickler(io.BytesIO(data)).load()
    except _Refused:
        raise
    except (pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, KeyError, IndexError,
            OverflowError, MemoryError, RecursionError) as error:
        raise _Damaged(str(error) or type(error).__name__) from error


def _start(raw: io.BufferedReader, entry: zipfile.ZipInfo, path: pathlib.Path) -> int:
    """Returns where an entry's bytes begin in the file."""
    raw.seek(max(0, entry.header_offset))
    header = raw.read(30)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if entry.header_offset < 0 or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"{entry.filename} is not where the archive says")
    return entry.header_offset + 30 + lengths


def _locate(path: pathlib.Path, name: str, tensor: Any, starts: Mapping[str, tuple[int, int]]
            ) -> tuple[Info, tuple[pathlib.Path, int]]:
    """Returns shape, dtype and place of a tensor.

    Raises:
      ValueError: it is none, or does not lie as one block inside its storage.
    """
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"{path}: {name} is a {type(tensor).__name__} and no tensor: name a plain state dict.")
    storage = tensor.storage
    info = Info(tensor.shape, storage.dtype)
    strides = [math.prod(tensor.shape[i + 1:]) for i in range(len(tensor.shape))]
    if len(tensor.strides) != len(strides) or any(
            length > 1 and given != wanted for length, given, wanted in zip(tensor.shape, tensor.strides, strides)):
        raise ValueError(f"{path}: {name} does not lie as one block (strides {list(tensor.strides)}): save it "
                         "contiguous, as .contiguous() makes it.")
    begin, there = starts.get(storage.key, (0, 0))
    offset = tensor.offset * storage.dtype.itemsize
    if min(offset, *tensor.shape, 0) < 0 or there < offset + info.nbytes:
        raise ValueError(f"{path}: {name}, {list(tensor.shape)} from byte {offset} on, needs {offset + info.nbytes} "
                         f"bytes of data/{storage.key}, which has {there}: the file is damaged; copy it again.")
    return info, (path, begin + offset)


class PthWriter:
    """A file as `torch.save` makes one of a dict of tensors; `torch.load(path, weights_only=True)` reads it.

        with PthWriter(path) as writer:
            writer.write(name, tensor)

    Args:
      path: of the file.
    """

    def __init__(self, path: pathlib.Path):
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._pickled = bytearray(b"\x80\x02}(")  # protocol 2, an empty dict, a mark
        self._count = 0

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Puts a tensor behind those that are there."""
        key, shape = str(self._count), tensor.shape
        strides = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
        storage = (_text("storage") + f"ctorch\n{_NAMES[tensor.dtype]}\n".encode() + _text(key) + _text("cpu")
                   + _number(tensor.size))
        self._pickled += (_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"(" + storage + b"tQ" + _number(0)
                          + _tuple(shape) + _tuple(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tR")
        with self._archive.open(_entry(f"data/{key}"), "w", force_zip64=True) as handle:
            rows = [tensor] if tensor.flags.c_contiguous or tensor.ndim < 2 else np.array_split(
                tensor, max(1, tensor.nbytes // 2**24))
            for part in rows:
                handle.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        self._count += 1

    def __enter__(self) -> PthWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._archive.writestr(_entry("data.pkl"), bytes(self._pickled) + b"u.")
            self._archive.writestr(_entry("byteorder"), b"little")
            self._archive.writestr(_entry("version"), b"3\n")
        self._archive.close()


def _entry(name: str) -> zipfile.ZipInfo:
    """Returns an entry of the archive without the time of day, so that the same tensors make the same file."""
    return zipfile.ZipInfo(f"{_ROOT}/{name}")


def _text(text: str) -> bytes:
    """Returns the pickle of a string."""
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _number(number: int) -> bytes:
    """Returns the pickle of an integer, below 2^31 as torch writes it."""
    if number < 2**31:
        return b"J" + number.to_bytes(4, "little", signed=True)
    data = pickle.encode_long(number)
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(numbers: tuple[int, ...]) -> bytes:
    """Returns the pickle of a tuple of integers."""
    return b"(" + b"".join(map(_number, numbers)) + b"t"
