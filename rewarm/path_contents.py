"""What is at a path, in words: an error says what was found where something else was expected."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from rewarm.errors import did_you_mean


class PathContents(NamedTuple):
    """What is at a path, for a message: `PATH: WHAT; expected ...INSTEAD`."""

    what: str
    """`a folder of shards`, `a run directory`, `no such folder`."""
    instead: str = ""
    """`; name data/train or data/val`: what was probably meant; empty if that is not known."""


Expected = Literal["shards", "runs"]
FILE, OTHER_FOLDER = "a file", "a folder of something else"
"""What a path is at which there is nothing that rewarm wrote."""


def describe_path(path: Path, *expected: Expected) -> PathContents:
    """Returns what is at a path, by the names of files there; none is read.

    Args:
        path: the path.
        expected: what should be there, and so what may be named instead.
    """
    try:
        if path.is_dir():
            return _describe_folder(path, expected)
        if path.exists():
            return _describe_file(path)
    except (OSError, ValueError):  # not a path of this system, or not readable
        pass
    return PathContents(no_such_folder(path), nearest_name(path))


def no_such_folder(path: Path) -> str:
    """Returns `no such folder`, with the whole path that was looked for if `path` is relative."""
    return "no such folder" if path.is_absolute() else f"no such folder ({path.absolute()})"


def nearest_name(path: Path) -> str:
    """Returns `; did you mean 'runs/base'?` with what a missing path probably means.

    It is the end of the path, if that exists (the working directory is one of its folders), or the
    most similar name beside it. An empty string if there is neither.
    """
    ends = (Path(*path.parts[start:]) for start in range(1, len(path.parts)))
    try:
        if not path.is_absolute() and (end := next((end for end in ends if end.exists()), None)):
            return f"; did you mean {str(end)!r}?"
        beside = [other.name for other in path.parent.iterdir() if other.name[0] != "."]
    except (OSError, ValueError):
        return ""
    folder = "" if path == Path(path.name) else f"{path.parent}/"
    return did_you_mean(path.name, beside, prefix=folder)


def _describe_folder(path: Path, expected: Sequence[Expected]) -> PathContents:
    if (path / "index.json").is_file():
        return PathContents("a folder of shards")
    if (path / "MANIFEST.json").is_file():
        return PathContents("a checkpoint")
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        return PathContents("a run directory")
    if (path / "config.json").is_file():
        return PathContents("a folder of a model")
    indices = sorted(chain(path.glob("*/index.json"), path.glob("*/*/index.json")))
    if indices:
        folders = [str(index.parent) for index in indices]
        name = " or ".join(folders) if len(folders) < 4 else f"one, such as {folders[0]}"
        instead = f"; name {name}" if "shards" in expected else ""
        return PathContents("a folder with shards in its subfolders", instead)
    if runs := sorted(path.glob("*/checkpoints")):
        instead = f"; name one, such as {runs[0].parent}" if "runs" in expected else ""
        return PathContents("a folder of runs", instead)
    if runs := sorted(path.glob("*/*/checkpoints")):
        instead = f"; name a run, such as {runs[0].parent}" if "runs" in expected else ""
        return PathContents("a folder of a study, or of runs in subfolders", instead)
    return PathContents(OTHER_FOLDER if any(path.iterdir()) else "an empty folder")


def _describe_file(path: Path) -> PathContents:
    if path.suffix in (".yaml", ".yml"):
        return PathContents("a YAML file, such as a recipe or a study")
    if path.suffix == ".tar" and (path.parent / "index.json").is_file():
        return PathContents("a shard", f"; name its folder, {path.parent}")
    return PathContents(FILE)
