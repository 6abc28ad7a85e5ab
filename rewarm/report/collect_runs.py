"""What lies in run directories, gathered for a report; of runs that still go on, what is there.

```
 RUN, STUDY's folder, STUDY.yaml ──> run directories by arm ── metrics.jsonl ──> Record
                                  └─ results.json: reference, control, claims      └──> Results
```
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from rewarm.checkpoints import lineage
from rewarm.checkpoints.training_state import Ancestor
from rewarm.errors import CheckpointError, RecipeError, ScheduleError
from rewarm.recipe import recipe
from rewarm.recipe.validation import validate_document
from rewarm.recipe.yaml_document import YamlDocument, flatten_settings
from rewarm.runs.metrics_file import read_metrics
from rewarm.safe_loading import parse_json, read_json_as
from rewarm.study.outcomes import RunOutcome, StudyResults, outcome_from_metrics
from rewarm.study.study_file import Study, is_study

MetricsLine = dict[str, Any]


class RunRecord(NamedTuple):
    """What a run directory holds."""

    arm: str
    seed: int
    directory: Path
    lines: list[MetricsLine]
    """Of metrics.jsonl."""
    recipe: str
    """recipe.yaml as it stands there; empty without one."""
    settings: dict[str, Any]
    """The same as {"a.b": value}."""
    steps: int | None
    """Those of the whole run; None where no recipe says."""
    events: list[MetricsLine]
    lineage: list[Ancestor]
    """The models up to the last checkpoint, the oldest first; empty without a checkpoint."""

    def of(self, kind: str) -> list[MetricsLine]:
        """Returns the lines of a kind: train, evaluate."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def step(self) -> int:
        """Steps that are done."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def is_done(self) -> bool:
        """Whether all steps are."""
        return self.steps is not None and self.step >= self.steps


class MeanWithInterval(BaseModel):
    """A mean over seeds, as results.json has it."""

    mean: float
    interval: tuple[float, float] | None = None


class JudgedClaim(BaseModel):
    """A claim of a study, and what came of it."""

    claim: str
    verdict: str
    effect: MeanWithInterval | None = None
    why: str = ""


class StudySummary(BaseModel):
    """What of a study cannot be known from its runs; as results.json has it."""

    arms: dict[str, Any]
    """Here for their order."""
    reference: str | None = None
    control: str | None = None
    claims: dict[str, JudgedClaim] = {}


class CollectedRuns(NamedTuple):
    """All that a report is made of."""

    title: str
    records: list[RunRecord]
    """By arm, in the arms' order, then by seed."""
    reference: str
    """The arm that others are compared with."""
    control: str | None
    claims: dict[str, JudgedClaim]
    results: StudyResults
    """Of each arm, what came of those of its runs that are as far as the furthest."""

    @property
    def arms(self) -> list[str]:
        """The arms in their order."""
        return list(dict.fromkeys(one.arm for one in self.records))

    @property
    def sets(self) -> list[str]:
        """The validation sets."""
        return list(dict.fromkeys(on for ran in self.results.ran.values() for on in ran.sets))

    def of(self, arm: str) -> list[RunRecord]:
        """Returns an arm's runs."""
        return [one for one in self.records if one.arm == arm]


def collect_runs(paths: list[Path]) -> CollectedRuns:
    """Returns what runs, folders of runs, and studies hold.

    Raises:
        RecipeError: a file is not a study, or a run's recipe is damaged.
        CheckpointError: a path is none of these; nothing was measured yet; or something is damaged.
    """
    records: list[RunRecord] = []
    arms: dict[Path, str] = {}
    said: list[StudySummary] = []
    for path in paths:
        folder = _folder(path)
        if told := _said(path, folder):
            said.append(told)
        there = {one.directory.resolve() for one in records}
        for home, run in _runs(folder, list(told.arms) if told else []):
            name = home.resolve().name
            arm = arms.setdefault(home.resolve(), str(home) if name in arms.values() else name)
            if run.resolve() not in there:
                records.append(_record(arm, run))
    begun = [one for one in records if one.of("train") or one.of("evaluate")]
    if not begun:
        raise CheckpointError(
            f"{', '.join(map(str, paths))}: nothing was measured there yet; wait for the first "
            "line of metrics, of kind train or evaluate"
        )
    names = [one.arm for one in begun]
    references = [one.reference for one in said if one.reference in names]
    return CollectedRuns(
        ", ".join(_folder(path).resolve().name for path in paths),
        begun,
        references[0] if references and references[0] else names[0],
        next((one.control for one in said if one.control in names), None),
        {words: claim for one in said for words, claim in one.claims.items()},
        StudyResults(_furthest(begun)),
    )


def _furthest(records: list[RunRecord]) -> dict[tuple[str, int], RunOutcome]:
    """Returns what came of runs, without those that other runs of their arm are ahead of.

    A mean over losses at different places of a run would be of nothing.
    """
    ran = {
        (one.arm, one.seed): came for one in records if (came := outcome_from_metrics(one.lines))
    }
    far = {arm: max(x.last for (name, _), x in ran.items() if name == arm) for arm, _ in ran}
    return {key: came for key, came in ran.items() if came.last == far[key[0]]}


def _folder(path: Path) -> Path:
    """Returns the folder to look in: a study's, or the path itself."""
    if path.is_file():
        if not is_study(path):
            raise RecipeError([f"{path}: not a study (no `arms`); name the run's directory"])
        return Path(str(YamlDocument.load(path).data.get("study")))
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder; wanted a run, a folder of runs, a study's folder, or a study"
        )
    return path


def _runs(folder: Path, order: list[str]) -> Iterator[tuple[Path, Path]]:
    """Gives the folder that names the arm, and the run directory, for each run.

    A run is its own arm; in a study's folder the arm is the folder of its seeds.
    """
    if (folder / "metrics.jsonl").is_file():
        whole = folder.resolve()
        yield whole.parent if whole.name.isdecimal() else folder, folder
        return
    found = [path.parent for path in folder.glob("*/metrics.jsonl")]
    found += [path.parent for path in folder.glob("*/*/metrics.jsonl") if path.parts[-3] != "bases"]
    if not found:
        raise CheckpointError(
            f"{folder}: no run there (no metrics.jsonl in it, nor one or two folders down)"
        )
    homes = {run: run if run.parent == folder else run.parent for run in found}
    places = {arm: place for place, arm in enumerate(order)}

    def place(run: Path) -> tuple[Any, ...]:
        name = homes[run].name
        seed = int(run.name) if run.name.isdecimal() else 0
        return places.get(name, len(places)), name, seed, run.name

    for run in sorted(found, key=place):
        yield homes[run], run


def _record(arm: str, directory: Path) -> RunRecord:
    path = directory / "recipe.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    made = None
    with contextlib.suppress(RecipeError, ScheduleError):  # its plug-in may not be here
        made = recipe.load_recipe(path)
    settings = flatten_settings(YamlDocument(text, str(path)).data) if text else {}
    seed = settings.get("seed")
    chain: list[Ancestor] = []
    with contextlib.suppress(CheckpointError):  # metrics are enough
        [chain] = lineage.lineage_chains(directory)
    return RunRecord(
        arm,
        seed if isinstance(seed, int) else 0,
        directory,
        _metrics(directory / "metrics.jsonl"),
        text,
        settings,
        made.steps if made else None,
        list(_events(directory / "events.jsonl")),
        chain,
    )


def _metrics(path: Path) -> list[MetricsLine]:
    """Returns the lines of metrics, the numbers in them checked to be such."""
    lines = read_metrics(path)
    for line in lines:
        wanted = {"tokens": int} if line["kind"] in ("train", "evaluate") else {}
        for key, value in (wanted | line).items():
            if key.rpartition("/")[2] not in _NUMBERS:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number and not (value is None and key != "tokens"):
                raise CheckpointError(
                    f"{path}: damaged: {key} at step {line['step']} should be a number, got "
                    f"{line.get(key)!r:.60}"
                )
    return lines


_NUMBERS = {"tokens", "loss", "lr", "tokens_per_second", "mfu", "skipped"}


def _events(path: Path) -> Iterator[MetricsLine]:
    """Gives the lines of events.jsonl that can be read: a diary, which a full disk may have cut."""
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                parsed = parse_json(line)
                if isinstance(parsed, dict) and isinstance(parsed.get("kind"), str):
                    yield parsed


def _said(path: Path, folder: Path) -> StudySummary | None:
    """Returns what a study says of itself, in its results or, before there are any, in its file."""
    results = folder / "results.json"
    try:
        if results.is_file():
            return read_json_as(StudySummary, results)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{results}: cannot be read: {error}; run `rewarm compare` again, or move it away"
        ) from None
    if not path.is_file():
        return None
    asked = validate_document(YamlDocument.load(path), Study, {})
    later = "judged when `rewarm compare` ends"
    claims = {
        words: JudgedClaim(claim=text, verdict="open", why=later)
        for words, text in asked.claims.items()
    }
    return StudySummary(
        arms=asked.arms, reference=asked.reference, control=asked.control, claims=claims
    )
