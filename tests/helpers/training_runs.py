"""Runs for tests: trains a recipe in this process, and reads back what it wrote."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import recipe_of
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.training import loop

TIMES = ("tokens_per_second", "mfu", "data_wait", "save_stall")


def recipe_with(text: str, directory: Path, **settings: object) -> Recipe:
    """Returns the recipe of a run, with other settings; `data__lanes` stands for `data.lanes`."""
    changes = (f"{name.replace('__', '.')}={value}" for name, value in settings.items())
    return recipe_of(text, f"run={directory}", *changes)


def run(
    text: str,
    directory: Path,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    until: int | None = None,
    **settings: object,
) -> Path:
    """Trains a recipe with other settings; returns the last checkpoint."""
    recipe = recipe_with(text, directory, **settings)
    return loop.train(recipe, resume=resume, accept_changes=accept_changes, stop_after_step=until)


def metrics(directory: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Returns a run's metrics without times: all lines, or those of a kind."""
    return [
        {key: value for key, value in line.items() if key not in TIMES}
        for line in read_metrics(directory / "metrics.jsonl")
        if kind in (None, line["kind"])
    ]


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Returns a run's events of a kind."""
    lines = (directory / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def measured_rates(directory: Path) -> dict[int, float]:
    """Returns the rates that were measured on the weights, by step."""
    return {event["step"]: event["measured"] for event in events(directory, "rate")}


def trained_files(checkpoint: Path) -> dict[str, bytes]:
    """Returns the bytes of everything in a checkpoint that training made."""
    names = ("model.safetensors", "optimizer.safetensors", "progress.json")
    return {name: (checkpoint / name).read_bytes() for name in names}


def signal_in_step(
    monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM
) -> None:
    """Sends a real signal to this process in the middle of the `step`-th step that it takes."""
    take_step, count = loop.take_step, 0

    def take_and_signal(*args, **kwargs):
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), number)
        return take_step(*args, **kwargs)

    monkeypatch.setattr(loop, "take_step", take_and_signal)


def act_after_step(
    monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]
) -> None:
    """Calls `action()` after the step of that number was taken."""
    take_step, count = loop.take_step, 0

    def take_and_act(*args, **kwargs):
        nonlocal count
        result = take_step(*args, **kwargs)
        count += 1
        if count == step:
            action()
        return result

    monkeypatch.setattr(loop, "take_step", take_and_act)
