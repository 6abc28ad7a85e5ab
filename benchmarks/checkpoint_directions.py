"""Saves checkpoints on 4 processes, and reads them with other numbers of them and other programs.

    python benchmarks/checkpoint_directions.py

Trains 20 steps on 4 processes (gloo, fp32) with `parallel.shard` 1, 2 and all, and saves after 10.
Prints, for each, whether
  - the same run again writes the same bytes, and so does one that is resumed on 4 from step 10;
  - transformers and `rewarm eval` read the weights bit by bit, and measure the logged loss;
  - runs that are resumed on 1, 2 and 3 processes read the same batches, and their losses differ by
    at most 1e-6 of the loss; or, with a learning rate too small to change any weight, save the
    weights of step 10 bit by bit.
Exits with 1 if anything is not so.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_faults import build
from resume_after_kill import outcome
from several_processes import RECIPE

from rewarm.runs.metrics_file import read_metrics

SHARDS = ("1", "2", "all")
UNCHANGED = "{name: constant, lr: 1e-30}"
TOLERANCE = 1e-6
LIMIT = 600.0
"""Seconds of a run; what takes longer hangs."""


class Directions:
    """Runs of one recipe, and whether anything was wrong with them."""

    def __init__(self, root: Path) -> None:
        build(root)
        self.root, self.problems = root, 0
        (root / "recipe.yaml").write_text(
            RECIPE.format(root=root, tokens=20 * 1024, precision="fp32")
        )

    def train(self, name: str, processes: int, shard: str, *more: str) -> Path:
        """Trains or resumes a run; returns its directory."""
        run = self.root / name
        settings = {"run": str(run), "parallel.shard": shard, "every.save": "10"}
        command = [sys.executable, "-m", "rewarm", "train", str(self.root / "recipe.yaml")]
        command += [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
        command += ["--gpus", str(processes), *more]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
        if ended.returncode:
            sys.exit(f"{name}: exit {ended.returncode}: {ended.stderr[-3000:]}")
        return run

    def resume(self, run: Path, processes: int, shard: str, *more: str) -> Path:
        """Resumes a copy of a run from its step 10; returns its directory."""
        name = f"{run.name}-on-{processes}"
        shutil.copytree(run, self.root / name)
        return self.train(name, processes, shard, "--resume-from", "10", *more)

    def show(self, what: str, is_right: bool, detail: str = "") -> None:
        self.problems += not is_right
        print(f"{what}: {'yes' if is_right else 'NO'}{detail}", flush=True)


def stored_weights(checkpoint: Path) -> dict[str, bytes]:
    """Returns the weights in the files of a checkpoint, as bytes."""
    from safetensors.torch import load_file

    parts = sorted(checkpoint.glob("model*.safetensors"))
    return {
        name: tensor.numpy().tobytes() for part in parts for name, tensor in load_file(part).items()
    }


def weights_in_transformers(checkpoint: Path) -> dict[str, bytes]:
    """Returns the weights that transformers has loaded, as bytes, by their names in the files."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    weights = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    weights["embed_out.weight"] = weights.pop("lm_head.weight")  # its name since transformers 5
    return weights


def losses(run: Path) -> Iterator[tuple[str, float]]:
    """Yields the digest of the batches and the loss of each step after 10."""
    for line in read_metrics(run / "metrics.jsonl"):
        if line["kind"] == "train" and line["step"] > 10:
            yield line["stream"], line["loss"]


def evaluated(directions: Directions, checkpoints: list[Path]) -> list[float]:
    """Returns the losses that `rewarm eval` measures on the validation set of the runs."""
    command = [sys.executable, "-m", "rewarm", "eval", *map(str, checkpoints), "--json"]
    command += ["--data", f"a={directions.root}/a", "--tokens", "1280", "--context", "64"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
    return [row["a/loss"] for row in json.loads(ended.stdout)]


def check_saved_on_4(directions: Directions, shard: str) -> Path:
    """Trains on 4 processes; returns the run."""
    print(f"saved on 4 processes, parallel.shard: {shard}", flush=True)
    run = directions.train(f"shard-{shard}", 4, shard)
    again = directions.train(f"shard-{shard}-again", 4, shard)
    directions.show("  the same bytes again", outcome(again) == outcome(run))
    resumed = directions.resume(run, 4, shard)
    directions.show("  the same bytes, resumed on 4", outcome(resumed) == outcome(run))
    checkpoint = run / "checkpoints" / "step-00000010"
    with contextlib.redirect_stderr(io.StringIO()):
        same = weights_in_transformers(checkpoint) == stored_weights(checkpoint)
    files = len(list(checkpoint.glob("model-*.safetensors")))
    directions.show(f"  the same weights in transformers, from {files} files", same)
    return run


def check_resumed_elsewhere(directions: Directions, run: Path, processes: int) -> None:
    """Resumes on another number of processes, and compares losses and batches."""
    resumed = directions.resume(run, processes, "all")
    pairs = list(zip(losses(run), losses(resumed), strict=True))
    assert len(pairs) == 10
    same_batches = all(here[0] == there[0] for here, there in pairs)
    largest = max(abs(there[1] / here[1] - 1) for here, there in pairs)
    directions.show(
        f"  resumed on {processes}: the same batches, losses within {TOLERANCE:g}",
        same_batches and largest <= TOLERANCE,
        f" (at most {largest:.1e})",
    )


def check_weights_elsewhere(directions: Directions, run: Path, processes: int) -> None:
    """Has another number of processes load and save weights without changing them."""
    schedule = ("--set", f"schedule={UNCHANGED}", "--accept-changes")
    resumed = directions.resume(run, processes, "all", *schedule)
    loaded = stored_weights(run / "checkpoints" / "step-00000010")
    saved = stored_weights(resumed / "checkpoints" / "step-00000020")
    directions.show(f"  loaded and saved on {processes}: the same weights", loaded == saved)


def main() -> None:
    """Saves and reads in every direction."""
    os.environ["OMP_NUM_THREADS"] = "1"  # on which the last bits depend
    with tempfile.TemporaryDirectory() as work:
        directions = Directions(Path(work))
        runs = []
        for shard in SHARDS:
            runs.append(run := check_saved_on_4(directions, shard))
            for processes in (1, 2, 3):
                check = check_weights_elsewhere if shard == "2" else check_resumed_elsewhere
                check(directions, run, processes)
        logged = [
            line["a/loss"]
            for run in runs
            for line in read_metrics(run / "metrics.jsonl")
            if line["kind"] == "evaluate" and line["step"] == 20
        ]
        measured = evaluated(directions, [run / "checkpoints" / "step-00000020" for run in runs])
        largest = max(abs(a / b - 1) for a, b in zip(measured, logged, strict=True))
        directions.show(
            "rewarm eval measures the losses that the runs have logged",
            largest <= TOLERANCE,
            f" (within {largest:.1e})",
        )
    sys.exit(bool(directions.problems))


if __name__ == "__main__":
    main()
