"""Sends lines of metrics to a tracker in its own process, as a run does, without a run."""

import json
from pathlib import Path
from typing import Any

from rewarm.runs.metrics_file import METRICS_FILE
from rewarm.trackers.run_trackers import RunTrackers

RECORDING = """\
from contextlib import contextmanager
import json
from rewarm import Tracker

class Recording(Tracker):
    contract = 1
    mode: str = ""

    @contextmanager
    def open(self, run):
        with (run.folder / "lines.jsonl").open("a") as file:
            yield lambda step, values: print(json.dumps([step, values]), file=file, flush=True)
"""
RECIPE = {"seed": 5, "data": {"context": 64}, "trackers": {"x": {}}}


def train_line(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 5 / step, "stream": "ff", "mfu": None}


def evaluate_line(step: int) -> dict[str, Any]:
    return {"kind": "evaluate", "step": step, "old/loss": 2.5 + step}


def send(
    run: Path,
    trackers: dict[str, dict[str, Any]],
    lines: list[dict[str, Any]],
    *,
    resumed_from: int | None = None,
    kept: int = 0,
    quickly: bool = False,
) -> list[dict[str, Any]]:
    """Sends lines to trackers, `kept` of metrics.jsonl being of before; returns their events."""
    run.mkdir(exist_ok=True)
    metrics = run / METRICS_FILE
    metrics.touch()
    earlier = metrics.read_bytes().splitlines(keepends=True)[:kept]
    metrics.write_bytes(b"".join(earlier))
    running = RunTrackers(trackers, metrics, RECIPE, resumed_from)
    with metrics.open("ab") as file:
        for line in lines:
            data = json.dumps(line).encode() + b"\n"
            file.write(data)
            running.send(data)
    return running.close(quickly=quickly)
