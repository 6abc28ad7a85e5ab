"""Compares merged checkpoints of a constant rate, and an average of weights, with a decayed run.

    rewarm quickstart
    python benchmarks/merge_study.py rewarm-quickstart

A model of 1.0 million parameters is trained at a constant rate of 2e-2 on the quickstart's two
corpora, 800 steps of 512 tokens, with a z-loss and `optimizer.ema`. A second run starts from its
checkpoint of step 640 with optimizer state and data position, and decays to 0 over the same 160
steps. Prints the losses of both, of `RUN@ema`, `RUN@best` and of merges of the steps 640 to 800.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """\
run: {run}
seed: {seed}
tokens: {tokens}
model: {model}
data:
  context: 128
  carry: {carry}
  train:
    downstream: {{shards: {data}/downstream/train, weight: 50%}}
    upstream: {{shards: {data}/upstream/train, weight: 50%}}
  validation:
    upstream: {{shards: {data}/upstream/val, tokens: 8192}}
    downstream: {{shards: {data}/downstream/val, tokens: 8192}}
batch: {{tokens: 512, microbatch: 4}}
schedule: {schedule}
optimizer: {optimizer}
precision: fp32
every: {{log: 20, evaluate: 80, save: 20}}
keep: {{last: 9, best: upstream+downstream}}
"""
NEW_MODEL = "{architecture: {layers: 2, hidden: 96, heads: 4, vocabulary: 4096, positions: 128}}"
SETS = ("upstream", "downstream")


def train(folder: Path, data: Path, name: str, **settings: object) -> None:
    """Runs a recipe; the run is folder/name."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.format(run=folder / name, data=data, **settings))
    subprocess.run(["rewarm", "train", recipe], check=True, capture_output=True)


def losses(checkpoint: str, data: Path) -> dict[str, float]:
    """Returns the loss of a checkpoint on both validation sets, in nats per token."""
    sets = [part for name in SETS for part in ("--data", f"{name}={data}/{name}/val")]
    command = ["rewarm", "eval", checkpoint, *sets, "--tokens", "8192", "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    [measured] = json.loads(output)
    return {name: measured[f"{name}/loss"] for name in SETS}


def main() -> None:
    """Trains, merges and prints a table in Markdown; the second argument is the seed."""
    data = Path(sys.argv[1], "shards").resolve()
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plateau = folder / "plateau"
        train(
            *(folder, data, "plateau"),
            **{"seed": seed, "tokens": 409_600, "model": NEW_MODEL, "carry": "false"},
            schedule="{name: rewarm, peak_lr: 2e-2, warmup: 20 steps, decay: none}",
            optimizer="{ema: {decay: 0.98}, z_loss: 1e-4}",
        )
        train(
            *(folder, data, "decayed"),
            **{"seed": seed, "tokens": 81_920, "carry": "true"},
            model=f"{{base: {plateau}@640}}",
            schedule="{name: rewarm, start_lr: 2e-2, peak_lr: 2e-2, min_lr: 0, warmup: 1 step, "
            "decay: 1-sqrt}",
            optimizer="{z_loss: 1e-4, carry: true}",
        )
        rows = {
            "constant rate, step 800": str(plateau),
            "decayed to 0, 1-sqrt, from step 640": str(folder / "decayed"),
            "`optimizer.ema`, 0.98": f"{plateau}@ema",
            "`RUN@best`": f"{plateau}@best",
        }
        for method in ("mean", "ema", "1-sqrt"):
            merged = folder / method
            command = ["rewarm", "merge", f"{plateau}@last:9", "--as", method, "--out", merged]
            subprocess.run(command, check=True, capture_output=True)
            rows[f"merge of 640 to 800, {method}"] = str(merged)
        print(f"| seed {seed} | {' | '.join(f'{name} loss' for name in SETS)} |\n|---|---|---|")
        for name, checkpoint in rows.items():
            measured = losses(checkpoint, data)
            print(f"| {name} | {' | '.join(f'{measured[key]:.4f}' for key in SETS)} |")


if __name__ == "__main__":
    main()
