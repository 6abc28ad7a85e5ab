"""The trackers of a run: checked before it, and given each line of metrics.jsonl."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewarm.errors import RecipeError, printable
from rewarm.files import atomic_write
from rewarm.safe_loading import parse_json, read_json
from rewarm.table_cells import plural
from rewarm.trackers.process import TrackerProcess, kill_worker, start_worker
from rewarm.trackers.registry import find_tracker, is_builtin, load_tracker, setting_problems
from rewarm.trackers.worker import TrackerRequest

_CHECK_SECONDS = 60.0
"""Importing a large library takes long from a slow network disk."""
_SILENCE, _AT_MOST = 5.0, 20.0  # seconds, after the last step
_STOPPED_SILENCE, _STOPPED_AT_MOST = 2.0, 4.0  # a scheduler or a time limit does not wait

TrackerSettings = Mapping[str, dict[str, Any]]
"""The settings of each tracker that a recipe names."""


def quick_problems(trackers: TrackerSettings) -> list[tuple[tuple[str, ...], str]]:
    """Returns the (key path, problem) pairs that can be found without running a plug-in's code."""
    problems: list[tuple[tuple[str, ...], str]] = []
    for name, settings in trackers.items():
        try:
            plugin = find_tracker(name)
        except ValueError as error:
            problems.append(((name,), str(error)))
            continue
        if is_builtin(plugin):
            for setting, problem in setting_problems(load_tracker(plugin), settings):
                path = tuple(setting.split(".")) if setting else ()
                problems.append(((name, *path), problem))
    return problems


def check_trackers(trackers: TrackerSettings) -> None:
    """Makes sure that trackers can be used: that they can be imported, and their settings.

    Raises:
        RecipeError: every problem, one line each.
    """
    with ThreadPoolExecutor() as executor:
        texts = [json.dumps(settings) for settings in trackers.values()]
        problems = [line for lines in executor.map(_problems, trackers, texts) for line in lines]
    if problems:
        raise RecipeError(problems)


@lru_cache(maxsize=64)
def _problems(name: str, settings_json: str) -> tuple[str, ...]:
    """Returns what prevents a tracker from being used; its code runs in a process of its own."""
    request = TrackerRequest(parse_json(settings_json.encode()), run=None)
    with start_worker(name) as process:
        try:
            output, _ = process.communicate(json.dumps(request).encode() + b"\n", _CHECK_SECONDS)
            return tuple(map(str, parse_json(output)["problems"]))
        except subprocess.TimeoutExpired:
            problem = f"did not answer for {_CHECK_SECONDS:g} s"
        except (ValueError, KeyError, TypeError):
            problem = f"its process ended with code {process.returncode}, without an answer"
        finally:
            kill_worker(process)
    return (f"trackers.{name}: cannot be used: {problem}; fix it, or remove it from the recipe",)


class RunTrackers:
    """Sends the lines of metrics.jsonl to trackers, and reports what did not reach them."""

    def __init__(
        self,
        trackers: TrackerSettings,
        metrics: Path,
        recipe: dict[str, Any],
        resumed_from: int | None,
    ) -> None:
        """Starts trackers in the background.

        Args:
            trackers: their settings.
            metrics: the metrics.jsonl of the run, which has the lines of before a resume.
            recipe: the recipe of the run, which trackers show.
            resumed_from: the step of the checkpoint that is resumed; None for a new run.

        Raises:
            OSError: the run directory cannot be written.
        """
        self._running: list[TrackerProcess] = []
        self._reported: set[str] = set()
        directory = metrics.absolute().parent
        folder = directory / "trackers"
        earlier_bytes = metrics.stat().st_size if trackers else 0
        run_id = _run_id(folder, is_new=resumed_from is None) if trackers else ""
        for name, settings in trackers.items():
            own_folder = folder / name
            own_folder.mkdir(exist_ok=True)
            run = {
                "id": run_id,
                "name": directory.name,
                "folder": str(own_folder),
                "recipe": {key: value for key, value in recipe.items() if key != "trackers"},
                "resumed_from": resumed_from,
            }
            request = TrackerRequest(settings, run, str(metrics.absolute()), earlier_bytes)
            self._running.append(TrackerProcess(name, request))

    def send(self, line: bytes) -> list[str]:
        """Sends a line of metrics.jsonl; returns a warning for each tracker that has ended."""
        for tracker in self._running:
            tracker.send(line)
        ended = [
            tracker
            for tracker in self._running
            if tracker.error and tracker.name not in self._reported
        ]
        self._reported |= {tracker.name for tracker in ended}
        return [
            f"warning: tracker {tracker.name}: {tracker.error}; the run continues without it"
            for tracker in ended
        ]

    def close(self, *, quickly: bool) -> list[dict[str, Any]]:
        """Ends all trackers; returns an event for each: lines sent and dropped, and its error.

        Args:
            quickly: whether the run was stopped, and what has stopped it may not wait.
        """
        silence, at_most = (_STOPPED_SILENCE, _STOPPED_AT_MOST) if quickly else (_SILENCE, _AT_MOST)
        deadline = time.monotonic() + at_most
        for tracker in self._running:
            tracker.queue_end()
        for tracker in self._running:
            tracker.close(silence, deadline)
        events = [
            {
                "name": tracker.name,
                "sent": tracker.sent,
                "dropped": tracker.dropped,
                "error": tracker.error and printable(tracker.error),
            }
            for tracker in self._running
        ]
        self._running = []
        return events


def closing_warnings(events: Iterable[dict[str, Any]]) -> list[str]:
    """Returns a warning for each tracker that does not have all lines."""
    return [
        f"warning: tracker {event['name']}: {event['error'] or 'too slow'}; "
        f"{plural(event['dropped'], 'line')} of {event['sent'] + event['dropped']:,} dropped; "
        "metrics.jsonl has them all"
        for event in events
        if event["dropped"] or event["error"]
    ]


def _run_id(folder: Path, *, is_new: bool) -> str:
    """Returns the id under which trackers know a run, and stores it in the run directory."""
    path = folder / "id.json"
    if path.exists() and not is_new:
        return str(read_json(path)["id"])
    folder.mkdir(exist_ok=True)
    run_id = secrets.token_hex(8)
    atomic_write(path, json.dumps({"id": run_id}) + "\n")
    return run_id
