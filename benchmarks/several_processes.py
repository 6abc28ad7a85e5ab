"""Trains the same recipe in 1, 2, 3 and 4 processes, and compares losses, norms and digests.

    python benchmarks/several_processes.py [--steps 100] [--precision fp32]

The weights are on every process (shard 1), divided among all (FSDP2), and with 4 processes also
among groups of 2 (HSDP); all on gloo. The model has 2 layers of width 64 and an odd vocabulary of
515 rows; a batch has 16 sequences, which 3 processes have to pad. Prints, for each, the largest
relative difference from one process at any step, and whether digests, rates and counts are equal.
Exits with 1 if one is not, or a difference exceeds its tolerance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_faults import build

from rewarm.runs.metrics_file import read_metrics

MESHES = [(2, "1"), (2, "all"), (3, "1"), (3, "all"), (4, "1"), (4, "2"), (4, "all")]
MEASURED = ("loss", "grad_norm", "a/loss", "b/loss")
EXACT = ("kind", "step", "tokens", "lr", "stream", "skipped", "a/tokens", "b/tokens")
TOLERANCES = {"fp32": (1e-6, 1e-6), "bf16": (1e-3, 1e-2)}
"""Of losses and of the gradient norm: bf16 rounds each matmul's result to 8 bits."""
RECIPE = """\
run: {root}/one
seed: 5
tokens: {tokens}
model: {{architecture: {{layers: 2, hidden: 64, heads: 2, vocabulary: 515, positions: 64}}}}
data:
  context: 64
  max_epochs: null
  train:
    a: {{shards: {root}/a, weight: 70%}}
    b: {{shards: {root}/b, weight: 30%}}
  validation:
    a: {{shards: {root}/a, tokens: 1280}}
    b: {{shards: {root}/b, tokens: 1344}}
batch: {{tokens: 1024, microbatch: 8}}
schedule: {{name: rewarm, peak_lr: 1e-3, min_lr: 1e-4, warmup: 10%}}
precision: {precision}
every: {{log: 1, evaluate: 20, save: null}}
"""


def train(recipe: Path, run: Path, processes: int, shard: str) -> list[dict[str, Any]]:
    """Trains the recipe, and returns its metrics."""
    command = [sys.executable, "-m", "rewarm", "train", str(recipe), "--gpus", str(processes)]
    command += ["--set", f"run={run}", "--set", f"parallel.shard={shard}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{processes} processes, shard {shard}: {ended.stderr[-2000:]}")
    return read_metrics(run / "metrics.jsonl")


def differences(
    lines: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> tuple[dict[str, float], bool]:
    """Returns the largest relative difference of each number, and whether the rest is equal."""
    worst = dict.fromkeys(MEASURED, 0.0)
    is_equal = len(lines) == len(expected)
    for line, one in zip(lines, expected, strict=False):
        is_equal &= all(line.get(name) == one.get(name) for name in EXACT)
        for name in MEASURED:
            if name in one:
                worst[name] = max(worst[name], abs(line[name] / one[name] - 1))
    return worst, is_equal


def main() -> None:
    """Trains on every mesh, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--precision", choices=TOLERANCES, default="fp32")
    options = parser.parse_args()
    is_good = True
    tolerance, tolerance_of_norm = TOLERANCES[options.precision]
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        build(root)
        recipe = root / "recipe.yaml"
        recipe.write_text(
            RECIPE.format(root=root, tokens=1024 * options.steps, precision=options.precision)
        )
        one = train(recipe, root / "one", 1, "1")
        print(f"{options.steps} steps in {options.precision}, {len(one)} lines of metrics")
        print("processes  shard  " + "  ".join(f"{name:>9}" for name in MEASURED) + "  the rest")
        for processes, shard in MESHES:
            lines = train(recipe, root / f"{processes}-{shard}", processes, shard)
            worst, is_equal = differences(lines, one)
            of_norm = worst["grad_norm"]
            of_losses = max(worst[name] for name in MEASURED if name != "grad_norm")
            is_good &= is_equal and of_losses <= tolerance and of_norm <= tolerance_of_norm
            numbers = "  ".join(f"{worst[name]:9.1e}" for name in MEASURED)
            rest = "equal" if is_equal else "DIFFERS"
            print(f"{processes:9}  {shard:>5}  {numbers}  {rest}", flush=True)
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
