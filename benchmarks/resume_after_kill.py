"""Checks that a run that is killed at random moments ends like an uninterrupted one.

    python benchmarks/resume_after_kill.py [--kills 60] [--seed 1]

Starts `rewarm train --resume` and kills it with SIGKILL at a random moment, as often as `--kills`
says; a run that ends before its kill is compared with the uninterrupted one, and another run is
started. Steps, saves, evaluations and log lines are milliseconds apart, so that kills hit all of
them. Prints how many kills hit what, and what differed; nothing should differ.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from data_faults import RECIPE, build

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.errors import RewarmError
from rewarm.runs.metrics_file import read_metrics

TIMES = ("tokens_per_second", "mfu", "data_wait", "save_stall")
FREQUENT = {
    "every": "{log: 1, evaluate: 3, save: 2}",
    "tokens": "819200",
    "data.max_epochs": "null",
}


def outcome(run: Path) -> tuple[list[bytes], list[dict[str, object]]]:
    """Returns the results of a run: the last checkpoint's bytes, and the metrics without times."""
    last = last_checkpoint(run)
    assert last is not None
    files = [*sorted(last.glob("*.safetensors")), last / "progress.json"]
    lines = read_metrics(run / "metrics.jsonl")
    metrics = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return [path.read_bytes() for path in files], metrics


class Counts:
    """The kills, the runs that ended, and the problems so far."""

    def __init__(self) -> None:
        self.kills, self.runs = 0, 0
        self.hits = Counter[str]()
        """Kills while saving and elsewhere."""
        self.problems: list[str] = []


def run_until_killed(command: list[str], run: Path, limit: float | None, counts: Counts) -> bool:
    """Runs a command and kills it after `limit` seconds; returns whether it ended by itself."""
    process = subprocess.Popen(
        [*command, "--set", f"run={run}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        counts.kills += 1
        partial = any((run / "checkpoints").glob("*.partial"))
        counts.hits["while saving" if partial else "elsewhere"] += 1
        try:
            read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        except RewarmError as error:
            counts.problems.append(str(error))
        return False
    if process.returncode:
        counts.problems.append(errors.strip().splitlines()[-1])
    return True


def training_command(root: Path) -> list[str]:
    """Writes shards and a recipe, and returns the command that trains or resumes it."""
    build(root)
    (root / "recipe.yaml").write_text(
        RECIPE.format(run=root / "uninterrupted", a=root / "a", b=root / "b")
    )
    settings = {**FREQUENT, "data.validation": f"{{a: {{shards: {root}/a, tokens: 1280}}}}"}
    overrides = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    recipe = str(root / "recipe.yaml")
    return [sys.executable, "-m", "rewarm", "train", recipe, "--resume", *overrides]


def main() -> None:
    """Kills, resumes and compares runs, and prints the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    random_numbers = random.Random(options.seed)
    counts = Counts()
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        command = training_command(root)
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds, uninterrupted = time.perf_counter() - started, outcome(root / "uninterrupted")
        while (more := counts.kills < options.kills) or (
            not counts.problems and (root / f"run{counts.runs}").exists()
        ):
            run = root / f"run{counts.runs}"
            limit = random_numbers.uniform(0.3, 1.0) * seconds if more else None
            problems = len(counts.problems)
            if run_until_killed(command, run, limit, counts):
                if len(counts.problems) == problems and outcome(run) != uninterrupted:
                    counts.problems.append(f"{run.name}: differs from the uninterrupted run")
                counts.runs += 1
    print(
        f"{counts.kills} kills over {counts.runs} runs of {seconds:.1f} s each: "
        + ", ".join(f"{count} {moment}" for moment, count in sorted(counts.hits.items()))
    )
    success = "every run ended byte for byte like the one that was not killed"
    print("\n".join(counts.problems) or success)
    sys.exit(bool(counts.problems))


if __name__ == "__main__":
    main()
