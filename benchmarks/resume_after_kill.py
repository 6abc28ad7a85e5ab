"""A run killed again and again, at any moment, ends as one that never was.

    python benchmarks/resume_after_kill.py [--kills 60] [--seed 1]

Starts `rewarm train --resume` and kills it with SIGKILL at a random instant, until the kills are
used up; a run that ends before its kill is compared with the uninterrupted one, and the next one
begins. Steps, saves, evaluations and log lines follow each other within milliseconds, so that kills
fall into all of them. Says how many kills fell where, and what differed: nothing should.
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
OFTEN = {"every": "{log: 1, evaluate: 3, save: 2}", "tokens": "819200", "data.max_epochs": "null"}


def outcome(run: Path) -> tuple[list[bytes], list[dict[str, object]]]:
    """Returns what training made: the last checkpoint's bytes, and the metrics but for times."""
    last = last_checkpoint(run)
    assert last is not None
    names = ("model.safetensors", "optimizer.safetensors", "progress.json")
    lines = read_metrics(run / "metrics.jsonl")
    rest = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return [(last / name).read_bytes() for name in names], rest


def main() -> None:
    """Kills, resumes, compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    said = parser.parse_args()
    draw = random.Random(said.seed)
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        build(root)
        (root / "recipe.yaml").write_text(
            RECIPE.format(run=root / "straight", a=root / "a", b=root / "b")
        )
        words = [sys.executable, "-m", "rewarm", "train", str(root / "recipe.yaml"), "--resume"]
        settings = {**OFTEN, "data.validation": f"{{a: {{shards: {root}/a, tokens: 1280}}}}"}
        for name, value in settings.items():
            words += ["--set", f"{name}={value}"]
        began = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        whole, straight = time.perf_counter() - began, outcome(root / "straight")
        kills, runs, left, bad = 0, 0, Counter[str](), []
        while kills < said.kills or (not bad and (root / f"run{runs}").exists()):
            run = root / f"run{runs}"
            process = subprocess.Popen(
                [*words, "--set", f"run={run}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                limit = draw.uniform(0.3, 1.0) * whole if kills < said.kills else None
                _, error = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                partial = any((run / "checkpoints").glob("*.partial"))
                left["while saving" if partial else "elsewhere"] += 1
                try:
                    read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
                except RewarmError as unreadable:
                    bad.append(str(unreadable))
                continue
            if process.returncode:
                bad.append(error.strip().splitlines()[-1])
            elif outcome(run) != straight:
                bad.append(f"{run.name}: differs from the uninterrupted run")
            runs += 1
    print(
        f"{kills} kills over {runs} runs of {whole:.1f} s each: "
        + ", ".join(f"{count} {where}" for where, count in sorted(left.items()))
    )
    print("\n".join(bad) or "every run ended byte for byte as the one that was not killed")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
