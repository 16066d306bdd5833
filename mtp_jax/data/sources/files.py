"""Sources of whole files: the standard library, and the text files of a folder or a glob."""

from __future__ import annotations

import functools
import os
import pathlib
import sysconfig
from collections.abc import Iterator, Sequence

from mtp_jax.config import DataConfig
from mtp_jax.data.sources.base import Document, Piece, register_source
from mtp_jax.data.sources.paths import File, count_endings, find_files, open_binary, refuse, walk

STDLIB_SKIPPED_FOLDERS = ("test", "tests", "idle_test")


@register_source("stdlib")
def stdlib(config: DataConfig) -> Sequence[Piece]:
    """The running Python's own library source without its tests: real code that needs no download."""
    refuse(config, "path", "field", "extensions", "validation_path")
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    # _sysconfigdata and config-* describe the machine that built this Python, so that hashes would differ.
    names = [name for name in walk(_epath(root)) if name.endswith(".py")
             and not set(name.split("/")).intersection(STDLIB_SKIPPED_FOLDERS)
             and not name.startswith(("_sysconfigdata", "config-"))]
    if not names:
        raise ValueError(f"data.source='stdlib' found no .py files under {root}, the library of the running Python "
                         "(is it a zip, or compiled files only?): use data.source='files' with data.path.")
    return [_piece(File(name, os.fspath(root / name), os.stat(root / name).st_size)) for name in names]


@register_source("files")
def files(config: DataConfig) -> Sequence[Piece]:
    """The text files of a folder, or those that a glob such as "src/**/*.py" matches; hidden ones are left out."""
    refuse(config, "field")
    if not all(config.extensions):
        raise ValueError(f"data.extensions={config.extensions!r} has an empty one, which every name ends in: leave it "
                         "out.")
    found = find_files(config, "text files")
    kept = [file for file in found if not config.extensions or _ends_in(file.name, config.extensions)]
    if not kept:
        raise ValueError(f"data.extensions={config.extensions!r} leaves none of the {len(found):,} files of "
                         f"data.path={config.path!r}, which end in {count_endings([file.name for file in found])}: "
                         "name some of these endings.")
    return [_piece(file) for file in kept]


def _ends_in(name: str, endings: Sequence[str]) -> bool:
    """Tells whether a file has one of these endings; one without a dot, such as "py", is ".py" or the whole name."""
    last = name.rpartition("/")[2]
    return any(last == ending or last.endswith(ending if "." in ending else f".{ending}") for ending in endings)


def _piece(file: File) -> Piece:
    """Returns the piece of one file, which is one document."""
    return Piece(file.name, file.size, functools.partial(_documents, file), file.name)


def _documents(file: File) -> Iterator[Document]:
    yield Document(file.name, file.name, functools.partial(_read, file.path))


def _read(path: str) -> bytes:
    with open_binary(path) as file:
        return file.read()


def _epath(path: pathlib.Path):
    from etils import epath

    return epath.Path(path)
