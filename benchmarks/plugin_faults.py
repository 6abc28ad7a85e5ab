"""What each command does with faulty plug-ins, and how long listing many plug-ins takes.

    python benchmarks/plugin_faults.py [--repeats 5]

Installs distributions as pip would, runs the real commands, and prints two tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_faults import RECIPE, build

PLAIN = '''
import time
from typing import ClassVar, Literal
from rewarm import Schedule

class Plain(Schedule):
    """Keeps one rate."""
    contract: ClassVar[int] = 1
    name: Literal["{name}"] = "{name}"

    def __call__(self, progress):
        return {value}
'''

# name: (description, source of the module)
HOSTILE = {
    "raises": ("raises at import", "raise RuntimeError('out of order')"),
    "hangs": (
        "hangs for 3 s at import",
        "import time; time.sleep(3)" + PLAIN.format(name="hangs", value="1e-3"),
    ),
    "nan": ("returns NaN", PLAIN.format(name="nan", value="float('nan')")),
    "negative": ("returns a negative rate", PLAIN.format(name="negative", value="-1e-3")),
    "exits-import": ("calls sys.exit(0) at import", "import sys; sys.exit(0)"),
    "exits": (
        "calls sys.exit(0) in a call",
        PLAIN.format(name="exits", value="__import__('sys').exit(0)"),
    ),
    "exits-marks": (
        "calls sys.exit(0) for its marks",
        PLAIN.format(name="exits-marks", value="1e-3")
        + "\n    def marks(self):\n        raise SystemExit(0)\n",
    ),
    "generator": (
        "raises GeneratorExit in a call",
        PLAIN.format(name="generator", value="next(self.stop())")
        + "\n    def stop(self):\n        raise GeneratorExit\n",
    ),
    "stuck": (
        "never returns from a call",
        PLAIN.format(name="stuck", value="self.wait()")
        + "\n    def wait(self):\n        while True:\n            pass\n",
    ),
    "huge": ("returns an integer of 400 digits", PLAIN.format(name="huge", value="10**400")),
    "nameless": (
        "raises an exception without text",
        PLAIN.format(name="nameless", value="self.fail()")
        + "\n    def fail(self):\n        raise ValueError\n",
    ),
    "text": ("returns a string", PLAIN.format(name="text", value="'1e-3'")),
    "mutates": (
        "keeps state between calls",
        PLAIN.format(name="mutates", value="self.seen.append(progress) or 1e-3 / len(self.seen)")
        + "\n    seen: ClassVar[list[float]] = []\n",
    ),
    "twin": ("a name that two distributions offer", PLAIN.format(name="twin", value="1e-3")),
    "contract-2": (
        "built for contract 2",
        PLAIN.format(name="contract-2", value="1e-3").replace("[int] = 1", "[int] = 2"),
    ),
    "contract-none": (
        "says no contract",
        PLAIN.format(name="contract-none", value="1e-3").replace("[int] = 1", "[int]"),
    ),
    "versionless": (
        "its distribution has no version",
        PLAIN.format(name="versionless", value="1e-3"),
    ),
}


def install(site: Path, distribution: str, name: str, source: str, version: str | None) -> None:
    """Writes the files that pip would install of a distribution with one schedule."""
    module = distribution.replace("-", "_")
    info = site / f"{module}-{version or 0}.dist-info"
    info.mkdir(parents=True)
    version_line = f"Version: {version}\n" if version else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\n{version_line}")
    (info / "entry_points.txt").write_text(f"[rewarm.schedules]\n{name} = {module}:Plain\n")
    (site / f"{module}.py").write_text(source)


def run(site: Path, *words: object) -> tuple[int, str, str, float]:
    """Runs a command with `site` on its path; returns exit code, output, errors and seconds."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "rewarm", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr, time.perf_counter() - started


def brief(code: int, error: str, root: Path) -> str:
    """Returns a table cell: the exit code, and the message without the temporary path."""
    if code == 0:
        return "0"
    return f"{code}: {error.strip().splitlines()[-1].replace(str(root), '…')}"


def faulty_plugins(root: Path) -> None:
    """Prints what `schedules`, `check`, `plot-schedule` and `train` do with each faulty plug-in."""
    site = root / "site"
    for name, (_, source) in HOSTILE.items():
        version = None if name == "versionless" else "1.0"
        install(site, f"hostile-{name}", name, source, version)
    install(site, "hostile-twin-b", "twin", PLAIN.format(name="twin", value="1e-3"), "1.0")
    build(root)
    recipe = root / "recipe.yaml"
    text = RECIPE.format(run=root / "run", a=root / "a", b=root / "b")
    recipe.write_text(text)
    code, out, err, seconds = run(site, "schedules", "--json")
    assert code == 0, err
    listed = {row["name"]: row["help"] for row in json.loads(out)}
    print(f"`rewarm schedules` with all of them: exit code {code}, {seconds:.1f} s\n")
    print("| plug-in | `schedules` says | `check`, `plot-schedule`, `train` exit with |")
    print("|---|---|---|")
    for name, (description, _) in HOSTILE.items():
        setting = f"schedule={{name: {name}}}"
        cells = []
        for command in ("check", "plot-schedule", "train"):
            run_dir = ("--set", f"run={root / f'run-{name}'}")
            code, _, err, _ = run(site, command, recipe, "--set", setting, *run_dir)
            assert "Traceback" not in err, err
            cells.append(brief(code, err, root))
        run_left = (
            "; leaves a run directory" if (root / f"run-{name}" / "checkpoints").exists() else ""
        )
        shown = cells[0] if len(set(cells)) == 1 else " / ".join(cells)
        print(f"| {description} | {listed[name]} | {shown}{run_left} |")
    for command in ("check", "plot-schedule"):
        code, _, _, seconds = run(site, command, recipe)
        print(
            f"\n`{command}` of a recipe that names none of them: exit code {code}, {seconds:.2f} s"
        )


def many_plugins(root: Path, repeats: int) -> None:
    """Prints the time of `schedules` with 50 plug-ins and of `plot-schedule` with 10 recipes."""
    site, empty = root / "fifty", root / "none"
    empty.mkdir()
    for number in range(50):
        source = PLAIN.format(name=f"plain-{number}", value="1e-3")
        install(site, f"plain-{number}", f"plain-{number}", source, "1.0")
    recipes = []
    for number in range(10):
        recipes.append(root / f"recipe-{number}.yaml")
        text = RECIPE.format(run=root / "run", a=root / "a", b=root / "b")
        recipes[-1].write_text(text.replace("lr: 1e-3", f"lr: {number + 1}e-4"))
    print("\n| command | seconds: median (lowest to highest) |\n|---|---|")
    for description, path, command in (
        ("`rewarm schedules`, 50 plug-ins and its own", site, ["schedules"]),
        ("`rewarm schedules`, its own", empty, ["schedules"]),
        (
            "`rewarm plot-schedule` of 10 recipes, in the terminal",
            empty,
            ["plot-schedule", *recipes],
        ),
        (
            "the same, as PNG",
            empty,
            ["plot-schedule", *recipes, "--out", root / "ten.png"],
        ),
        ("`rewarm --version`", empty, ["--version"]),
    ):
        times = []
        for _ in range(repeats):
            code, _, err, seconds = run(path, *command)
            assert code == 0, err
            times.append(seconds)
        print(
            f"| {description} | {statistics.median(times):.2f} "
            f"({min(times):.2f} to {max(times):.2f}) |"
        )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        faulty_plugins(Path(work))
        many_plugins(Path(work), options.repeats)


if __name__ == "__main__":
    main()
