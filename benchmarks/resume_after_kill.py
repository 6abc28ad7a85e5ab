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
    names = ("model.safetensors", "optimizer.safetensors", "progress.json")
    lines = read_metrics(run / "metrics.jsonl")
    metrics = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return [(last / name).read_bytes() for name in names], metrics


def main() -> None:
    """Kills, resumes and compares runs, and prints the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    random_numbers = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        build(root)
        (root / "recipe.yaml").write_text(
            RECIPE.format(run=root / "uninterrupted", a=root / "a", b=root / "b")
        )
        command = [sys.executable, "-m", "rewarm", "train", str(root / "recipe.yaml"), "--resume"]
        settings = {**FREQUENT, "data.validation": f"{{a: {{shards: {root}/a, tokens: 1280}}}}"}
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds, uninterrupted = time.perf_counter() - started, outcome(root / "uninterrupted")
        kills, runs, hits, problems = 0, 0, Counter[str](), []
        while kills < options.kills or (not problems and (root / f"run{runs}").exists()):
            run = root / f"run{runs}"
            process = subprocess.Popen(
                [*command, "--set", f"run={run}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                limit = (
                    random_numbers.uniform(0.3, 1.0) * seconds if kills < options.kills else None
                )
                _, error = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                partial = any((run / "checkpoints").glob("*.partial"))
                hits["while saving" if partial else "elsewhere"] += 1
                try:
                    read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
                except RewarmError as error_found:
                    problems.append(str(error_found))
                continue
            if process.returncode:
                problems.append(error.strip().splitlines()[-1])
            elif outcome(run) != uninterrupted:
                problems.append(f"{run.name}: differs from the uninterrupted run")
            runs += 1
    print(
        f"{kills} kills over {runs} runs of {seconds:.1f} s each: "
        + ", ".join(f"{count} {moment}" for moment, count in sorted(hits.items()))
    )
    print("\n".join(problems) or "every run ended byte for byte like the one that was not killed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
