"""Records what a few steps of a run do, operation by operation, as a trace that Perfetto opens."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import torch

from rewarm.files import free_name
from rewarm.recipe.profiled_steps import StepRange

_COMPRESSED_ABOVE = 20_000_000
"""Bytes of a trace above which it is compressed; Perfetto reads both."""


def profiled(
    steps: range, profile: StepRange | None, folder: Path, announce: Callable[[str], object]
) -> Generator[int, None, None]:
    """Yields the steps of a run, and records the profiled ones.

    Closing it early writes the steps so far. Nothing that the run computes depends on it.

    Args:
        steps: the steps that the run takes.
        profile: the steps to record; None for none.
        folder: the run directory, where the trace is written to `traces/`.
        announce: prints where it is.
    """
    if profile is None:
        yield from steps
        return
    if profile.last < steps.start:
        announce(f"profile: steps {profile} were taken before the resume; no trace is written")
    yield from range(steps.start, min(profile.first, steps.stop))
    recorded = range(max(profile.first, steps.start), min(profile.last + 1, steps.stop))
    if recorded:
        yield from _record(recorded, folder, announce)
    yield from range(max(profile.last + 1, steps.start), steps.stop)


def _record(
    steps: range, folder: Path, announce: Callable[[str], object]
) -> Generator[int, None, None]:
    """Yields steps, and writes a trace of them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would print when it starts and stops
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()  # what was queued before belongs to earlier steps
    last = steps.start
    profiler = torch.profiler.profile(activities=activities)
    profiler.start()
    try:
        for last in steps:
            with torch.profiler.record_function(f"step {last}"):
                yield last
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        profiler.stop()
        try:
            path = _write(profiler, folder / "traces" / f"steps-{steps.start}-{last}.json")
            announce(f"profile: steps {steps.start}:{last} in {path}; open it at ui.perfetto.dev")
        except (OSError, RuntimeError) as error:  # the run does not depend on it
            announce(f"warning: profile: the trace cannot be written: {error}")


def _write(profiler: torch.profiler.profile, path: Path) -> Path:
    """Writes a trace, compressed if it is large, and returns its path.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    path = free_name(path)
    partial = path.with_suffix(".partial.json")
    try:
        profiler.export_chrome_trace(str(partial))
        if partial.stat().st_size <= _COMPRESSED_ABOVE:
            return partial.rename(path)
        path = free_name(path.with_suffix(".json.gz"))
        with partial.open("rb") as source, gzip.open(path, "wb", compresslevel=5) as target:
            shutil.copyfileobj(source, target)
        return path
    finally:
        partial.unlink(missing_ok=True)
