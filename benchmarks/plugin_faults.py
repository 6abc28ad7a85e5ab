"""What each command does with plug-ins that misbehave, and how long a full shelf takes.

    python benchmarks/plugin_faults.py [--repeats 5]

Puts distributions on the path as pip would, runs the real commands, and prints two tables.
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
    """Stays where it is."""
    contract: ClassVar[int] = 1
    name: Literal["{name}"] = "{name}"

    def __call__(self, progress):
        return {gives}
'''

# name: (what it does, its module)
HOSTILE = {
    "raises": ("raises at import", "raise RuntimeError('out of order')"),
    "hangs": (
        "hangs for 3 s at import",
        "import time; time.sleep(3)" + PLAIN.format(name="hangs", gives="1e-3"),
    ),
    "nan": ("returns NaN", PLAIN.format(name="nan", gives="float('nan')")),
    "negative": ("returns a negative rate", PLAIN.format(name="negative", gives="-1e-3")),
    "text": ("returns a string", PLAIN.format(name="text", gives="'1e-3'")),
    "mutates": (
        "keeps state between calls",
        PLAIN.format(name="mutates", gives="self.seen.append(progress) or 1e-3 / len(self.seen)")
        + "\n    seen: ClassVar[list[float]] = []\n",
    ),
    "twin": ("a name that two distributions offer", PLAIN.format(name="twin", gives="1e-3")),
    "contract-2": (
        "built for contract 2",
        PLAIN.format(name="contract-2", gives="1e-3").replace("[int] = 1", "[int] = 2"),
    ),
    "contract-none": (
        "says no contract",
        PLAIN.format(name="contract-none", gives="1e-3").replace("[int] = 1", "[int]"),
    ),
    "versionless": (
        "its distribution has no version",
        PLAIN.format(name="versionless", gives="1e-3"),
    ),
}


def install(site: Path, distribution: str, name: str, source: str, version: str | None) -> None:
    """Leaves what pip leaves of a distribution with one schedule."""
    module = distribution.replace("-", "_")
    info = site / f"{module}-{version or 0}.dist-info"
    info.mkdir(parents=True)
    said = f"Version: {version}\n" if version else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\n{said}")
    (info / "entry_points.txt").write_text(f"[rewarm.schedules]\n{name} = {module}:Plain\n")
    (site / f"{module}.py").write_text(source)


def run(site: Path, *words: object) -> tuple[int, str, str, float]:
    """Returns the code, output, errors and seconds of a command with the site on its path."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "rewarm", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr, time.perf_counter() - began


def brief(code: int, error: str, root: Path) -> str:
    """Returns a cell: the exit code, and the message without the path of this trial."""
    if code == 0:
        return "0"
    return f"{code}: {error.strip().splitlines()[-1].replace(str(root), '…')}"


def hostile(root: Path) -> None:
    """Prints what schedules, check, plot-schedule and train do with each."""
    site = root / "site"
    for name, (_, source) in HOSTILE.items():
        version = None if name == "versionless" else "1.0"
        install(site, f"hostile-{name}", name, source, version)
    install(site, "hostile-twin-b", "twin", PLAIN.format(name="twin", gives="1e-3"), "1.0")
    build(root)
    recipe = root / "recipe.yaml"
    text = RECIPE.format(run=root / "run", a=root / "a", b=root / "b")
    recipe.write_text(text)
    code, out, err, took = run(site, "schedules", "--json")
    assert code == 0, err
    listed = {one["name"]: one["help"] for one in json.loads(out)}
    print(f"`rewarm schedules` with all of them: exit code {code}, {took:.1f} s\n")
    print("| the plug-in | `schedules` says | `check`, `plot-schedule`, `train` end with |")
    print("|---|---|---|")
    for name, (what, _) in HOSTILE.items():
        setting = f"schedule={{name: {name}}}"
        cells = []
        for command in ("check", "plot-schedule", "train"):
            run_dir = ("--set", f"run={root / f'run-{name}'}")
            code, _, err, _ = run(site, command, recipe, "--set", setting, *run_dir)
            assert "Traceback" not in err, err
            cells.append(brief(code, err, root))
        left = (
            "; a run directory is left" if (root / f"run-{name}" / "checkpoints").exists() else ""
        )
        same = cells[0] if len(set(cells)) == 1 else " / ".join(cells)
        print(f"| {what} | {listed[name]} | {same}{left} |")
    for command in ("check", "plot-schedule"):
        code, _, _, took = run(site, command, recipe)
        print(f"\n`{command}` of a recipe that names none of them: exit code {code}, {took:.2f} s")


def full(root: Path, repeats: int) -> None:
    """Prints how long `schedules` takes with 50 plug-ins, and `plot-schedule` with 10 recipes."""
    site, none = root / "fifty", root / "none"
    none.mkdir()
    for number in range(50):
        source = PLAIN.format(name=f"plain-{number}", gives="1e-3")
        install(site, f"plain-{number}", f"plain-{number}", source, "1.0")
    recipes = []
    for number in range(10):
        recipes.append(root / f"recipe-{number}.yaml")
        text = RECIPE.format(run=root / "run", a=root / "a", b=root / "b")
        recipes[-1].write_text(text.replace("lr: 1e-3", f"lr: {number + 1}e-4"))
    print("\n| command | seconds: median (lowest to highest) |\n|---|---|")
    for said, where, words in (
        ("`rewarm schedules`, 50 plug-ins beside its own", site, ["schedules"]),
        ("`rewarm schedules`, its own", none, ["schedules"]),
        (
            "`rewarm plot-schedule` of 10 recipes, in the terminal",
            none,
            ["plot-schedule", *recipes],
        ),
        (
            "the same, as PNG",
            none,
            ["plot-schedule", *recipes, "--out", root / "ten.png"],
        ),
        ("`rewarm --version`", none, ["--version"]),
    ):
        took = []
        for _ in range(repeats):
            code, _, err, seconds = run(where, *words)
            assert code == 0, err
            took.append(seconds)
        print(f"| {said} | {statistics.median(took):.2f} ({min(took):.2f} to {max(took):.2f}) |")


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        hostile(Path(work))
        full(Path(work), said.repeats)


if __name__ == "__main__":
    main()
