"""Reads what strangers wrote: files that are files, of a sensible size; JSON that says one thing.

Errors here are `OSError` and `ValueError`, with the reason alone: the caller knows which file it
wanted and what to advise.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rewarm.errors import CheckpointError

Document = TypeVar("Document", bound=BaseModel)

_MAX_BYTES = 16_000_000
_MAX_DEPTH = 32
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
# The kinds of files that are read from a model folder, or copied from it into checkpoints.
_READ = {".json", ".safetensors", ".bin", ".txt", ".yaml", ".yml", ".pt"}


def read_bytes(path: Path, most: int = _MAX_BYTES) -> bytes:
    """Returns what a file holds.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not a file (a pipe would wait for ever), or larger than `most` bytes.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most:,} bytes")
    return data


def read_json(path: Path, most: int = _MAX_BYTES) -> Any:
    """Returns the data in a JSON file.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not a file, too large, or not JSON as `parse_json` wants it.
    """
    return parse_json(read_bytes(path, most))


def read_json_as(kind: type[Document], path: Path) -> Document:
    """Returns a JSON file as what it should be.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: as from `read_json`, or it is something else; the first problem is named.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def first_problem(error: ValidationError) -> str:
    """Returns `place.in.the.data: what is wrong there`."""
    first = error.errors()[0]
    at = ".".join(map(str, first["loc"]))
    return f"{at}: {first['msg']}" if at else first["msg"]


def parse_json(data: bytes) -> Any:
    """Returns the data in JSON of which every reader sees the same.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested deeply, or holds a key twice in one object or
            a number that is endless or not finite.
    """
    try:
        parsed = json.loads(
            data.decode(),
            object_pairs_hook=_each_key_once,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from None
    level = [parsed]
    for _ in range(_MAX_DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    return parsed


def is_plain_file_name(name: str) -> bool:
    """Returns whether a name is that of a file in the same folder, and no path to elsewhere."""
    return bool(_PLAIN_NAME.fullmatch(name))


def check_files_inside(folder: Path) -> None:
    """Makes sure that the files of a folder lie in it: no links out of it, pipes or devices.

    A link could have rewarm read what it was never given, and copy it into a checkpoint that is
    published. The hub's cache keeps snapshots of links to blobs, beside them or one level up.

    Raises:
        CheckpointError: one of them does not.
        OSError: it is no folder, or cannot be read.
    """
    home = folder.resolve()
    own = [home]
    for above in home.parents:
        if above.name == "snapshots":
            own += [above.parent / "blobs", above.parent.parent / "blobs"]
    for path in sorted(folder.iterdir()):
        if path.suffix not in _READ or path.is_dir():
            continue
        if not path.is_file():
            raise CheckpointError(
                f"{path}: not a file, or a link to nothing; put the file itself in its place"
            )
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(one) for one in own):
            raise CheckpointError(
                f"{path}: a link out of its folder, to {real}; put the file itself in its place"
            )


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{key!r} is there twice in one object")
    return found


def _whole(written: str) -> int:
    if len(written) > 40:
        raise ValueError(f"a number of {len(written):,} digits")
    return int(written)


def _finite(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise ValueError(f"{written} is not a finite number")
    return number
