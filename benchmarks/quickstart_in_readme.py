"""Updates the quickstart's table in README.md, its picture, and the metrics that both are from.

    rewarm quickstart
    python benchmarks/quickstart_in_readme.py rewarm-quickstart

tests/test_docs.py compares README.md and docs/quickstart.png with docs/quickstart-runs/*.jsonl.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rewarm.cli.quickstart_steps import ARM_SCHEDULES, _print_results, _write_recipes
from rewarm.plots.loss_figure import save_losses
from rewarm.recipe.recipe import load_recipe
from rewarm.recipe.yaml_document import write_yaml

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "docs" / "quickstart-runs"
PICTURE = ROOT / "docs" / "quickstart.png"


def runs_of_stored_metrics(folder: Path) -> dict[str, Path]:
    """Writes the quickstart's run directories, without checkpoints; returns them by arm."""
    recipes = _write_recipes(folder)
    runs = {}
    for arm in ARM_SCHEDULES:
        recipe = load_recipe(recipes[arm])
        runs[arm] = recipe.run_directory
        runs[arm].mkdir(parents=True)
        (runs[arm] / "recipe.yaml").write_text(write_yaml(recipe.document()))
        shutil.copy(METRICS / f"{arm}.jsonl", runs[arm] / "metrics.jsonl")
    return runs


def printed_results(runs: dict[str, Path]) -> str:
    """Returns the last lines that `rewarm quickstart` prints, from its table on."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        figure = Path("rewarm-quickstart/curves.png")
        _print_results(runs, figure)
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines()) + "\n"


def main() -> None:
    """Copies the metrics, draws the picture and writes the table."""
    for arm in ARM_SCHEDULES:
        shutil.copy(Path(sys.argv[1], "runs", arm, "metrics.jsonl"), METRICS / f"{arm}.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        runs = runs_of_stored_metrics(Path(folder))
        save_losses({arm: [run] for arm, run in runs.items()}, PICTURE, "png")
        results = printed_results(runs)
    readme = ROOT / "README.md"
    before, table = re.search(
        r"(.*?)(^arm +upstream loss.*?)^```", readme.read_text(), re.S | re.M
    ).groups()
    readme.write_text(readme.read_text().replace(before + table, before + results))


if __name__ == "__main__":
    main()
