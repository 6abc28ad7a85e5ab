"""Reads the metrics.jsonl of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rewarm.errors import CheckpointError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        CheckpointError: the file cannot be read, or is damaged before its last line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    read = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed = json.loads(line)
            if not ("kind" in parsed and isinstance(parsed["step"], int)):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                break
            raise CheckpointError(f"{path}:{number}: not a line of metrics") from None
        read.append(parsed)
    return read
