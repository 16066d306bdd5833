"""Removes what a program left in its folder; loaded by path in the sandbox, as kernel.py is."""

from __future__ import annotations

import os

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def empty(folder: str) -> None:
    """Removes all that lies in a folder, however deep it goes and whatever rights it has; follows no link.

    A folder in a folder, 10,000 times, has no path that the system takes, and is deeper than Python recurses: one
    descriptor goes down and up again.

    Args:
      folder: of this process' own user, and no longer written by anybody else.
    """
    os.chmod(folder, 0o700)
    place = os.open(folder, _FOLDER)
    try:
        way = [("", _folders_left(place))]
        while True:
            name, inner = way[-1]
            if inner:
                name = inner.pop()
                os.chmod(name, 0o700, dir_fd=place)
                place = _move(place, name)
                way.append((name, _folders_left(place)))
            elif len(way) > 1:
                way.pop()
                place = _move(place, "..")
                os.rmdir(name, dir_fd=place)
            else:
                return
    finally:
        os.close(place)


def _move(place: int, name: str) -> int:
    """Returns a descriptor of a folder's neighbour in place of its own."""
    there = os.open(name, _FOLDER, dir_fd=place)
    os.close(place)
    return there


def _folders_left(place: int) -> list[str]:
    """Removes what is no folder, and returns the names of those."""
    folders = []
    with os.scandir(place) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=place)
    return folders
