"""Collects the content of run directories for a report; runs may still be training.

```
 RUN, STUDY's folder, STUDY.yaml ──> run directories by arm ── metrics.jsonl ──> RunRecord
                                  └─ results.json: reference, control, claims      └──> StudyResults
```
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.checkpoints.find_checkpoint import later_checkpoints, read_last_checkpoint
from rewarm.checkpoints.lineage import read_lineages
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.checkpoints.training_state import Ancestor, TrainingState
from rewarm.errors import CheckpointError, RecipeError, ScheduleError, hide_credentials
from rewarm.path_contents import nearest_name
from rewarm.paths import short_path
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.saved_recipe import load_saved_recipe
from rewarm.recipe.yaml_document import YamlDocument, flatten_settings
from rewarm.runs.metrics_file import (
    METRICS_FILE,
    comparable_evaluations,
    read_events,
)
from rewarm.runs.preconditions import had_checkpoint
from rewarm.runs.recorded_metrics import RunMetrics, read_run_metrics
from rewarm.study.results_json import JudgedClaim, StudySummary, read_summary
from rewarm.study.run_outcomes import RunOutcome, StudyResults, outcome_from_metrics
from rewarm.study.study_file import is_study, validate_study

JsonLine = dict[str, Any]
"""A line of metrics.jsonl or events.jsonl."""


class RunRecord(NamedTuple):
    """The content of a run directory."""

    arm: str
    seed: int
    directory: Path
    lines: list[JsonLine]
    """The lines of metrics.jsonl."""
    state: TrainingState | None
    """The training state in the last checkpoint; None without a checkpoint."""
    recipe_text: str
    """The text of recipe.yaml; empty if there is none."""
    settings: dict[str, Any]
    """The settings of recipe.yaml as {"a.b": value}."""
    recipe: Recipe | None
    """recipe.yaml; None if it cannot be read."""
    events: list[JsonLine]
    """The lines of events.jsonl that can be read."""
    notes: list[str]
    """What on disk contradicts the run or is missing, a sentence each."""
    lineage: list[Ancestor]
    """The models up to the last checkpoint, the oldest first; empty without a checkpoint."""

    def lines_of(self, kind: str) -> list[JsonLine]:
        """Returns the lines of metrics.jsonl of one kind, `train` or `evaluate`."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def evaluations(self) -> list[JsonLine]:
        """The evaluations, without losses on validation data that was replaced later."""
        return comparable_evaluations(self.lines)

    @property
    def step(self) -> int:
        """The last step that has metrics."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def steps(self) -> int | None:
        """The number of steps of the whole run; None without a valid recipe."""
        return self.recipe.steps if self.recipe else None

    @property
    def is_done(self) -> bool:
        """Whether the run has reached its last step."""
        return self.steps is not None and self.step >= self.steps


class CollectedRuns(NamedTuple):
    """Everything that a report shows."""

    title: str
    records: list[RunRecord]
    """The runs, by arm in the arms' order, then by seed."""
    reference: str
    """The arm that other arms are compared with."""
    control: str | None
    """The arm trained on old data; other arms are compared with it too."""
    not_begun: dict[str, list[int]]
    """The seeds of each arm of a study whose runs have no metrics yet."""
    claims: dict[str, JudgedClaim]
    results: StudyResults
    """The outcomes of the runs that have reached the last step evaluated in their arm."""

    @property
    def arms(self) -> list[str]:
        """The arms in their order."""
        return list(dict.fromkeys(record.arm for record in self.records))

    @property
    def validation_sets(self) -> list[str]:
        """The names of the validation sets."""
        return self.results.validation_sets

    def records_of(self, arm: str) -> list[RunRecord]:
        """Returns an arm's runs."""
        return [record for record in self.records if record.arm == arm]


def collect_runs(paths: list[Path]) -> CollectedRuns:
    """Returns the content of runs, folders of runs, and studies.

    Raises:
        RecipeError: a file is not a study, or a run's recipe is damaged.
        CheckpointError: a path is none of these, no run has metrics yet, or a file is damaged.
    """
    records: list[RunRecord] = []
    arm_names: dict[Path, str] = {}
    summaries: list[StudySummary] = []
    for path in paths:
        folder = _study_folder(path)
        summary = _read_summary(path, folder)
        if summary:
            summaries.append(summary)
        collected_directories = {record.directory.resolve() for record in records}
        for arm_folder, run in _find_runs(folder, list(summary.arms) if summary else []):
            name = arm_folder.resolve().name
            # A second folder of the same name is shown with its whole path.
            unique_name = str(arm_folder) if name in arm_names.values() else name
            arm = arm_names.setdefault(arm_folder.resolve(), unique_name)
            if run.resolve() not in collected_directories:
                records.append(_read_record(arm, run))
    title = ", ".join(_study_folder(path).resolve().name for path in paths)
    measured_runs = [
        run for run in records if run.state or run.lines_of("train") or run.lines_of("evaluate")
    ]
    if not measured_runs:
        raise CheckpointError(
            f"{', '.join(map(str, paths))}: no metrics yet; wait for the first line of kind "
            "train or evaluate in metrics.jsonl"
        )
    _check_seeds_differ(measured_runs)
    return _with_summaries(title, measured_runs, summaries)


def _check_seeds_differ(records: list[RunRecord]) -> None:
    """Makes sure that the runs of an arm have different seeds: results are by arm and seed.

    Raises:
        CheckpointError: two of them have the same.
    """
    directories: dict[tuple[str, int], Path] = {}
    for record in records:
        first = directories.setdefault((record.arm, record.seed), record.directory)
        if first != record.directory:
            raise CheckpointError(
                f"{first} and {record.directory}: both have seed {record.seed}, and by their names "
                f"both are of the arm {record.arm}; name only one of them, or rename one"
            )


def _with_summaries(
    title: str, records: list[RunRecord], summaries: list[StudySummary]
) -> CollectedRuns:
    """Returns the runs with the reference, control and claims of their studies."""
    arms = [record.arm for record in records]
    references = (summary.reference for summary in summaries)
    controls = (summary.control for summary in summaries)
    return CollectedRuns(
        title,
        records,
        next((arm for arm in references if arm in arms), None) or arms[0],
        next((arm for arm in controls if arm in arms), None),
        _not_begun(records, summaries),
        {name: claim for summary in summaries for name, claim in summary.claims.items()},
        StudyResults(_furthest_outcomes(records)),
    )


def _not_begun(records: list[RunRecord], summaries: list[StudySummary]) -> dict[str, list[int]]:
    """Returns the seeds of each arm that no run has metrics of, without the arms that have all."""
    begun = {(record.arm, record.seed) for record in records}
    seeds = {
        arm: [seed for seed in summary.seeds if (arm, seed) not in begun]
        for summary in summaries
        for arm in summary.arms
    }
    return {arm: missing for arm, missing in seeds.items() if missing}


def _furthest_outcomes(records: list[RunRecord]) -> dict[tuple[str, int], RunOutcome]:
    """Returns the outcomes of the runs that have reached the last step evaluated in their arm.

    A mean of losses at different steps would not be the loss at any step.
    """
    outcomes = {
        (record.arm, record.seed): outcome
        for record in records
        if (outcome := outcome_from_metrics(record.lines, record.state, record.settings))
    }
    furthest: dict[str, int] = {}
    for (arm, _), outcome in outcomes.items():
        furthest[arm] = max(furthest.get(arm, 0), outcome.last_evaluated_step)
    return {
        (arm, seed): outcome
        for (arm, seed), outcome in outcomes.items()
        if outcome.last_evaluated_step == furthest[arm]
    }


def _study_folder(path: Path) -> Path:
    """Returns the folder that has the runs: the one that a study file names, or the path itself."""
    if path.is_file():
        if not is_study(path):
            raise RecipeError([f"{path}: not a study (no `arms`); name the run's directory"])
        return Path(short_path(validate_study(YamlDocument.load(path)).study))
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder; expected a run directory, a folder of runs, a "
            f"study's folder, or a study file{nearest_name(path)}"
        )
    return path


def _find_runs(folder: Path, arm_order: list[str]) -> Iterator[tuple[Path, Path]]:
    """Yields, for each run, the folder whose name is the arm's, and the run directory.

    Runs that are named by their seeds are those of the arm that is named by their folder; any other
    run is an arm of its own.
    """
    if _is_run(folder):
        yield _arm_folder(folder), folder
        return
    runs = [path for path in folder.glob("*") if _is_run(path)]
    runs += [
        path for path in folder.glob("*/*") if _is_run(path) and not _is_study_base(path, arm_order)
    ]
    if not runs:
        raise CheckpointError(
            f"{folder}: no run found (no metrics.jsonl in it or up to two levels below)"
        )
    arm_folders = {run: _arm_folder(run) for run in runs}
    ranks = {arm: rank for rank, arm in enumerate(arm_order)}

    def sort_key(run: Path) -> tuple[Any, ...]:
        name = arm_folders[run].resolve().name
        seed = int(run.name) if run.name.isdecimal() else 0
        return ranks.get(name, len(ranks)), name, seed, run.name

    for run in sorted(runs, key=sort_key):
        yield arm_folders[run], run


def _arm_folder(run: Path) -> Path:
    """Returns the folder whose name is that of a run's arm."""
    return run.resolve().parent if run.resolve().name.isdecimal() else run


def _is_study_base(run: Path, arms: list[str]) -> bool:
    """Returns whether a run is a base of a study, and not a seed of an arm that is named bases."""
    is_arm = "bases" in arms if arms else run.name.isdecimal()
    return run.parent.name == "bases" and not is_arm


def _is_run(folder: Path) -> bool:
    """Returns whether a folder is a run; one whose metrics were deleted is, and is reported."""
    return (folder / METRICS_FILE).is_file() or bool(later_checkpoints(folder, None))


def _read_record(arm: str, directory: Path) -> RunRecord:
    path = directory / "recipe.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    text = hide_credentials(text)  # recipes of earlier versions may contain some
    recipe = None
    with contextlib.suppress(RecipeError, ScheduleError):  # such as a plug-in that is missing
        recipe = load_saved_recipe(path)
    settings = flatten_settings(YamlDocument(text, str(path)).data) if text else {}
    metrics = read_run_metrics(directory)
    _check_last_step(directory, recipe, metrics)
    lineage: list[Ancestor] = []
    if metrics.state:
        [lineage] = read_lineages(directory)
    saved_text = read_last_checkpoint(directory, _read_saved_recipe_text)
    # Anything may have changed recipe.yaml; that of a checkpoint is read with its digest.
    saved_settings = flatten_settings(YamlDocument(saved_text, "").data) if saved_text else settings
    seed = saved_settings.get("seed")
    events = read_events(directory / "events.jsonl")
    notes = []
    if saved_text is not None and saved_text != text:
        notes.append(
            "recipe.yaml is not that of the last checkpoint: it was changed, or the run was "
            "resumed with changes after it."
        )
    if not events.is_complete:
        notes.append(
            "events.jsonl is missing or damaged: starts, environment and measured rates are "
            "incomplete."
        )
    if metrics.state is None and had_checkpoint(directory):
        notes.append("its checkpoints are gone: its metrics are not checked against them.")
    return RunRecord(
        arm,
        seed if isinstance(seed, int) else 0,
        directory,
        metrics.lines,
        metrics.state,
        text,
        settings,
        recipe,
        events.events,
        notes,
        lineage,
    )


def _check_last_step(directory: Path, recipe: Recipe | None, metrics: RunMetrics) -> None:
    """Makes sure that metrics have no lines after a run's last step: they are of another run.

    Raises:
        CheckpointError: they have.
    """
    last_step = max((line["step"] for line in metrics.lines), default=0)
    reached = metrics.state.step if metrics.state else 0
    if recipe and last_step > max(recipe.steps, reached):
        raise CheckpointError(
            f"{directory / METRICS_FILE}: has lines of step {last_step:,}, and the run has "
            f"{recipe.steps:,} steps; restore the file, or resume the run, which removes them"
        )


def _read_saved_recipe_text(checkpoint: Path) -> str:
    verify_checkpoint(checkpoint, only="recipe.yaml")
    return hide_credentials((checkpoint / "recipe.yaml").read_text(encoding="utf-8"))


def _read_summary(path: Path, folder: Path) -> StudySummary | None:
    """Returns a study's results.json or, if it does not exist yet, the same from the study file."""
    results = folder / "results.json"
    if os.path.lexists(results):
        return read_summary(results)
    if not path.is_file():
        return None
    study = validate_study(YamlDocument.load(path))
    claims = {
        name: JudgedClaim(claim=text, verdict="open", why="judged when `rewarm compare` ends")
        for name, text in study.claims.items()
    }
    return StudySummary(
        arms=study.arms,
        seeds=list(study.seeds),
        reference=study.reference,
        control=study.control,
        claims=claims,
    )
