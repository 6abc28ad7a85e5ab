"""`rewarm plan --measure` compared with the runs that it predicts: time, memory, disk.

    python benchmarks/plan_accuracy.py [--repeats 3] [--threads N] [--share 1.0] [--out FILE]

Three runs of different shape and length on the text of Python's standard library. Each is planned
and then trained, in turn, by the real commands. Time is that of the whole `rewarm train` process,
memory its peak, disk the most bytes of checkpoints in any of ten samples per second, in any repeat.
Other load on the machine affects both differently; the load average is shown. `--threads 1` keeps
two threads from waiting for each other's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quickstart_shards import write_quickstart_shards
from spread import spread

RECIPE = """\
run: {work}/run
seed: 1
tokens: {tokens}
model: {{architecture: {{{architecture}}}}}
data:
  context: {context}
  max_epochs: null
  train:
    upstream: {{shards: {work}/shards/upstream/train}}
  validation:
    upstream:   {{shards: {work}/shards/upstream/val, tokens: 25k}}
    downstream: {{shards: {work}/shards/downstream/val, tokens: 25k}}
batch: {{tokens: {batch}, microbatch: {microbatch}}}
schedule: {{name: rewarm, peak_lr: 1e-3, min_lr: 1e-4, warmup: 5%}}
precision: fp32
every: {{log: 10, evaluate: {evaluate}, save: {save}}}
keep: {keep}
"""

RUNS: dict[str, dict[str, Any]] = {
    "the quickstart's base, twice as long": {
        "architecture": "layers: 4, hidden: 96, heads: 4, vocabulary: 4096, positions: 128",
        **{"tokens": 1_638_400, "batch": 2048, "microbatch": 16, "context": 128},
        **{"evaluate": 100, "save": 100, "keep": "{}"},
    },
    "1.8 M parameters, `keep: {last: 2}`": {
        "architecture": "layers: 4, hidden: 128, heads: 4, vocabulary: 4096, positions: 256",
        **{"tokens": 2_000_000, "batch": 4096, "microbatch": 16, "context": 256},
        **{"evaluate": 100, "save": 100, "keep": "{last: 2}"},
    },
    "pythia-14m, accumulating 2": {
        "architecture": "layers: 6, hidden: 128, heads: 4, vocabulary: 50304, positions: 2048",
        **{"tokens": 327_680, "batch": 4096, "microbatch": 4, "context": 512},
        **{"evaluate": 20, "save": 40, "keep": "{}"},
    },
}


def planned(recipe: Path) -> dict[str, float]:
    """Returns what `rewarm plan --measure` predicts."""
    command = [sys.executable, "-m", "rewarm", "plan", str(recipe), "--measure", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"rewarm plan failed: {ended.stderr.strip()}")
    plan = json.loads(ended.stdout)
    return {"seconds": 3600 * plan["hours"], "memory": plan["memory"], "disk": plan["disk"]}


def trained(recipe: Path, run: Path) -> dict[str, float]:
    """Returns the time, memory and disk that `rewarm train` used."""
    started, disk = time.perf_counter(), 0
    command = [sys.executable, "-m", "rewarm", "train", str(recipe)]
    with (run.parent / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            disk = max(disk, _bytes(run / "checkpoints"))
            time.sleep(0.1)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"rewarm train failed: {(run.parent / 'output').read_text().strip()}")
    return {"seconds": seconds, "memory": used.ru_maxrss * 1024, "disk": disk}


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed or removed since it was listed
            continue
    return total


def main() -> None:
    """Plans and trains each run in turn, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of each process; by default one per core")
    parser.add_argument("--share", type=float, default=1.0, help="of each run's tokens")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as root:
        write_quickstart_shards(Path(root))
        for repeat in range(options.repeats):
            for number, (name, settings) in enumerate(RUNS.items()):
                work = Path(root) / f"{number}-{repeat}"
                work.mkdir()
                (work / "shards").symlink_to(Path(root) / "shards")
                steps = round(settings["tokens"] * options.share) // settings["batch"]
                values = settings | {"work": work, "tokens": steps * settings["batch"]}
                (work / "recipe.yaml").write_text(RECIPE.format(**values))
                plan = planned(work / "recipe.yaml")
                actual = trained(work / "recipe.yaml", work / "run")
                load = os.getloadavg()[0]
                results[name].append({"planned": plan, "trained": actual, "load": load})
                ratio = plan["seconds"] / actual["seconds"]
                print(
                    f"{name}: planned / trained time {ratio:.2f}, load {load:.1f}", file=sys.stderr
                )
    report(results, options.threads or os.cpu_count() or 1)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def report(results: dict[str, list[dict[str, Any]]], threads: int) -> None:
    """Prints the table."""
    loads = [run["load"] for runs in results.values() for run in runs]
    repeats = len(next(iter(results.values())))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}, torch {version('torch')}; {repeats} repeats: median (lowest "
        f"to highest); load average {min(loads):.1f} to {max(loads):.1f}"
    )
    print("| run | | planned | trained | planned / trained |")
    print("|---|---|---|---|---|")
    for name, runs in results.items():
        for figure, unit, size in (("seconds", "s", 1), ("memory", "MB", 1e6), ("disk", "MB", 1e6)):
            plans, reals = (
                [run[kind][figure] / size for run in runs] for kind in ("planned", "trained")
            )
            if figure == "disk":  # a removed checkpoint exists only briefly beside the new one
                reals = [max(reals)] * len(reals)
            ratios = [plan / real for plan, real in zip(plans, reals, strict=True)]
            label = "time" if figure == "seconds" else figure
            first = name if figure == "seconds" else ""
            print(
                f"| {first} | {label}, {unit} | {spread(plans, 1)} | {spread(reals, 1)} | "
                f"{spread(ratios, 2)} |"
            )


if __name__ == "__main__":
    main()
