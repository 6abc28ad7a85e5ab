"""`rewarm plan --measure` against the runs that it foretells: time, memory, disk.

    python benchmarks/plan_accuracy.py [--repeats 3] [--threads N] [--share 1.0] [--out FIGURES.json]

Three runs of different shape and length on the text of Python's standard library. Each is planned
and then trained, in turn, by the commands that a person would type. Time is that of the process of
`rewarm train` from its beginning to its end, memory its peak, disk the most bytes of checkpoints
that were seen at once, ten times a second, in any repeat. Where others use the machine, it is not
the same one for both; the load average is shown. `--threads 1` keeps two threads from waiting for
each other's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

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


def prepare(work: Path) -> None:
    """Writes the quickstart's shards."""
    from rich.console import Console

    from rewarm.cli.commands import quickstart

    texts = quickstart._write_texts(work / "text")
    tokenizer = quickstart._train_tokenizer(work / "tokenizer.json", texts)
    for name, path in texts.items():
        quickstart._shard(name, path, work / "shards" / name, tokenizer, Console(quiet=True))


def planned(recipe: Path) -> dict[str, float]:
    """Returns what `rewarm plan --measure` foretells."""
    command = [sys.executable, "-m", "rewarm", "plan", str(recipe), "--measure", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"rewarm plan failed: {ended.stderr.strip()}")
    bill = json.loads(ended.stdout)
    return {"seconds": 3600 * bill["hours"], "memory": bill["memory"], "disk": bill["disk"]}


def trained(recipe: Path, run: Path) -> dict[str, float]:
    """Returns what `rewarm train` took."""
    began, disk = time.perf_counter(), 0
    command = [sys.executable, "-m", "rewarm", "train", str(recipe)]
    with (run.parent / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            disk = max(disk, _bytes(run / "checkpoints"))
            time.sleep(0.1)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"rewarm train failed: {(run.parent / 'said').read_text().strip()}")
    return {"seconds": seconds, "memory": used.ru_maxrss * 1024, "disk": disk}


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed, or gone, since it was listed
            continue
    return total


def main() -> None:
    """Plans and runs them in turn, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of each process; as many as cores if not said")
    parser.add_argument("--share", type=float, default=1.0, help="of each run's tokens")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    said = parser.parse_args()
    if said.threads:
        os.environ["OMP_NUM_THREADS"] = str(said.threads)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as root:
        prepare(Path(root))
        for repeat in range(said.repeats):
            for number, (name, settings) in enumerate(RUNS.items()):
                work = Path(root) / f"{number}-{repeat}"
                work.mkdir()
                (work / "shards").symlink_to(Path(root) / "shards")
                steps = round(settings["tokens"] * said.share) // settings["batch"]
                told = settings | {"work": work, "tokens": steps * settings["batch"]}
                (work / "recipe.yaml").write_text(RECIPE.format(**told))
                plan = planned(work / "recipe.yaml")
                real = trained(work / "recipe.yaml", work / "run")
                load = os.getloadavg()[0]
                found[name].append({"planned": plan, "trained": real, "load": load})
                ratio = plan["seconds"] / real["seconds"]
                print(f"{name}: {ratio:.2f} of its time, load {load:.1f}", file=sys.stderr)
    report(found, said.threads or os.cpu_count() or 1)
    if said.out:
        said.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def report(found: dict[str, list[dict[str, Any]]], threads: int) -> None:
    """Prints the table."""
    loads = [one["load"] for runs in found.values() for one in runs]
    repeats = len(next(iter(found.values())))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}, torch {version('torch')}; {repeats} repeats: median (lowest "
        f"to highest); load average {min(loads):.1f} to {max(loads):.1f}"
    )
    print("| run | | planned | trained | planned / trained |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        for figure, unit, size in (("seconds", "s", 1), ("memory", "MB", 1e6), ("disk", "MB", 1e6)):
            plans, reals = (
                [one[of][figure] / size for one in runs] for of in runs[0] if of != "load"
            )
            if figure == "disk":  # the checkpoint that is dropped is there for a moment only
                reals = [max(reals)] * len(reals)
            ratios = [plan / real for plan, real in zip(plans, reals, strict=True)]
            what = "time" if figure == "seconds" else figure
            first = name if figure == "seconds" else ""
            print(
                f"| {first} | {what}, {unit} | {spread(plans, 1)} | {spread(reals, 1)} | "
                f"{spread(ratios, 2)} |"
            )


def spread(values: list[float], digits: int) -> str:
    """Returns `median (lowest to highest)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    main()
