"""Reads the metrics.jsonl and the events.jsonl of a run.

```
line kind   what it records
train       a step: loss, gradient norm, rate, tokens
evaluate    the loss on every validation set
norms       of each weight tensor, and of its gradient
baseline    the loss on validation sets that were added or changed when the run was resumed
tasks       the figures of the tasks of the LM Evaluation Harness
sample      how the model continues the prompts of the recipe
gap         that lines before it are missing: the file was damaged, and the user accepted that
others      events of the divergence guard
```
"""

from __future__ import annotations

import contextlib
import json
import math
import stat
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.errors import CheckpointError
from rewarm.safe_loading import parse_json

METRICS_FILE = "metrics.jsonl"
REMEDY = (
    "restore the file, or run `rewarm train RECIPE --resume --accept-changes`: it keeps the lines "
    "that can be used, and marks the gap"
)
_LARGEST_INTEGER = 2**53
_LONGEST_LINE = 2**18  # bytes; the norms of a model of 80 layers
_NUMBERS = {"loss", "perplexity", "bits_per_byte", "forgetting"}
_NUMBERS |= {"ema_loss", "z_loss", "lr", "grad_norm", "tokens_per_second", "mfu"}
_COUNTS = {"step", "tokens", "skipped"}
_MEASURED_KINDS = {"train", "evaluate", "baseline", "tasks", "sample"}
NOT_EVENTS = {*_MEASURED_KINDS, "gap", "norms"}
"""The kinds of lines that are none of the divergence guard's events."""


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


class MetricsLines(NamedTuple):
    """The complete lines of a metrics.jsonl."""

    written: list[bytes]
    """As they were written, with line ends."""
    parsed: list[dict[str, Any]]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        CheckpointError: the file cannot be read, or is damaged before its last line.
    """
    return read_metrics_lines(path).parsed


def read_metrics_lines(path: Path) -> MetricsLines:
    """Returns the lines of a metrics.jsonl, also as they were written.

    Raises:
        CheckpointError: as for `read_metrics`.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block for ever
            raise ValueError("not a regular file")
        lines = path.read_bytes().splitlines(keepends=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: cannot be read: {reason}; {REMEDY}") from None
    lines = [line for line in lines if line.endswith(b"\n")]
    parsed_lines: list[dict[str, Any]] = []
    last_steps: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            parsed = parse_line(line)
        except ValueError as error:
            raise CheckpointError(
                f"{path}:{number}: not a line of metrics: {error}; {REMEDY}"
            ) from None
        kind, step = parsed["kind"], parsed["step"]
        if step <= last_steps.get(kind, -1):
            raise CheckpointError(
                f"{path}:{number}: the {kind} line of step {step:,} comes after that of step "
                f"{last_steps[kind]:,}; {REMEDY}"
            )
        last_steps[kind] = step
        parsed_lines.append(parsed)
    return MetricsLines(lines, parsed_lines)


class LastStepReader:
    """Reads the last step in a metrics.jsonl that grows: each time only what was appended."""

    last_training: dict[str, Any] | None
    """The last line of training metrics that was read."""

    def __init__(self, path: Path) -> None:
        """Prepares to read a file, which need not exist yet."""
        self._path = path
        self._inode = -1
        self._position = 0
        self._step = 0
        self.last_training = None

    def read(self) -> int:
        """Returns the step of the last line that can be read; 0 if there is none."""
        try:
            status = self._path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would block for ever
                return 0
            if status.st_ino != self._inode or status.st_size < self._position:
                # A new file, or another one: only its end is read.
                self._inode, self._step, self.last_training = status.st_ino, 0, None
                self._position = max(0, status.st_size - _LONGEST_LINE)
            if status.st_size > self._position:
                with self._path.open("rb") as file:
                    file.seek(self._position)
                    self._update(file.read(status.st_size - self._position))
        except OSError:
            return 0
        return self._step

    def _update(self, appended: bytes) -> None:
        complete, line_end, _ = appended.rpartition(b"\n")
        self._position += len(complete + line_end)
        last_step = None
        for line in reversed(complete.splitlines()):
            with contextlib.suppress(ValueError):
                parsed = parse_line(line)
                last_step = last_step or parsed["step"]
                if parsed["kind"] == "train":
                    self.last_training = parsed
                    break
        self._step = last_step or self._step


def parse_line(line: bytes) -> dict[str, Any]:
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
    if parsed["kind"] == "sample":
        samples_in(parsed)
    return parsed


def samples_in(line: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the prompts and continuations in a line of kind `sample`.

    Raises:
        ValueError: it has none, or not as many of each.
    """
    prompts, texts = line.get("prompts"), line.get("texts")
    if not (isinstance(prompts, list) and isinstance(texts, list) and len(prompts) == len(texts)):
        raise ValueError("prompts and texts should be lists of the same length")
    if not all(isinstance(text, str) for text in (*prompts, *texts)):
        raise ValueError("prompts and texts should be lists of texts")
    return list(zip(prompts, texts, strict=True))


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
