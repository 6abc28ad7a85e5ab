"""The paths in recipes and studies: relative to the folder of the file that they are written in.

```
 recipe.yaml  shards: ../data/x    -> relative to the folder of recipe.yaml
 study.yaml   an arm's shards: x   -> relative to the folder of study.yaml
 --set data.train.x.shards=data/x  -> relative to the working directory
```
In older recipes all of them are relative to the working directory: a path that exists only there is
refused, so that such a recipe neither reads other data nor starts a second run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rewarm.paths import expand_path, short_path
from rewarm.recipe.yaml_document import KeyPath, YamlDocument

Pattern = tuple[str, ...]

_ANY = "*"
_BASE = ("model", "base")
RECIPE_PATHS: tuple[Pattern, ...] = (
    ("run",),
    _BASE,
    ("model", "tokenizer"),
    ("data", "train", _ANY, "shards"),
    ("data", "validation", _ANY, "shards"),
    ("tasks", "include"),
)
STUDY_PATHS: tuple[Pattern, ...] = (("study",), ("recipe",), ("bases", _ANY))

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def resolve_paths(
    document: YamlDocument, settings: tuple[Pattern, ...], *, planned: Collection[str] = ()
) -> list[str]:
    """Makes the paths in a document absolute, and returns its problems, one line each.

    Args:
        document: the document, which is changed.
        settings: its settings that are paths: RECIPE_PATHS or STUDY_PATHS.
        planned: run directories that need not exist yet, which `model.base` may name.
    """
    problems = []
    for key_path, section, key in _path_settings(document.data, settings):
        written, folder = section[key], document.folder_of(key_path)
        if not isinstance(written, str) or not _is_path(key_path, written):
            continue
        source = f"{document.source_location(key_path)}: {'.'.join(map(str, key_path))}"
        if key_path in (("run",), ("study",)) and "://" in written:
            problems.append(f"{source}: should be a folder on this machine (got {written!r:.60})")
            continue
        try:
            path, in_working_directory = expand_path(written, folder), expand_path(written)
        except ValueError as error:
            problems.append(f"{source}: {error}")
            continue
        is_there = _exists(key_path, path) or _without_reference(path) in planned
        if (
            not is_there
            and in_working_directory != path
            and _exists(key_path, in_working_directory)
        ):
            right = os.path.relpath(in_working_directory, folder)
            problems.append(f"{source}: {_doubt(key_path, written, path, right)}")
        elif (
            key_path == ("run",)
            and _is_in_run_directory(document)
            and os.path.realpath(path) != os.path.realpath(folder)
        ):
            run = short_path(str(folder.absolute()))
            problems.append(
                f"{source}: {short_path(path)} is another directory, and this is the recipe that "
                f"rewarm saved in the run {run}, which was moved or copied; continue it with "
                f"--set run={run}, or name a new run directory with --set run=DIR"
            )
        elif is_there or not _is_hub_name(key_path, written):
            section[key] = path
    return problems


def make_paths_absolute(document: YamlDocument, folder: Path) -> None:
    """Makes the paths in a saved recipe absolute that are relative to `folder`.

    A path that does not exist there stays as it is.
    """
    for key_path, section, key in _path_settings(document.data, RECIPE_PATHS):
        written = section[key]
        if isinstance(written, str) and _is_path(key_path, written):
            path = os.path.normpath(Path(folder, written))
            if _exists(key_path, path):
                section[key] = path


def is_run_directory(directory: str | Path) -> bool:
    """Returns whether a folder has checkpoints or metrics of a run."""
    folder = Path(directory)
    try:
        has_metrics = (folder / "metrics.jsonl").is_file() and (folder / "lock").is_file()
        return has_metrics or any((folder / "checkpoints").glob(f"step-{8 * '[0-9]'}*"))
    except (OSError, ValueError):  # not a path of this system
        return False


def _path_settings(
    data: Any, settings: tuple[Pattern, ...]
) -> Iterator[tuple[KeyPath, dict[str, Any], str]]:
    """Yields the key path of each path setting, the section that contains it, and its key there."""
    for pattern in settings:
        yield from _find_settings(data, pattern, ())


def _find_settings(
    section: Any, pattern: Pattern, outer: KeyPath
) -> Iterator[tuple[KeyPath, dict[str, Any], str]]:
    if not isinstance(section, dict):
        return
    for key in [*section] if pattern[0] == _ANY else [pattern[0]] if pattern[0] in section else []:
        if len(pattern) == 1:
            yield (*outer, key), section, key
        else:
            yield from _find_settings(section[key], pattern[1:], (*outer, key))


def _is_path(key_path: KeyPath, written: str) -> bool:
    """Returns whether a value is a path; a URL or a command is left to validation."""
    if not written or "\0" in written:
        return False
    if key_path == _BASE:
        return "://" not in written
    if key_path[0] == "data":
        return not (_SCHEME.match(written) or "::" in written or written.startswith("!"))
    return True


def _is_hub_name(key_path: KeyPath, written: str) -> bool:
    return key_path == _BASE and _HUB_NAME.fullmatch(written) is not None


def _without_reference(path: str) -> str:
    """Returns the run directory in a checkpoint reference, RUN@40000."""
    return path.rpartition("@")[0] or path


def _exists(key_path: KeyPath, path: str) -> bool:
    """Returns whether a path setting names something that exists."""
    if key_path == ("run",):
        return is_run_directory(path)
    if key_path[0] == "data":  # some shards of a folder: data/x/{00000..00003}.tar
        path = re.split(r"/[^/]*[{*?\[]", path)[0]
    try:
        return Path(path).exists() or (
            key_path == _BASE and Path(_without_reference(path)).is_dir()
        )
    except (OSError, ValueError):  # not a path of this system
        return False


def _is_in_run_directory(document: YamlDocument) -> bool:
    """Returns whether a document with its own `run` is the recipe.yaml of a run directory."""
    return (
        document.folder_of(("run",)) == document.folder
        and Path(document.source).name == "recipe.yaml"
        and is_run_directory(document.folder)
    )


def _doubt(key_path: KeyPath, written: str, path: str, right: str) -> str:
    """Returns why a path is refused that exists only relative to the working directory."""
    missing = "has no run" if key_path == ("run",) else "does not exist"
    return (
        f"a path in a file is relative to the file's folder, where {short_path(path)} {missing}; "
        f"in the working directory {written} does exist: write {right}, or use --set "
        f"{'.'.join(map(str, key_path))}={written}"
    )
