"""How many CPU threads the runs of a study compute with: one number for all of them, on record.

The last bits of a run on a CPU depend on it. More threads than cores slow each other down many
times over.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveInt

from rewarm.errors import CheckpointError
from rewarm.files import atomic_write, create_folder
from rewarm.safe_loading import read_json_as

_FILE = "cpu-threads.json"


class _ThreadsRecord(BaseModel):
    """The content of cpu-threads.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu_threads: PositiveInt


class WorkerThreads(NamedTuple):
    """The CPU threads of each run."""

    per_run: int
    note: str
    """One line: where the number comes from, and whether runs of the study had another."""


def fix_threads(study: Path, workers: int) -> WorkerThreads:
    """Returns the threads of each run of a study, and records them when it first starts.

    Later starts use the recorded number, whatever their number of workers is. OMP_NUM_THREADS takes
    precedence, and the note says if that is another number.

    Args:
        study: the folder of the study.
        workers: runs at the same time, among which the cores are divided.

    Raises:
        CheckpointError: the record cannot be read.
        OSError: it cannot be written.
    """
    path = study / _FILE
    cores = len(os.sched_getaffinity(0))
    recorded = _read_record(path)
    chosen = _threads_in_environment()
    count = chosen or recorded or max(1, cores // workers)
    if recorded is None:
        create_folder(study)
        atomic_write(path, json.dumps({"cpu_threads": count}) + "\n")
    elif count != recorded:
        return WorkerThreads(
            count,
            f"warning: {count} for each run now (OMP_NUM_THREADS), {recorded} when the study first "
            f"started ({path}): the last bits of its runs differ; for the same bits unset "
            "OMP_NUM_THREADS",
        )
    source = "OMP_NUM_THREADS" if chosen else f"{cores} cores, workers: {workers}"
    if recorded and not chosen:
        source = f"as when the study first started: {path}"
        if recorded * workers > cores:
            source += f"; more than the {cores} cores: use fewer workers"
    return WorkerThreads(count, f"{count} for each run ({source})")


def _read_record(path: Path) -> int | None:
    try:
        return read_json_as(_ThreadsRecord, path).cpu_threads
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error}; restore the file, or remove it to record the number "
            "of CPU threads again"
        ) from None


def _threads_in_environment() -> int | None:
    """Returns OMP_NUM_THREADS; None if it is not set, or not a number that OpenMP accepts."""
    threads = os.environ.get("OMP_NUM_THREADS", "").strip()
    return int(threads) if threads.isdecimal() and int(threads) else None
