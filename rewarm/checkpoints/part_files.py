"""Names of the tensor files of a checkpoint: one file, or a part from each process that wrote it.

`model.safetensors`, or `model-00001-of-00004.safetensors` and so on, as Hugging Face names them;
and the same for `optimizer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

MODEL, OPTIMIZER = "model", "optimizer"


def part_name(stem: str, number: int, count: int) -> str:
    """Returns the name of a part, from 0 on, of `count`."""
    suffix = "" if count == 1 else f"-{number + 1:05d}-of-{count:05d}"
    return f"{stem}{suffix}.safetensors"


def part_names(names: Iterable[str], stem: str) -> list[str]:
    """Returns the names of all parts among the names of a checkpoint's files, in order.

    Raises:
        ValueError: there is none, or one is missing; the text names it.
    """
    present = set(names)
    pattern = re.compile(rf"{stem}(?:-\d{{5}}-of-(\d{{5}}))?\.safetensors")
    counts = {int(match[1] or 1) for match in map(pattern.fullmatch, present) if match}
    expected = [
        part_name(stem, number, max(counts, default=1)) for number in range(max(counts, default=1))
    ]
    for name in expected:
        if name not in present:
            raise ValueError(name)
    return expected


def part_paths(directory: Path, stem: str) -> list[Path]:
    """Returns the paths of all parts in a directory, in order.

    Raises:
        FileNotFoundError: there is none, or one is missing; the text names it.
    """
    try:
        names = part_names((path.name for path in directory.iterdir()), stem)
    except ValueError as missing:
        raise FileNotFoundError(f"{missing} is missing") from None
    return [directory / name for name in names]


def has_optimizer_state(directory: Path) -> bool:
    """Returns whether a model directory contains optimizer state that a run can continue with."""
    return any(directory.glob(f"{OPTIMIZER}*.safetensors"))
