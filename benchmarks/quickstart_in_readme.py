"""Updates the quickstart's table in README.md, its pictures, and the metrics that these are from.

    rewarm quickstart
    python benchmarks/quickstart_in_readme.py rewarm-quickstart

tests/test_docs.py compares README.md and docs/quickstart.png with docs/quickstart-runs, and
tests/report/test_html_page_in_browser.py the picture of the report, which Chromium takes.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from rewarm.cli.quickstart_steps import ARM_SCHEDULES, _print_results, _write_recipes
from rewarm.plots.loss_figure import save_losses
from rewarm.recipe.recipe import load_recipe
from rewarm.recipe.yaml_document import write_yaml
from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_page import html_page

ROOT = Path(__file__).parents[1]
STORED_RUNS = ROOT / "docs" / "quickstart-runs"
PICTURE = ROOT / "docs" / "quickstart.png"
REPORT_PICTURE = ROOT / "docs" / "report.png"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def runs_of_stored_metrics(folder: Path) -> dict[str, Path]:
    """Writes the quickstart's run directories, without checkpoints; returns them by arm."""
    recipes = _write_recipes(folder)
    runs = {}
    for arm in ARM_SCHEDULES:
        recipe = load_recipe(recipes[arm])
        runs[arm] = recipe.run_directory
        runs[arm].mkdir(parents=True)
        (runs[arm] / "recipe.yaml").write_text(write_yaml(recipe.document()))
        for name in ("metrics.jsonl", "events.jsonl"):
            shutil.copy(STORED_RUNS / arm / name, runs[arm] / name)
    return runs


def printed_results(runs: dict[str, Path]) -> str:
    """Returns the last lines that `rewarm quickstart` prints, from its table on."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        figure = Path("rewarm-quickstart/curves.png")
        _print_results(runs, figure)
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines()) + "\n"


def photograph_report(runs: dict[str, Path], folder: Path) -> Path:
    """Returns a picture of the top of the report on these runs, made in `folder` by Chromium."""
    page, picture = folder / "report.html", folder / "report.png"
    page.write_text(html_page(collect_runs(list(runs.values()))))
    subprocess.run(
        [
            *(
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
            ),
            *("--virtual-time-budget=5000", "--window-size=1120,1400", f"--screenshot={picture}"),
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
    )
    return picture


def main() -> None:
    """Copies the metrics and events, draws the pictures and writes the table."""
    for arm in ARM_SCHEDULES:
        (STORED_RUNS / arm).mkdir(parents=True, exist_ok=True)
        run = Path(sys.argv[1], "runs", arm)
        shutil.copy(run / "metrics.jsonl", STORED_RUNS / arm)
        events = (run / "events.jsonl").read_text().splitlines(keepends=True)
        # Checkpoints are not stored, and a report would say that they are gone.
        kept = [line for line in events if json.loads(line)["kind"] != "save"]
        (STORED_RUNS / arm / "events.jsonl").write_text("".join(kept))
    with tempfile.TemporaryDirectory() as folder:
        runs = runs_of_stored_metrics(Path(folder))
        save_losses({arm: [run] for arm, run in runs.items()}, PICTURE, "png")
        picture = Image.open(photograph_report(runs, Path(folder))).convert("RGB")
        picture.quantize(64).save(REPORT_PICTURE, optimize=True)
        results = printed_results(runs)
    readme = ROOT / "README.md"
    before, table = re.search(
        r"(.*?)(^arm +upstream loss.*?)^```", readme.read_text(), re.S | re.M
    ).groups()
    readme.write_text(readme.read_text().replace(before + table, before + results))


if __name__ == "__main__":
    main()
