"""Reads the metrics.jsonl of a run, and checks it against the run's checkpoints.

```
line kind   what it records
train       a step: loss, gradient norm, rate, tokens
evaluate    the loss on every validation set
baseline    the loss on validation sets that were added or changed when the run was resumed
gap         that lines before it are missing: the file was damaged, and the user accepted that
others      events of the divergence guard
```
A checkpoint records how many lines belong to it, and their digest: a line that is missing, twice or
changed is noticed before it becomes a wrong number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.checkpoints.find_checkpoint import read_last_checkpoint
from rewarm.checkpoints.manifest import MetricsRecord, metrics_record
from rewarm.checkpoints.training_state import TrainingState, read_training_state
from rewarm.errors import CheckpointError
from rewarm.safe_loading import parse_json

METRICS_FILE = "metrics.jsonl"
_WAY_OUT = (
    "restore the file, or run `rewarm train RECIPE --resume --accept-changes`: it keeps the lines "
    "that can be used, and marks the gap"
)
_LARGEST_INTEGER = 2**53
_NUMBERS = {"loss", "perplexity", "forgetting", "lr", "grad_norm", "tokens_per_second", "mfu"}
_COUNTS = {"step", "tokens", "skipped"}
_MEASURED_KINDS = {"train", "evaluate", "baseline"}


class RunMetrics(NamedTuple):
    """The metrics of a run, checked against its last checkpoint."""

    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    state: TrainingState | None
    """The training state of the last checkpoint; None without a checkpoint."""


def read_run_metrics(run: Path) -> RunMetrics:
    """Returns the metrics of a run directory; the run may be training.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or lacks lines that a checkpoint says
            were in it; or a checkpoint is incomplete or damaged.
    """
    last = read_last_checkpoint(
        run,
        lambda checkpoint: (
            checkpoint,
            read_training_state(checkpoint),
            metrics_record(checkpoint),
        ),
    )
    # Read after the checkpoint: a run that trains only adds lines meanwhile.
    lines = read_metrics(run / METRICS_FILE)
    if last is None:
        return RunMetrics(lines, None)
    checkpoint, state, record = last
    if not is_gap_accepted(lines, state.step):
        _check_lines(run / METRICS_FILE, checkpoint, state, record, lines)
    return RunMetrics(lines, state)


def check_metrics(run: Path, checkpoint: Path, state: TrainingState) -> None:
    """Makes sure that metrics.jsonl has the lines that belong to a checkpoint.

    Args:
        run: the run directory.
        checkpoint: one of its checkpoints.
        state: the training state in that checkpoint.

    Raises:
        CheckpointError: lines are missing, twice or changed.
    """
    path, record = run / METRICS_FILE, metrics_record(checkpoint)
    lines = read_metrics(path)
    if not is_gap_accepted(lines, state.step):
        _check_lines(path, checkpoint, state, record, lines)


def _check_lines(
    path: Path,
    checkpoint: Path,
    state: TrainingState,
    record: MetricsRecord | None,
    lines: list[dict[str, Any]],
) -> None:
    problem = (
        _difference_from_record(path, record)
        if record
        else _implausible(lines, state)  # a checkpoint of an earlier version
    )
    if problem:
        raise CheckpointError(f"{path}: {problem} when {checkpoint.name} was saved; {_WAY_OUT}")


def _difference_from_record(path: Path, record: MetricsRecord) -> str | None:
    """Returns how a file differs from what a checkpoint says was in it."""
    kept = path.read_bytes().splitlines(keepends=True)[: record.lines]
    if len(kept) < record.lines:
        return f"has {len(kept):,} lines, and had {record.lines:,}"
    if hashlib.sha256(b"".join(kept)).hexdigest() != record.sha256:
        return f"its first {record.lines:,} lines are not those that it had"
    return None


def _implausible(lines: list[dict[str, Any]], state: TrainingState) -> str | None:
    """Returns what shows that lines are missing that belong to a checkpoint of a training state."""
    starts = [line for line in lines if line["kind"] == "evaluate" and line["step"] == 0]
    for name, loss in state.baseline.items():
        if state.baseline_steps.get(name, 0) == 0 and not any(
            line.get(f"{name}/loss") == loss for line in starts
        ):
            return f"lacks the {name} loss before step 1, which it had"
    return None


def comparable_evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the evaluations, one per step, without losses on other data than the last ones.

    Where the data of a validation set changed on a resume, earlier losses under the same name are
    left out: they are losses of another text.
    """
    evaluations: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["kind"] == "baseline":
            changed = {key for key in line if key.endswith("/loss")}
            for evaluation in evaluations.values():
                for key in changed & evaluation.keys():
                    del evaluation[key]
        if line["kind"] in ("evaluate", "baseline"):
            evaluations.setdefault(line["step"], {}).update(line)
    return list(evaluations.values())


def is_gap_accepted(lines: list[dict[str, Any]], step: int) -> bool:
    """Returns whether the metrics up to a step are known to be incomplete."""
    return any(line["kind"] == "gap" and line["step"] >= step for line in lines)


def lines_to_keep(run: Path, checkpoint: Path, state: TrainingState) -> list[bytes]:
    """Returns the lines of metrics.jsonl that a run resumed from a checkpoint keeps, as they are.

    Where lines that belong to the checkpoint are missing, twice or changed, which a user has
    accepted, these are the readable lines up to its step, and one that marks the gap.
    """
    path, record = run / METRICS_FILE, metrics_record(checkpoint)
    try:
        check_metrics(run, checkpoint, state)
    except CheckpointError:
        return _readable_lines(path, state, record)
    data = path.read_bytes().splitlines(keepends=True)
    if record and len(data) >= record.lines and not _difference_from_record(path, record):
        return data[: record.lines]
    if is_gap_accepted(read_metrics(path), state.step):
        return _readable_lines(path, state, record)  # the gap stays marked at an earlier step, too
    return [
        line for line in data if line.endswith(b"\n") and _parse_line(line)["step"] <= state.step
    ]


def _readable_lines(path: Path, state: TrainingState, record: MetricsRecord | None) -> list[bytes]:
    data = path.read_bytes().splitlines() if path.exists() else []
    kept: dict[tuple[int, str], bytes] = {}  # the last one counts where a line is there twice
    for line in data:
        with contextlib.suppress(ValueError):
            parsed = _parse_line(line)
            if parsed["step"] <= state.step:
                kept[parsed["step"], parsed["kind"]] = line + b"\n"
    gap = {
        "kind": "gap",
        "step": state.step,
        "tokens": state.tokens,
        "kept": len(kept),
        "expected": record and record.lines,
    }
    kept.pop((state.step, "gap"), None)
    return [
        *(kept[key] for key in sorted(kept, key=lambda key: key[0])),
        json.dumps(gap).encode() + b"\n",
    ]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        CheckpointError: the file cannot be read, or is damaged before its last line.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block for ever
            raise ValueError("not a regular file")
        lines = path.read_bytes().splitlines(keepends=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: cannot be read: {reason}; {_WAY_OUT}") from None
    read: list[dict[str, Any]] = []
    last_steps: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            parsed = _parse_line(line)
        except ValueError as error:
            raise CheckpointError(
                f"{path}:{number}: not a line of metrics: {error}; {_WAY_OUT}"
            ) from None
        kind, step = parsed["kind"], parsed["step"]
        if step <= last_steps.get(kind, -1):
            raise CheckpointError(
                f"{path}:{number}: the {kind} line of step {step:,} comes after that of step "
                f"{last_steps[kind]:,}; {_WAY_OUT}"
            )
        last_steps[kind] = step
        read.append(parsed)
    return read


def _parse_line(line: bytes) -> dict[str, Any]:
    """Returns the data in a line.

    Raises:
        ValueError: it is not a line of metrics.
    """
    try:
        parsed = json.loads(line, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("kind"), str):
        raise ValueError("should be an object with a kind")
    required = {"step": None} | ({"tokens": None} if parsed["kind"] in _MEASURED_KINDS else {})
    for key, value in (required | parsed).items():
        _check_value(key, value)
    return parsed


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a finite number")


def _check_value(key: str, value: object) -> None:
    """Makes sure that a value has the type of its key; a number that was not finite is None.

    Raises:
        ValueError: it has not.
    """
    unit = key.rpartition("/")[2]
    if unit in _COUNTS:
        if type(value) is not int or not 0 <= value <= _LARGEST_INTEGER:
            raise ValueError(f"{key} should be a whole number from 0 on, got {value!r:.60}")
    elif unit in _NUMBERS and value is not None and not _is_finite_number(value):
        raise ValueError(f"{key} should be a number, got {value!r:.60}")
    if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):
        raise ValueError(f"{key!r:.60} has text that cannot be printed")


def _is_finite_number(value: object) -> bool:
    is_float = type(value) is float and math.isfinite(value)
    return is_float or (type(value) is int and abs(value) <= _LARGEST_INTEGER)


class EventLog(NamedTuple):
    """The events of a run."""

    events: list[dict[str, Any]]
    """The lines of events.jsonl that can be read."""
    is_complete: bool
    """Whether every line can be read, and the start of the run is among them."""


def read_events(path: Path) -> EventLog:
    """Returns the events in an events.jsonl, which a full disk may have truncated."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = parse_json(line)
            if isinstance(event, dict) and isinstance(event.get("kind"), str):
                events.append(event)
    complete_lines = sum(line.endswith(b"\n") for line in lines)  # the last may be being written
    has_start = any(event["kind"] == "start" for event in events)
    return EventLog(events, has_start and len(events) >= complete_lines)
