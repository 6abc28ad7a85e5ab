"""Paths as people write them: relative to a folder, or to a home; and as people read them."""

from __future__ import annotations

import os
import re
from pathlib import Path

WORKING_DIRECTORY = Path()
"""What a path on the command line is relative to."""


def expand_path(written: str, folder: Path = WORKING_DIRECTORY) -> str:
    """Returns a written path as an absolute one.

    Args:
        written: the path; `~` or `~user` at its start is a home.
        folder: what it is relative to.

    Raises:
        ValueError: there is no such user.
    """
    joined = str(folder.absolute() / expand_user(written))
    normal = os.path.normpath(joined)
    try:
        # `link/..` is the folder above the link's target, which normpath does not know.
        return normal if os.path.realpath(normal) == os.path.realpath(joined) else joined
    except (OSError, ValueError):  # not a path of this system: what opens it reports it
        return normal


def expand_user(written: str) -> str:
    """Returns a path with the home that `~` or `~user` at its start stands for.

    Raises:
        ValueError: there is no such user.
    """
    try:
        return str(Path(written).expanduser()) if written.startswith("~") else written
    except RuntimeError:
        user = written.partition("/")[0]
        raise ValueError(
            f"{user} at the start of a path is a user's home, and there is no such user; write the "
            f"whole path, or ./{written} for a folder of that name"
        ) from None


def short_path(path: str) -> str:
    """Returns an absolute path inside the working directory relative to it, and others unchanged.

    So messages stay short, and examples print the same in every folder.
    """
    if not path.startswith("/"):
        return path
    try:
        folder = str(Path.cwd())
    except OSError:  # it was deleted
        return path
    return "." if path == folder else path.removeprefix(folder.rstrip("/") + "/")


def expand_home(word: str) -> str:
    """Returns a word of the command line with the home in its path: ~/x, --out=~/x, NAME=~/x.

    A shell does so at the start of a word only. `~` alone is YAML's null.

    Raises:
        ValueError: there is no such user.
    """
    match = re.fullmatch(r"((?:[\w.-]+=)*)(~[^/=]*/.*)", word, re.DOTALL)
    return match[1] + expand_user(match[2]) if match else word
