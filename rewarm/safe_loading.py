"""Reads untrusted files: only regular files of a limited size, and JSON without ambiguities.

The errors raised here are `OSError` and `ValueError` with the reason only; the caller adds the name
of the file and what to try.
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

AnyModel = TypeVar("AnyModel", bound=BaseModel)

_MAX_BYTES = 16_000_000
_MAX_DEPTH = 32
_MAX_DIGITS = 40
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
# Suffixes of the files that are read from a model directory or copied from it into checkpoints.
_CHECKED_SUFFIXES = {".json", ".safetensors", ".bin", ".txt", ".yaml", ".yml", ".pt"}


def read_limited(path: Path, max_bytes: int = _MAX_BYTES) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: the file does not exist, or cannot be read.
        ValueError: the file is larger than `max_bytes`, or is not a regular file (reading a pipe
            could block forever).
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes")
    return data


def read_json(path: Path, max_bytes: int = _MAX_BYTES) -> Any:
    """Returns the data in a JSON file.

    Raises:
        OSError: the file does not exist, or cannot be read.
        ValueError: the file is not regular, is too large, or is not JSON that `parse_json` accepts.
    """
    return parse_json(read_limited(path, max_bytes))


def read_json_as(model_class: type[AnyModel], path: Path) -> AnyModel:
    """Returns the data in a JSON file as an instance of a pydantic model.

    Raises:
        OSError: the file does not exist, or cannot be read.
        ValueError: as in `read_json`, or the data is not valid for `model_class`; the message names
            the first problem.
    """
    try:
        return model_class.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(first_validation_error(error)) from None


def first_validation_error(error: ValidationError) -> str:
    """Returns the first problem as `path.in.the.data: what is wrong there`."""
    first = error.errors()[0]
    location = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")  # pydantic's prefix says nothing
    return f"{location}: {message}" if location else message


def parse_json(data: bytes) -> Any:
    """Returns the data in a JSON document; refuses JSON that parsers may read differently.

    Raises:
        ValueError: `data` is not JSON in UTF-8, is nested too deeply, or contains a duplicate key
            in an object, a number with too many digits or a number that is not finite.
    """
    try:
        parsed = json.loads(
            data.decode(),
            object_pairs_hook=_refuse_duplicate_keys,
            parse_int=_parse_integer,
            parse_float=_parse_finite,
            parse_constant=_parse_finite,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from None
    _check_depth(parsed)
    return parsed


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{key!r} is a duplicate key in one object")
    return parsed


def _parse_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number with {len(text):,} digits")
    return int(text)


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def is_plain_file_name(name: str) -> bool:
    """Returns whether a name is a plain file name, and not a path to another folder."""
    return bool(_PLAIN_NAME.fullmatch(name))


def check_files_inside(folder: Path) -> None:
    """Checks that the files of a folder are regular files inside it, not pipes or links out of it.

    A link out of a model directory could make rewarm read a private file, and copy it into a
    checkpoint that is published. Links within the hub's cache are allowed: its snapshots are links
    to blobs, in the model's cache folder or one level above.

    Raises:
        CheckpointError: a file is not regular, or is a link out of the folder.
        OSError: `folder` is not a folder, or cannot be read.
    """
    folder_path = folder.resolve()
    allowed = [folder_path]
    for parent in folder_path.parents:
        if parent.name == "snapshots":
            allowed += [parent.parent / "blobs", parent.parent.parent / "blobs"]
    for path in sorted(folder.iterdir()):
        if path.suffix not in _CHECKED_SUFFIXES or path.is_dir():
            continue
        if not path.is_file():
            raise CheckpointError(
                f"{path}: not a regular file, or a broken link; replace it with the file itself"
            )
        target = Path(os.path.realpath(path))
        if not any(target.is_relative_to(root) for root in allowed):
            raise CheckpointError(
                f"{path}: a link out of its folder, to {target}; replace it with the file itself"
            )
