"""Checks the metrics.jsonl of a run against its checkpoints.

A checkpoint records how many lines belong to it, and their digest: a line that is missing, twice or
changed is noticed before it becomes a wrong number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.checkpoints.find_checkpoint import read_last_checkpoint
from rewarm.checkpoints.manifest import MetricsRecord, metrics_record
from rewarm.checkpoints.training_state import TrainingState, read_training_state
from rewarm.errors import CheckpointError
from rewarm.runs.metrics_file import (
    METRICS_FILE,
    REMEDY,
    MetricsLines,
    parse_line,
    read_metrics_lines,
)


class RunMetrics(NamedTuple):
    """The metrics of a run, checked against its last checkpoint."""

    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    state: TrainingState | None
    """The training state of the last checkpoint; None without a checkpoint."""


class CheckpointMetrics(NamedTuple):
    """What a checkpoint says about the metrics of its run."""

    name: str
    state: TrainingState
    record: MetricsRecord | None
    """None in a checkpoint of an earlier version of rewarm."""


def read_run_metrics(run: Path) -> RunMetrics:
    """Returns the metrics of a run directory; the run may be training.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or lacks lines that a checkpoint says
            were in it; or a checkpoint is incomplete or damaged.
    """
    checkpoint = read_last_checkpoint(run, metrics_of_checkpoint)
    # Read after the checkpoint: a run that trains only adds lines meanwhile.
    lines = read_metrics_lines(run / METRICS_FILE)
    if checkpoint:
        _check_lines(run, lines, checkpoint)
    return RunMetrics(lines.parsed, checkpoint and checkpoint.state)


def check_metrics(run: Path, *checkpoints: CheckpointMetrics) -> None:
    """Makes sure that metrics.jsonl has the lines that belong to checkpoints of a run.

    Raises:
        CheckpointError: lines are missing, twice or changed.
    """
    lines = read_metrics_lines(run / METRICS_FILE)
    for checkpoint in checkpoints:
        _check_lines(run, lines, checkpoint)


def lines_to_keep(run: Path, checkpoint: Path) -> list[bytes]:
    """Returns the lines of metrics.jsonl that a run resumed from a checkpoint keeps, as they are.

    Where lines that belong to the checkpoint are missing, twice or changed, which a user has
    accepted, these are the readable lines up to its step, and one that marks the gap.
    """
    path, expected = run / METRICS_FILE, metrics_of_checkpoint(checkpoint)
    try:
        lines = read_metrics_lines(path)
        _check_lines(run, lines, expected)
    except CheckpointError:
        return _readable_lines(path, expected)
    if expected.record and not _difference_from_record(lines, expected.record):
        return lines.written[: expected.record.lines]
    if _is_gap_accepted(lines, expected.state.step):
        return _readable_lines(path, expected)  # the gap stays marked at an earlier step, too
    pairs = zip(lines.written, lines.parsed, strict=True)
    return [written for written, parsed in pairs if parsed["step"] <= expected.state.step]


def metrics_of_checkpoint(
    checkpoint: Path, state: TrainingState | None = None
) -> CheckpointMetrics:
    """Returns what a checkpoint says about the metrics of its run.

    Args:
        checkpoint: its directory.
        state: its training state, if it has already been read.

    Raises:
        CheckpointError: its progress.json or its manifest is damaged.
    """
    state = state or read_training_state(checkpoint)
    return CheckpointMetrics(checkpoint.name, state, metrics_record(checkpoint))


def _check_lines(run: Path, lines: MetricsLines, checkpoint: CheckpointMetrics) -> None:
    """Makes sure that the lines that belong to a checkpoint are there, or known to be missing.

    Raises:
        CheckpointError: they are not.
    """
    if _is_gap_accepted(lines, checkpoint.state.step):
        return
    problem = (
        _difference_from_record(lines, checkpoint.record)
        if checkpoint.record
        else _lost_baseline(lines, checkpoint.state)
    )
    if problem:
        raise CheckpointError(
            f"{run / METRICS_FILE}: {problem} when {checkpoint.name} was saved; {REMEDY}"
        )


def _is_gap_accepted(lines: MetricsLines, step: int) -> bool:
    """Returns whether the metrics up to a step are known to be incomplete."""
    return any(line["kind"] == "gap" and line["step"] >= step for line in lines.parsed)


def _difference_from_record(lines: MetricsLines, record: MetricsRecord) -> str | None:
    """Returns how lines differ from those that a checkpoint records."""
    if len(lines.written) < record.lines:
        return f"has {len(lines.written):,} lines, and had {record.lines:,}"
    if hashlib.sha256(b"".join(lines.written[: record.lines])).hexdigest() != record.sha256:
        return f"its first {record.lines:,} lines are not those that it had"
    return None


def _lost_baseline(lines: MetricsLines, state: TrainingState) -> str | None:
    """Returns which loss before step 1 is in a training state, and not in the lines."""
    starts = [line for line in lines.parsed if line["kind"] == "evaluate" and line["step"] == 0]
    for name, loss in state.baseline.items():
        if state.baseline_steps.get(name, 0) == 0 and not any(
            line.get(f"{name}/loss") == loss for line in starts
        ):
            return f"lacks the {name} loss before step 1, which it had"
    return None


def _readable_lines(path: Path, checkpoint: CheckpointMetrics) -> list[bytes]:
    """Returns the lines up to a checkpoint's step that can be read, and one that marks the gap."""
    state, record = checkpoint.state, checkpoint.record
    data = path.read_bytes().splitlines() if path.exists() else []
    kept: dict[tuple[int, str], bytes] = {}  # the last one counts where a line is there twice
    for line in data:
        with contextlib.suppress(ValueError):
            parsed = parse_line(line)
            if parsed["step"] <= state.step:
                kept[parsed["step"], parsed["kind"]] = line + b"\n"
    kept.pop((state.step, "gap"), None)
    gap = {
        "kind": "gap",
        "step": state.step,
        "tokens": state.tokens,
        "kept": len(kept),
        "expected": record and record.lines,
    }
    in_order = [kept[key] for key in sorted(kept, key=lambda key: key[0])]
    return [*in_order, json.dumps(gap).encode() + b"\n"]
