"""The files that `data.path` names: one file, a folder, or a glob; local or in a bucket."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

from mtp_jax.config import DataConfig

SKIPPED_FOLDERS = ("__pycache__", "node_modules", "site-packages", "dist-packages", "lost+found")
WILDCARDS = re.compile(r"[*?\[]")

INSTEAD = {
    "path": "set data.source='files' to train on it, or leave data.path empty",
    "field": "leave it out, or set data.source to one that has fields, such as 'jsonl'",
    "extensions": 'leave it out, or choose the files by a glob in data.path, such as "folder/**/*.x"; only '
                  "data.source='files' reads endings",
    "validation_path": "leave it out: a share of the documents, data.validation_fraction, is held out",
}
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
LOGINS = {"gs": "log in with `gcloud auth application-default login` as someone who may read it",
          "s3": "give credentials that may read it, such as by `aws configure`",
          "hf": "log in with `hf auth login` as someone who may read it"}


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a corpus.

    Attributes:
      name: relative to the corpus's root, with slashes; the same on every machine.
      path: to open it by.
      size: bytes.
    """

    name: str
    path: str
    size: int


def refuse(config: DataConfig, *names: str) -> None:
    """Raises ValueError where one of these fields, which the source does not read, is set."""
    default = DataConfig()
    for name in names:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"data.{name}={getattr(config, name)!r} is not read by data.source={config.source!r}: "
                             f"{INSTEAD[name]}.")


def find_files(config: DataConfig, kind: str, endings: Sequence[str] = ()) -> list[File]:
    """Returns the files that `config.path` names; hidden ones and caches are left out of folders and globs.

    Args:
      config: of one source.
      kind: of the files, for messages, such as "text files".
      endings: of a folder, only files that end so are taken; a file or a glob is taken as it is named. (): all.

    Raises:
      ValueError: the path is empty, does not exist, or matches nothing.
    """
    from etils import epath

    if not config.path:
        raise ValueError(f"data.path='' is empty, but data.source={config.source!r} reads it: set data.path to a "
                         f'folder, a file, or a glob such as "src/**/*{(endings or [".py"])[0]}" of {kind}.')
    scheme = config.path.partition("://")[0]
    if is_remote(config.path) and scheme not in LIBRARIES:
        raise ValueError(f"data.path={config.path!r} cannot be read: {scheme}:// is none of "
                         f"{', '.join(f'{known}://' for known in LIBRARIES)}; copy it to this machine or to a bucket.")
    path = epath.Path(config.path).expanduser()
    if path.is_file():
        return _files(path.parent, [path.name])
    if path.is_dir():
        found = list(walk(path))
        if not found:
            raise ValueError(f"data.path={config.path!r} is a folder without files (hidden ones do not count): "
                             f"put {kind} into it, or name another folder.")
        if {"manifest.json", "train.index"}.issubset(found):
            raise ValueError(f"data.path={config.path!r} is a prepared corpus, of which data.source={config.source!r} "
                             "would take the held-out part for training: set data.source='prepared'.")
        names = [name for name in found if not endings or name.endswith(tuple(endings))]
        if not names:
            raise ValueError(f"data.path={config.path!r} is a folder without files that end in {', '.join(endings)}; "
                             f"those there end in {count_endings(found)}. Name another folder, or the {kind} by a "
                             "glob.")
        return _files(path, names)
    if not WILDCARDS.search(config.path):
        _raise_if_unreachable(path)
        raise ValueError(f"data.path={config.path!r} does not exist.{nearest_sibling(path)} "
                         f"Set it to a folder, a file or a glob of {kind}.")
    root, pattern = _split_glob(path)
    if not root.is_dir():
        _raise_if_unreachable(root)
        raise ValueError(f"data.path={config.path!r} searches in {root}, which does not exist."
                         f"{nearest_sibling(root)}")
    matches = _glob_to_regex(pattern).fullmatch
    names = [name for name in walk(root) if matches(name)]
    if not names:
        raise ValueError(f"data.path={config.path!r} matches no file under {root}: * stays inside one folder, **/ "
                         "spans folders, and hidden files do not count.")
    return _files(root, names)


def count_endings(names: Sequence[str]) -> str:
    """Returns the endings of these files with their counts, the most frequent ones first, for messages."""
    counts = collections.Counter(pathlib.PurePosixPath(name).suffix or "(none)" for name in names)
    most = [f"{ending} ({count:,})" for ending, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return ", ".join(most[:8] + ["..."] * (len(most) > 8))


def is_remote(path: str) -> bool:
    """Tells whether a path lies in a bucket."""
    return "://" in path


def open_binary(path: str) -> Any:
    """Returns the file at `path`, local or in a bucket, open for reading bytes."""
    from etils import epath

    return epath.Path(path).open("rb") if is_remote(path) else open(path, "rb")


def check_reachable(name: str, path: str) -> None:
    """Checks that the bucket of a path to write to answers; a local path is not looked at.

    Args:
      name: of the setting, for messages.
      path: need not exist.

    Raises:
      ValueError: its library is missing, or it refuses.
    """
    from etils import epath

    try:
        _raise_if_unreachable(epath.Path(path))
    except Exception as error:
        if not comes_from_storage(path, error):
            raise
        raise ValueError(f"{name}={path!r} cannot be written ({error}): {remedy(path, error)}.") from error


def comes_from_storage(path: str, error: Exception) -> bool:
    """Tells whether an error says that a file cannot be read, and not that the program is wrong.

    What libraries for buckets raise has no common class: ImportError without the library, OSError for most refusals,
    and for the rest the classes of their own HTTP clients. So all but Python's own other errors count there.
    """
    if isinstance(error, ValueError):
        return False
    return isinstance(error, OSError) or is_remote(path) and (
        isinstance(error, ImportError) or type(error).__module__ != "builtins")


def remedy(path: str, error: Exception) -> str:
    """Returns what a user can do about a file that cannot be read."""
    if not is_remote(path):
        return "make it readable for this user, move it out of the corpus, or name a glob that leaves it out"
    scheme = path.partition("://")[0]
    if isinstance(error, ImportError):
        return f"install the library that reads {scheme}:// paths, `pip install {LIBRARIES.get(scheme, 'fsspec')}`"
    return f"check the path and the network, and {LOGINS.get(scheme, 'give credentials that may read it')}"


def walk(root) -> Iterator[str]:
    """Yields the paths under `root`, relative and with slashes, of files that are neither hidden nor caches.

    Raises:
      OSError: a folder cannot be listed.
    """
    def refused(error: OSError) -> None:  # by default its files would be left out without a word
        if not isinstance(error, FileNotFoundError):
            raise error

    def plain(path) -> str:  # some bucket backends walk without the scheme that they were asked with
        return os.fspath(path).split("://")[-1].lstrip("/")

    local = not is_remote(os.fspath(root))
    for folder, subfolders, names in root.walk(on_error=refused):
        # Pruned in place where the file system allows it; the test below holds where it does not.
        subfolders[:] = [name for name in subfolders if not _skipped(name)]
        inside = pathlib.PurePosixPath(plain(folder)).relative_to(plain(root))
        if any(map(_skipped, inside.parts)):
            continue
        for name in names:
            relative = (inside / name).as_posix()
            # Sockets, broken links and links to folders are no files; in a bucket there are none, and asking is slow.
            if not name.startswith(".") and (not local or os.path.isfile(root / relative)):
                yield relative


def nearest_sibling(path) -> str:
    """Returns ` Did you mean "x"?` for the existing path that is closest to one that does not exist."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    siblings = [name for name in siblings if name != path.name]  # a link to nothing
    found = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    return f' Did you mean "{path.parent / found[0]}"?' if found else ""


def _files(root, names: Sequence[str]) -> list[File]:
    """Returns the files of these names under `root`."""
    paths = [root / name for name in names]
    if not is_remote(os.fspath(root)):
        return [File(name, os.fspath(path), os.stat(path).st_size) for name, path in zip(names, paths)]
    with futures.ThreadPoolExecutor(32) as executor:  # bucket libraries answer from the listing, or by a request each
        sizes = executor.map(lambda path: path.stat().length, paths)
        return [File(name, os.fspath(path), size or 0) for name, path, size in zip(names, paths, sizes)]


def _raise_if_unreachable(path) -> None:
    """Raises why a path of a bucket that seems not to exist cannot be read, for `is_dir` keeps that to itself."""
    if is_remote(os.fspath(path)):
        try:
            path.stat()
        except FileNotFoundError:
            return


def _skipped(folder: str) -> bool:
    """Tells whether a folder of this name is left out."""
    return folder.startswith(".") or folder in SKIPPED_FOLDERS


def _split_glob(path):
    """Returns (folder before the first wildcard, pattern relative to it)."""
    parts = path.parts
    first = next(i for i, part in enumerate(parts) if WILDCARDS.search(part))
    root = path
    for _ in parts[first:]:
        root = root.parent
    return root, "/".join(parts[first:])


def _glob_to_regex(pattern: str) -> re.Pattern[str]:
    """Returns the glob as a regex: * and ? stay inside a folder, ** spans folders. (epath's own glob has no **.)"""
    out, i = "", 0
    while i < len(pattern):
        bracket = re.compile(r"\[(!?)(\]?[^\]]*)\]").match(pattern, i)
        if pattern.startswith("**/", i):
            out, i = out + r"(?:[^/]+/)*", i + 3
        elif pattern.startswith("**", i):
            out, i = out + r".*", i + 2
        elif pattern[i] == "*":
            out, i = out + r"[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + r"[^/]", i + 1
        elif bracket:
            inside = bracket[2].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
            out, i = out + f"[{'^' if bracket[1] else ''}{inside}]", bracket.end()
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return re.compile(out, re.DOTALL)
