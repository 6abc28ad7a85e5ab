"""Proves on this machine that an interrupted and resumed run ends as an uninterrupted one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.manifest import AVERAGE
from rewarm.checkpoints.part_files import MODEL, OPTIMIZER, part_paths
from rewarm.errors import RewarmError
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.stop_signals import raise_if_stopped, stop_signals_noted

_TIMES = ("tokens_per_second", "mfu", "data_wait", "save_stall")

# Each part runs in a process of its own: nothing that was not saved can help it.
_PART = """
import sys
from pathlib import Path
from rewarm.errors import Preempted, RewarmError
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train
path, run, resume, until = sys.argv[1:]
try:
    settings = [f"run={run}", "keep={}", "deterministic=true", "trackers={}"]
    recipe = load_recipe(Path(path), settings)
    train(recipe, resume=resume == "resume", stop_after_step=int(until))
except Preempted:
    pass
except RewarmError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def verify_resume(recipe: Recipe, steps: int, work: Path, processes: int = 1) -> list[str]:
    """Returns how `steps` steps with an interruption half-way differ from steps without one.

    Weights, optimizer state, the digest of the data and all metrics but times are compared bit for
    bit, with `deterministic: true`. Where something differs, the uninterrupted run is made twice,
    to tell whether the resume is the cause.

    Args:
        recipe: the recipe of the run.
        steps: to take.
        work: a folder for the runs.
        processes: that train each run, one per GPU.

    Raises:
        RewarmError: a run failed; with its own message and exit code.
    """
    steps = min(steps, recipe.steps)
    document = work / "recipe.yaml"
    document.write_text(recipe.to_yaml(), encoding="utf-8")
    (work / "part.py").write_text(_PART, encoding="utf-8")
    command = [sys.executable, str(work / "part.py"), str(document)]
    if processes > 1:
        elastic = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        command[1:1] = elastic
    _run_part(command, work / "uninterrupted", "start", steps)
    _run_part(command, work / "resumed", "start", max(1, steps // 2))
    _run_part(command, work / "resumed", "resume", steps)
    differences = _differences(work / "uninterrupted", work / "resumed")
    if differences:
        _run_part(command, work / "again", "start", steps)
        differences.append(
            "two uninterrupted runs differ too: a kernel on this device is not deterministic (the "
            "resume is not the cause)"
            if _differences(work / "uninterrupted", work / "again")
            else "two uninterrupted runs are the same: the resume is the cause"
        )
    return differences


def _run_part(command: list[str], run: Path, start: str, until: int) -> None:
    words = [*command, str(run), start, str(until)]
    with (
        stop_signals_noted() as noted,
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process,
    ):
        messages = None
        while messages is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, messages = process.communicate(timeout=0.2)
            if noted:
                process.kill()
                raise_if_stopped(noted)
    if process.returncode:
        lines = messages.strip().splitlines() or ["no message"]
        # The launcher of several processes adds lines of its own.
        errors = [line for line in lines if line.startswith("error: ")] or lines
        error = RewarmError(f"{run.name}: {errors[-1].removeprefix('error: ')}")
        error.exit_code = process.returncode
        raise error


def _differences(one: Path, other: Path) -> list[str]:
    a, b = last_checkpoint(one), last_checkpoint(other)
    if a is None or b is None or a.name != b.name:
        return [f"the last checkpoint: {a and a.name} and {b and b.name}"]
    differences = []
    files = [path.name for stem in (MODEL, OPTIMIZER) for path in part_paths(a, stem)]
    files += sorted(str(path.relative_to(a)) for path in a.glob(f"{AVERAGE}/*.safetensors"))
    for file in files:
        if (a / file).read_bytes() == (b / file).read_bytes():
            continue
        first, second = load_file(a / file), load_file(b / file)
        names = [name for name in first if not torch.equal(first[name], second[name])]
        largest = max(float((first[name] - second[name]).abs().max()) for name in names)
        differences.append(f"{file}: {len(names)} of {len(first)} tensors, by up to {largest:.3g}")
    if (a / "progress.json").read_bytes() != (b / "progress.json").read_bytes():
        differences.append("progress.json: the digest of the data, or the state of the guard")
    pairs = zip(_metrics(one), _metrics(other), strict=False)
    if line := next((x for x, y in pairs if x != y), None):
        differences.append(f"metrics: from the {line['kind']} line of step {line['step']:,} on")
    return differences


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]
