"""Sources of whole files: the standard library, and the text files of a folder or a glob."""

from __future__ import annotations

import difflib
import os
import pathlib
import re
import sysconfig
from collections.abc import Iterator, Sequence

from mtp_jax.config import DataConfig
from mtp_jax.data.sources.base import Document, register_source

SKIPPED_FOLDERS = ("__pycache__", "node_modules", "site-packages", "dist-packages")
STDLIB_SKIPPED_FOLDERS = ("test", "tests", "idle_test")
WILDCARDS = re.compile(r"[*?\[]")


@register_source("stdlib")
def stdlib(config: DataConfig) -> Sequence[Document]:
    """The running Python's own library source without its tests: real code that needs no download."""
    from etils import epath

    if config.path:
        raise ValueError(f"data.path={config.path!r} is not read by data.source='stdlib': set data.source='files' to "
                         "train on it, or leave data.path empty.")
    root = epath.Path(sysconfig.get_paths()["stdlib"])
    # _sysconfigdata and config-* describe the machine that built this Python, so that hashes would differ.
    documents = [_file(root, path) for path in _walk(root) if path.endswith(".py")
                 and not set(path.split("/")).intersection(STDLIB_SKIPPED_FOLDERS)
                 and not path.startswith(("_sysconfigdata", "config-"))]
    if not documents:
        raise ValueError(f"data.source='stdlib' found no .py files under {root}, the library of the running Python "
                         "(is it a zip, or compiled files only?): use data.source='files' with data.path.")
    return documents


@register_source("files")
def files(config: DataConfig) -> Sequence[Document]:
    """The text files of a folder, or those that a glob such as "src/**/*.py" matches; hidden ones are left out."""
    from etils import epath

    if not config.path:
        raise ValueError("data.path='' is empty, but data.source='files' reads it: set data.path to a folder or to a "
                         'glob such as "src/**/*.py".')
    path = epath.Path(config.path).expanduser()
    if path.is_file():
        return [_file(path.parent, path.name)]
    if path.is_dir():
        documents = [_file(path, name) for name in _walk(path)]
        if not documents:
            raise ValueError(f"data.path={config.path!r} is a folder without files (hidden ones do not count): "
                             "put text files into it, or name another folder.")
        return documents
    if not WILDCARDS.search(config.path):
        raise ValueError(f"data.path={config.path!r} does not exist.{nearest_sibling(path)} "
                         "Set it to a folder or a glob of text files.")
    root, pattern = _split_glob(path)
    if not root.is_dir():
        raise ValueError(f"data.path={config.path!r} searches in {root}, which does not exist."
                         f"{nearest_sibling(root)}")
    matches = _glob_to_regex(pattern).fullmatch
    documents = [_file(root, name) for name in _walk(root) if matches(name)]
    if not documents:
        raise ValueError(f"data.path={config.path!r} matches no file under {root}: * stays inside one folder, **/ "
                         "spans folders, and hidden files do not count.")
    return documents


def _file(root, relative: str) -> Document:
    """Returns the document of the file at `relative` under `root`."""
    return Document(name=relative, group=relative, read=(root / relative).read_bytes)


def _walk(root) -> Iterator[str]:
    """Yields the paths under `root`, relative and with slashes, of files that are neither hidden nor caches."""
    def plain(path) -> str:  # some bucket backends walk without the scheme that they were asked with
        return os.fspath(path).split("://")[-1].lstrip("/")

    local = "://" not in os.fspath(root)
    for folder, subfolders, names in root.walk():
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


def nearest_sibling(path) -> str:
    """Returns ` Did you mean "x"?` for the existing path that is closest to one that does not exist."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    found = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    return f' Did you mean "{path.parent / found[0]}"?' if found else ""
