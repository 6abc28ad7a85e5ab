"""Compares the memory of each process with arithmetic, for a model that one process cannot hold.

    python benchmarks/process_memory.py [--layers 12] [--hidden 768]

Limits the memory of every process (RLIMIT_DATA: what it may write to and shares with nobody) to
that of a run of a tiny model, plus 16 bytes per parameter: the weights, gradients and Adam moments
of the model, with nothing left for its activations or a save. One process has to fail with one
clear error; with `parallel.shard: all`, 2 and 4 processes have to start, train, save, and resume
from a checkpoint of several parts under the same limit.

Prints the peak of each process's anonymous memory (RssAnon, sampled) and what it is by arithmetic:
16 bytes per parameter divided by the processes; the host copy of a save, 12 bytes per parameter
divided by the processes; the layers that are gathered, two with weights, gradients and the buffers
that reduce them; and the process with a tiny model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from data_faults import RECIPE, build
from kill_one_process import RUN_LIMIT, Run

SETTINGS = {
    "data.context": "32",
    "batch": "{tokens: 128, microbatch: 1}",
    "every": "{log: 1, evaluate: null, save: 1000}",
}
TINY = "{layers: 1, hidden: 16, heads: 1, vocabulary: 300, positions: 64}"
GATHERED_LAYERS = 2
MB = 1e6


class Peaks(NamedTuple):
    """The most memory that each process had, in bytes."""

    anonymous: list[int]
    """In RAM, and not of a file (RssAnon)."""
    data: list[int]
    """Of its address space, as RLIMIT_DATA counts it (VmData)."""


def memory_of(pid: int) -> dict[str, int]:
    """Returns RssAnon and VmData of a process, in bytes; nothing if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines)
    names = [name for name in ("RssAnon", "VmData") if name in values]
    return {name: 1024 * int(values[name].split()[0]) for name in names}


def sample_peaks(run: Run, processes: int) -> Peaks:
    """Samples the memory of a run's processes until it ends.

    Raises:
        TimeoutError: it does not end.
    """
    peaks: dict[int, dict[str, int]] = {}
    deadline = time.monotonic() + RUN_LIMIT
    pids: list[int] = []
    while run.process.poll() is None:
        if len(pids) < processes:
            pids = [run.process.pid] if processes == 1 else run.ranks()
        for pid in pids:
            before = peaks.setdefault(pid, {})
            for name, value in memory_of(pid).items():
                before[name] = max(value, before.get(name, 0))
        if time.monotonic() > deadline:
            run.process.kill()
            raise TimeoutError(run.log.read_text())
        time.sleep(0.003)
    ordered = [peaks[pid] for pid in sorted(peaks)]
    return Peaks(*([peak.get(name, 0) for peak in ordered] for name in ("RssAnon", "VmData")))


class Runs:
    """Starts runs of a recipe, and prints a row of the table for each."""

    def __init__(self, root: Path, layers: int, hidden: int) -> None:
        self.root, self.layers, self.hidden = root, layers, hidden
        build(root)
        (root / "recipe.yaml").write_text(RECIPE.format(run=root, a=root / "a", b=root / "b"))
        self.large = TINY.replace("layers: 1", f"layers: {layers}").replace(
            "hidden: 16, heads: 1", f"hidden: {hidden}, heads: {hidden // 64}"
        )
        self.layer_parameters = 12 * hidden**2 + 13 * hidden
        self.parameters = layers * self.layer_parameters + 2 * 300 * hidden + 2 * hidden
        self.base: dict[int, Peaks] = {}
        self.limit: int | None = None
        self.failures = 0

    def start(self, name: str, processes: int, architecture: str, shard: str, steps: int) -> Run:
        settings = {
            **SETTINGS,
            "model.architecture": architecture,
            "tokens": str(128 * steps),
            "parallel.shard": shard,
        }
        command = [sys.executable, "-m", "rewarm", "train", str(self.root / "recipe.yaml")]
        command += ["--resume", "--accept-changes", "--gpus", str(processes)]
        command += [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
        if self.limit:
            command = ["prlimit", f"--data={self.limit}", *command]
        return Run(command, self.root / name)

    def measure_base(self, processes: int) -> None:
        """Runs a tiny model, of which only the interpreter and its libraries take memory."""
        run = self.start(f"tiny-{processes}", processes, TINY, "all", 2)
        self.base[processes] = sample_peaks(run, processes)
        assert run.process.returncode == 0, run.log.read_text()

    def arithmetic(self, processes: int, shard: str) -> float:
        """Returns the peak of a process in bytes, with a save."""
        divided_by = processes if shard == "all" else 1
        gathered = 3 * GATHERED_LAYERS * 4 * self.layer_parameters if processes > 1 else 0
        copy = 12 * self.parameters / processes
        base = max(self.base[processes].anonymous)
        return 16 * self.parameters / divided_by + copy + gathered + base

    def row(
        self, name: str, what: str, processes: int, shard: str, steps: int, *, fits: bool
    ) -> None:
        run = self.start(name, processes, self.large, shard, steps)
        peaks = sample_peaks(run, processes)
        run.wait_for_end(RUN_LIMIT)
        lines = run.log.read_text().splitlines()
        errors = [line for line in lines if line.startswith("error:")]
        result = "trained and saved"
        if run.process.returncode:
            result = f"exit {run.process.returncode}: " + " / ".join(errors or lines[-3:])
        self.failures += (run.process.returncode == 0) != fits or bool(
            not fits and (not errors or any("out of memory" not in error for error in errors))
        )
        measured, data = (
            " ".join(f"{value / MB:,.0f}" for value in values) or "-" for values in peaks
        )
        expected = f"{self.arithmetic(processes, shard) / MB:,.0f}"
        result = result.replace(str(self.root), "")
        print(f"| {processes}, {shard} | {what} | {measured} | {expected} | {data} | {result} |")
        sys.stdout.flush()


def main() -> None:
    """Runs the model on 1, 2 and 4 processes under one limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as work:
        runs = Runs(Path(work), options.layers, options.hidden)
        for processes in (1, 2, 4):
            runs.measure_base(processes)
        base = max(max(peaks.data) for peaks in runs.base.values())
        runs.limit = base + 16 * runs.parameters
        print(
            f"torch {torch.__version__}; {runs.parameters:,} parameters; at most "
            f"{runs.limit / MB:,.0f} MB of data for each process: {base / MB:,.0f} MB with a tiny "
            "model, and 16 bytes per parameter"
        )
        print(
            "| processes, shard | what | peak of RssAnon, MB, of each | by arithmetic | peak of "
            "VmData, MB | result |\n|---|---|---|---|---|---|"
        )
        runs.row("alone", "new weights, 2 steps", 1, "1", 2, fits=False)
        runs.row("copies", "new weights, 2 steps", 2, "1", 2, fits=False)
        runs.row("divided", "new weights, 2 steps", 2, "all", 2, fits=True)
        runs.row("divided", "resumed by one", 1, "1", 4, fits=False)
        runs.row("divided", "resumed, 2 parts", 2, "all", 4, fits=True)
        runs.row("divided", "resumed, 2 parts", 4, "all", 6, fits=True)
        runs.row("divided", "resumed, 4 parts", 2, "all", 8, fits=True)
        verified = subprocess.run(
            [sys.executable, "-m", "rewarm", "verify", str(runs.root / "divided")],
            capture_output=True,
            text=True,
            check=False,
        )
        print(verified.stderr or "rewarm verify: all checkpoints are intact")
    sys.exit(bool(runs.failures or verified.returncode))


if __name__ == "__main__":
    main()
