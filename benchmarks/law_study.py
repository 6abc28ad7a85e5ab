"""The parts of the law study that are not runs: text, predictions, measured curves.

    python benchmarks/law_study.py shards      # text, tokenizer and token shards
    python benchmarks/law_study.py predict     # docs/law-study/predictions-*.json, from the probes
    python benchmarks/law_study.py committed   # fails unless these are in the git history
    python benchmarks/law_study.py curves      # docs/law-study/curves.json, of all runs
    python benchmarks/law_study.py later       # docs/law-study/later-*.json: what today's law says

benchmarks/law_study.sh calls them in this order, with the runs between them.
benchmarks/law_study_tables.py compares the curves with the predictions.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rewarm.data.quickstart_text import train_byte_level_bpe, write_text_shards
from rewarm.predict.accuracy import Predictor, nearest_change
from rewarm.predict.arms import MeasuredRun, StudiedArms, study_arms
from rewarm.predict.fit import fit_model
from rewarm.predict.loss_models import PublishedModel, TokensModel
from rewarm.predict.prediction import LEVELS, FittedArms, Prediction, fit_arms
from rewarm.recipe.recipe import Recipe
from rewarm.report.collect_runs import RunRecord, collect_runs
from rewarm.study.run_outcomes import outcome_from_metrics
from rewarm.study.study_file import load_study

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "benchmarks" / "law-study"
RESULTS = ROOT / "docs" / "law-study"
SHIFTS = ("downstream", "german")
PROBES = {3: ("peak", "quarter", "replay-5"), 4: ("peak", "quarter", "replay-5", "long")}
"""The arms to which the law is fitted, by their number."""
SETS = ("upstream", "new")
"""The validation sets: old data, and those of the shift."""
TEXTS = {
    "upstream": ("english-docs", 24_000_000),
    "downstream": ("english-other", 6_000_000),
    "german": ("german", 6_000_000),
}
"""The text of each corpus, and how many characters of it are used."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["shards", "predict", "committed", "curves", "later"])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "law-study")
    options = parser.parse_args()
    match options.part:
        case "shards":
            write_study_shards(options.data, options.work)
        case "predict":
            write_predictions(options.work / "runs", "predictions")
        case "later":
            write_predictions(options.work / "runs", "later")
        case "committed":
            check_committed()
        case "curves":
            write_curves(options.work / "runs")


def write_study_shards(data: Path, folder: Path) -> None:
    """Writes the first characters of each text, a tokenizer and token shards, unless they exist."""
    texts = {name: folder / "text" / f"{name}.jsonl" for name in TEXTS}
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for name, (file, characters) in TEXTS.items():
        if not texts[name].exists():
            lines = first_documents(data / f"{file}.jsonl.zst", characters)
            texts[name].write_text("".join(lines), encoding="utf-8")
    train_byte_level_bpe(folder / "tokenizer.json", texts.values())
    for name, text in texts.items():
        write_text_shards(text, folder / "shards" / name, folder / "tokenizer.json")


def first_documents(path: Path, characters: int) -> Iterator[str]:
    """Yields the first lines of a compressed file whose texts have this many characters."""
    import zstandard

    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), "utf-8"):
            characters -= len(json.loads(line)["text"])
            if characters < 0:
                return
            yield line


def read_probes(runs: Path, count: int) -> StudiedArms:
    """Returns the probe arms of a shift."""
    measured = []
    for record in collect_runs([runs / "probes" / arm for arm in PROBES[count]]).records:
        outcome = outcome_from_metrics(record.lines, record.state, record.settings)
        assert outcome, record.directory
        lineage = record.state.lineage if record.state else []
        arm = record.directory.parent.name
        measured.append(MeasuredRun(arm, record.directory, record.recipe, outcome, lineage))
    return study_arms(measured)


def write_predictions(runs: Path, prefix: str) -> None:
    """Writes what the law and the baselines say of the test arms, from the probes."""
    RESULTS.mkdir(exist_ok=True)
    for shift in SHIFTS:
        recipes = study_recipes(shift)
        for count, probes in PROBES.items():
            arms = read_probes(runs / shift, count)
            fitted = fit_arms(arms)
            others = other_methods(fitted)
            predictions = {
                arm: predicted(fitted, others, arm, recipe) for arm, recipe in recipes.items()
            }
            content = {"probes": probes, "arms": predictions}
            write_json(RESULTS / f"{prefix}-{shift}-{count}.json", content)


def study_recipes(shift: str) -> dict[str, Recipe]:
    """Returns the recipe of each test arm."""
    plan = load_study(STUDY / "tests.yaml", [f"recipe={STUDY / shift}.yaml"])
    return {run.arm: run.recipe for run in plan.runs}


def other_methods(fitted: FittedArms) -> dict[str, Predictor]:
    """Returns what the law is compared with, fitted to the same probes."""
    model, probes = fitted.law.model, fitted.arms.probes
    published = PublishedModel(model.old, model.new, model.start)
    return {
        "logarithmic form": fitted.logarithmic.change,
        "published form": fit_model(published, probes).change,
        "power law in tokens": fit_model(TokensModel(model.old, model.new), probes).change,
        "nearest arm": partial(nearest_change, model, probes),
    }


def predicted(
    fitted: FittedArms, others: dict[str, Predictor], arm: str, recipe: Recipe
) -> dict[str, Any]:
    """Returns the predicted last change of each loss, in nats, by the law and by the others."""
    arms = fitted.arms
    replay = arms.replay_share(recipe)
    prediction = fitted.predict(arm, recipe, replay)
    curve = arms.curve(recipe, [recipe.steps])
    return {
        "replay": replay,
        "outside": prediction.reach.notes,
        "refused": prediction.reach.refusals,
        "law": law_changes(fitted, prediction),
        **{
            name: {key: round(float(change(key, curve, replay)[-1]), 5) for key in SETS}
            for name, change in others.items()
        },
    }


def law_changes(fitted: FittedArms, prediction: Prediction) -> dict[str, Any]:
    """Returns the last change of each loss by the law, and its intervals, in nats."""
    return {
        loss.name: {
            "change": round(float(loss.loss[-1]) - fitted.arms.starts[loss.name], 5),
            **{
                f"{level:.0%}": [
                    round(float(bound[-1]) - fitted.arms.starts[loss.name], 5)
                    for bound in loss.intervals[level]
                ]
                for level in LEVELS
            },
        }
        for loss in prediction.losses
    }


def check_committed() -> None:
    """Fails unless the predictions on disk are those of the last commit."""
    files = [RESULTS / f"predictions-{shift}-{count}.json" for shift in SHIFTS for count in PROBES]
    for command in (["ls-files", "--error-unmatch"], ["diff", "--exit-code", "--stat", "HEAD"]):
        done = subprocess.run(["git", *command, "--", *map(str, files)], cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit("commit docs/law-study/predictions-*.json before the test arms")


def write_curves(runs: Path) -> None:
    """Writes the rates and losses of all runs that are finished."""
    shifts: dict[str, Any] = {}
    for shift in SHIFTS:
        arms: dict[str, Any] = shifts.setdefault(shift, {})
        folders = [one for part in ("probes", "tests") if (one := runs / shift / part).exists()]
        for record in collect_runs(folders).records:
            if record.recipe is None or record.step < record.recipe.steps:
                continue
            arm = arms.setdefault(record.directory.parent.name, arm_rates(record.recipe))
            arm["losses"][str(record.seed)] = run_losses(record)
    write_json(RESULTS / "curves.json", shifts)


def arm_rates(recipe: Recipe) -> dict[str, Any]:
    rates = [float(f"{recipe.lr(step):.5g}") for step in range(1, recipe.steps + 1)]
    weights = {name: pieces[0][1] for name, pieces in recipe.corpus_weights.items()}
    replay = weights.get("upstream", 0) / sum(weights.values())
    return {"replay": round(float(replay), 4), "rates": rates, "losses": {}}


def run_losses(record: RunRecord) -> dict[str, Any]:
    lines = record.evaluations
    losses = {name: [round(line[f"{name}/loss"], 4) for line in lines] for name in SETS}
    return {"steps": [line["step"] for line in lines], **losses}


def write_json(path: Path, content: dict[str, Any], depth: int = 2) -> None:
    """Writes JSON with a line for each entry of the first dictionaries inside one another."""

    def text(value: Any, depth: int) -> str:
        if not depth or not isinstance(value, dict):
            return json.dumps(value)
        entries = [f"{json.dumps(key)}: {text(one, depth - 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(entries) + "\n}"

    path.write_text(text(content, depth) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
