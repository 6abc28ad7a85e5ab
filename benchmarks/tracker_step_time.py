"""Measures step times and exit codes of runs whose tracker works, raises, hangs or floods.

    rewarm quickstart
    python benchmarks/tracker_step_time.py rewarm-quickstart --repeats 5

Runs take turns. A step's time is that of `tokens_per_second` in metrics.jsonl, logged at each step,
without the first ten steps: the median, and the mean, in which slower steps at the start count.
Needs the extra `tensorboard`, and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

_STEPS = 200

TRACKER = '''
import sys, time
from contextlib import contextmanager
from typing import ClassVar, Literal

from rewarm import Tracker


class Hostile(Tracker):
    """Misbehaves from step 5 on."""

    contract: ClassVar[int] = 1
    how: Literal["raises", "hangs", "floods"]
    """In which way."""

    @contextmanager
    def open(self, run):
        def log(step, values):
            if step < 5:
                return
            if self.how == "raises":
                raise RuntimeError("the server is gone")
            while self.how == "hangs":
                time.sleep(60)
            while self.how == "floods":
                print("x" * 10_000)

        yield log
'''
TRACKERS = {
    "none": "{}",
    "tensorboard": "{tensorboard: {}}",
    **{how: f"{{hostile: {{how: {how}}}}}" for how in ("raises", "hangs", "floods")},
}


def write_plugin(folder: Path) -> None:
    """Writes the tracker and the metadata by which it is found."""
    (folder / "hostile.py").write_text(TRACKER)
    metadata = folder / "hostile-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rewarm.trackers]\nhostile = hostile:Hostile\n")


class Measured(NamedTuple):
    """A run."""

    median: float
    """Milliseconds of a step."""
    mean: float
    """Milliseconds of a step."""
    seconds: float
    """Of the whole command."""
    code: int


def train(recipe: Path, run: Path, trackers: str, plugin: Path) -> Measured:
    """Trains with a tracker."""
    path = os.pathsep.join(filter(None, [str(plugin), os.environ.get("PYTHONPATH")]))
    settings = {
        **{"run": run, "tokens": _STEPS * 2048, "trackers": trackers},
        **{"every.log": 1, "every.evaluate": "null", "every.save": "null"},
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    started = time.perf_counter()
    process = subprocess.run(
        ["rewarm", "train", recipe, *options],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    times = [
        2048e3 / line["tokens_per_second"]
        for line in lines
        if line["kind"] == "train" and line["step"] > 10
    ]
    return Measured(median(times), fmean(times), seconds, process.returncode)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("quickstart", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    recipe = arguments.quickstart / "recipes" / "constant.yaml"
    measured: dict[str, list[Measured]] = {name: [] for name in TRACKERS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_plugin(folder)
        for repeat in range(arguments.repeats):
            for name, trackers in TRACKERS.items():
                run = folder / f"{name}-{repeat}"
                measured[name].append(train(recipe, run, trackers, folder))
                print(name, measured[name][-1], file=sys.stderr, flush=True)
    print("| tracker | median ms | mean ms | seconds of the command | exit codes |")
    print("|---|---|---|---|---|")
    for name, results in measured.items():
        medians, means, seconds, codes = zip(*results, strict=True)
        cells = [_spread(medians, ".0f"), _spread(means, ".0f"), _spread(seconds, ".1f")]
        print("|", " | ".join([name, *cells, ", ".join(map(str, sorted(set(codes))))]), "|")


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (format(f(values), form) for f in (min, median, max))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
