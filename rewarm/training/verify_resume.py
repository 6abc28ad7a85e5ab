"""Proof on this machine: a run that was interrupted and resumed ends as one that was not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.errors import RewarmError
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_file import read_metrics

_TIMES = ("tokens_per_second", "mfu", "data_wait", "save_stall")

# A process of its own for each stretch: nothing that was not saved can help it.
_STRETCH = """
import sys
from pathlib import Path
from rewarm.errors import Preempted, RewarmError
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train
recipe, run, resume, until = sys.argv[1:]
try:
    checked = load_recipe(Path(recipe), [f"run={run}", "keep={}", "deterministic=true"])
    train(checked, resume=resume == "resume", until=int(until))
except Preempted:
    pass
except RewarmError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def verify_resume(recipe: Recipe, steps: int, work: Path) -> list[str]:
    """Returns what differs between `steps` steps straight and interrupted half-way; best nothing.

    Weights, Adam's moments, the digest of the stream and all metrics but times are compared bit for
    bit, with `deterministic: true`. Where something differs, the straight run is made once more, to
    say whose doing it is.

    Raises:
        RewarmError: a run failed; with its own message and exit code.
    """
    steps = min(steps, recipe.steps)
    document = work / "recipe.yaml"
    document.write_text(recipe.to_yaml(), encoding="utf-8")
    _stretch(document, work / "straight", "begin", steps)
    _stretch(document, work / "resumed", "begin", max(1, steps // 2))
    _stretch(document, work / "resumed", "resume", steps)
    differ = _differences(work / "straight", work / "resumed")
    if differ:
        _stretch(document, work / "again", "begin", steps)
        again = _differences(work / "straight", work / "again")
        differ.append(
            "two runs without any interruption differ too: a kernel on this device is not "
            "deterministic (the resume is not to blame)"
            if again
            else "two runs without any interruption are the same: it is the resume that differs"
        )
    return differ


def _stretch(recipe: Path, run: Path, how: str, until: int) -> None:
    command = [sys.executable, "-c", _STRETCH, str(recipe), str(run), how, str(until)]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["no message"]
        error = RewarmError(f"{run.name}: {said[-1].removeprefix('error: ')}")
        error.exit_code = ended.returncode
        raise error


def _differences(one: Path, other: Path) -> list[str]:
    a, b = last_checkpoint(one), last_checkpoint(other)
    if a is None or b is None or a.name != b.name:
        return [f"the last checkpoint: {a and a.name} and {b and b.name}"]
    differ = []
    for file in ("model.safetensors", "optimizer.safetensors"):
        if (a / file).read_bytes() == (b / file).read_bytes():
            continue
        first, second = load_file(a / file), load_file(b / file)
        names = [name for name in first if not torch.equal(first[name], second[name])]
        far = max(float((first[name] - second[name]).abs().max()) for name in names)
        differ.append(f"{file}: {len(names)} of {len(first)} tensors, by up to {far:.3g}")
    if (a / "progress.json").read_bytes() != (b / "progress.json").read_bytes():
        differ.append("progress.json: the digest of the stream, or what the guard remembers")
    pairs = zip(_metrics(one), _metrics(other), strict=False)
    if line := next((x for x, y in pairs if x != y), None):
        differ.append(f"metrics: from the {line['kind']} line of step {line['step']:,} on")
    return differ


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]
