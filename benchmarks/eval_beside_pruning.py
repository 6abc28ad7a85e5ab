"""Checks that `rewarm eval` can run beside a run that deletes its older checkpoints.

    python benchmarks/eval_beside_pruning.py [--tries 20]

In each try, `rewarm train` saves every second step and keeps only the last checkpoint, while
`rewarm eval RUN` is repeated until the run ends. Each of them must measure a finite loss, and the
run must end with exactly the weights of a run with nothing beside it, and pass `rewarm verify`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data_faults import RECIPE, build
from forked_commands import run_command

SETTINGS = ("every={log: 100, evaluate: null, save: 2}", "keep={last: 1}")


class Outcome(NamedTuple):
    """What happened in all tries."""

    evaluations: int
    steps: int
    """Different checkpoints that were measured, by their losses; those of all runs are the same."""
    problems: Counter[str]


def run_tries(root: Path, tries: int, tokens: int) -> Outcome:
    """Trains in `root`, which `build` has filled, and evaluates meanwhile."""
    reference = _train(root, "reference", tokens)
    reference.wait(timeout=600)
    expected = _weights(root / "reference")
    problems, losses = Counter[str](), []
    for number in range(tries):
        run = root / f"run{number}"
        training = _train(root, run.name, tokens)
        while training.poll() is None:
            if not list(run.glob("checkpoints/step-*/MANIFEST.json")):
                time.sleep(0.01)
                continue
            ended = run_command("eval", run, "--data", f"b={root / 'b'}", "--tokens", 512, "--json")
            loss = json.loads(ended.output)[0]["b/loss"] if ended.code == 0 else math.nan
            losses.append(loss)
            if not math.isfinite(loss):
                problems[f"eval ended with {ended.code}: {ended.errors.strip()}"] += 1
        if training.returncode:
            problems[f"train ended with {training.returncode}"] += 1
        elif _weights(run) != expected:
            problems["other weights than without eval"] += 1
        if (verified := run_command("verify", run)).code:
            problems[f"verify: {verified.errors.strip()}"] += 1
    return Outcome(len(losses), len(set(losses)), problems)


def _train(root: Path, name: str, tokens: int) -> subprocess.Popen[bytes]:
    recipe = root / f"{name}.yaml"
    recipe.write_text(RECIPE.format(run=root / name, a=root / "a", b=root / "b"))
    settings = [f"tokens={tokens}", *SETTINGS]
    overrides = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "rewarm", "train", str(recipe), *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _weights(run: Path) -> bytes:
    (path,) = run.glob("checkpoints/step-*/model.safetensors")
    return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=409_600, help="of each run; 1,024 a step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build(root)
        started = time.perf_counter()
        outcome = run_tries(root, options.tries, options.tokens)
        seconds = time.perf_counter() - started
    print(
        f"{options.tries} runs of {options.tokens // 1024:,} steps, {outcome.evaluations:,} "
        f"evaluations of {outcome.steps:,} checkpoints in {seconds:.0f} s; "
        f"{outcome.problems.total():,} problems"
    )
    for problem, count in outcome.problems.most_common():
        print(f"{count:6,}  {problem}")


if __name__ == "__main__":
    main()
