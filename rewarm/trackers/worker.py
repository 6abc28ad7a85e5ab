"""The process of one tracker: `python -m rewarm.trackers.worker NAME`.

stdin: a request, then lines of metrics.jsonl. stdout: what became of them, a JSON line each:
`{"problems": [...]}` after a check, `{"sent": n}` after each line, `{"error": "..."}` at the end.
A library may print, hang, or end this process: the run only reads those lines, and waits a limited
time for them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rewarm.errors import printable
from rewarm.files import atomic_write
from rewarm.safe_loading import parse_json, read_json
from rewarm.schedules.third_party_code import describe_error
from rewarm.trackers.base import Log, TrackedRun, Tracker
from rewarm.trackers.registry import find_tracker, is_builtin, load_tracker, setting_problems

_ORPHAN_SECONDS = 30.0
"""The time to finish in after the run's process was killed."""
LINE_SECONDS = 2.0
"""The processor time for one line after which a tracker is ended: it would slow the run."""
START_SECONDS = 60.0
"""The processor time to start or to finish in, as imports take long."""


class TrackerRequest(NamedTuple):
    """The first line that a tracker's process reads."""

    settings: dict[str, Any]
    run: dict[str, Any] | None
    """The fields of TrackedRun, with a text for `folder`; None to only check the settings."""
    metrics: str = ""
    """The path of metrics.jsonl."""
    earlier_bytes: int = 0
    """The size of metrics.jsonl up to which its lines are of before a resume."""


def serve_tracker(name: str) -> None:
    """Runs the tracker of that name."""
    lines, statuses = _own_streams()
    request = TrackerRequest(*parse_json(lines.readline()))
    tracker = None
    try:
        problems, tracker = _prepare(name, request.settings)
        if request.run is None:
            _write(statuses, problems=problems)
        elif problems or tracker is None:
            _write(statuses, error="; ".join(problems))
        else:
            threading.Thread(target=_exit_without_parent, args=(os.getppid(),), daemon=True).start()
            run = TrackedRun(**request.run | {"folder": Path(request.run["folder"])})
            _log_all(tracker, run, _earlier_lines(request), lines, statuses)
    except BaseException as error:  # third-party code may raise anything, also SystemExit
        if request.run:
            text = "".join(traceback.format_exception(error))
            atomic_write(Path(request.run["folder"]) / "error.txt", text[-100_000:])
        description = printable(describe_error(error))
        _write(statuses, error=description, problems=[description])
    os._exit(0)  # handlers that libraries have registered may hang


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Returns stdin and stdout under other numbers; what libraries print goes nowhere."""
    lines, statuses = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    return os.fdopen(lines, "rb"), os.fdopen(statuses, "wb", buffering=0)


def _write(statuses: BinaryIO, **status: object) -> None:
    statuses.write(json.dumps(status).encode() + b"\n")


def _exit_without_parent(parent: int) -> None:
    """Ends this process some time after the process of the run was killed."""
    while os.getppid() == parent:
        time.sleep(2)
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def _prepare(name: str, settings: dict[str, Any]) -> tuple[list[str], Tracker | None]:
    """Returns what prevents a tracker from being used, and the tracker if nothing does."""
    label = f"trackers.{name}"
    try:
        plugin = find_tracker(name)
    except ValueError as error:
        return [f"{label}: {error}"], None
    try:
        kind = load_tracker(plugin)
        problems = [
            f"{label}{setting and f'.{setting}'}: {problem}"
            for setting, problem in setting_problems(kind, settings)
        ]
        if problems:
            return problems, None
        tracker = kind.model_validate(settings)
        tracker.check()
    except ValueError as error:
        return [f"{label}: {error}"], None
    except BaseException as error:
        remedy = f"fix or uninstall {plugin.distribution}"
        if is_builtin(plugin):
            remedy = f"install it: pip install 'rewarm[{name}]', or remove {label}"
        return [f"{label}: cannot be used: {printable(describe_error(error))}; {remedy}"], None
    return [], tracker


def _earlier_lines(request: TrackerRequest) -> list[bytes]:
    """Returns the lines of a resumed run that were written before this process was started."""
    with Path(request.metrics).open("rb") as file:
        return file.read(request.earlier_bytes).splitlines()


def _log_all(
    tracker: Tracker,
    run: TrackedRun,
    earlier: Iterable[bytes],
    lines: BinaryIO,
    statuses: BinaryIO,
) -> None:
    """Sends lines to a tracker until there are no more, and closes it."""
    sent = _SentLines(run, removes_repeated_steps=tracker.removes_repeated_steps)
    _limit_processor_time(START_SECONDS)
    with tracker.open(run) as log:
        # It may lack some of these: those that were queued when the run was killed, or all.
        for line in earlier:
            _log_unsent(log, sent, line)
            _write(statuses, sent=0)
        for count, line in enumerate(lines, start=1):
            _log_unsent(log, sent, line)
            _write(statuses, sent=count)
        _limit_processor_time(START_SECONDS)


def _limit_processor_time(seconds: float) -> None:
    """Ends this process with SIGPROF once it has computed that long from now on.

    By a timer, which processes that a library starts do not inherit, as they would a limit.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _log_unsent(log: Log, sent: _SentLines, line: bytes) -> None:
    _limit_processor_time(LINE_SECONDS)
    metrics = parse_json(line)
    kind, step = metrics.pop("kind"), metrics.pop("step")
    if not sent.has(kind, step):
        if values := dict(_numbers(kind, metrics)):
            log(step, values)
        sent.add(kind, step)


def _numbers(kind: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the finite numbers of a line, as `KIND/NAME`."""
    for name, value in metrics.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield f"{kind}/{name}", value


class _SentLines:
    """Remembers which lines a tracker has, so that a resumed run does not send them twice.

    Of each kind of line it is the last step: steps of one kind only rise, except on a resume.
    """

    def __init__(self, run: TrackedRun, *, removes_repeated_steps: bool) -> None:
        self._path = run.folder / "sent.json"
        self._id = run.id
        self._last: dict[str, int] = {}
        if self._path.exists():
            stored = read_json(self._path)
            if stored["id"] == run.id:
                self._last = stored["last"]
        if removes_repeated_steps:
            removed_after = run.resumed_from or 0
            self._last = {kind: min(step, removed_after) for kind, step in self._last.items()}

    def has(self, kind: str, step: int) -> bool:
        """Returns whether a line was sent."""
        return step <= self._last.get(kind, -1)

    def add(self, kind: str, step: int) -> None:
        """Stores that a line was sent."""
        self._last[kind] = step
        text = json.dumps({"id": self._id, "last": self._last})
        partial = self._path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")  # not synced: after a power loss a line repeats
        partial.replace(self._path)


if __name__ == "__main__":
    serve_tracker(sys.argv[1])
