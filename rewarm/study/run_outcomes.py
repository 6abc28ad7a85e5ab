"""The losses of runs, read from their metrics, and compared by arm over seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from rewarm.checkpoints.find_checkpoint import later_checkpoints
from rewarm.checkpoints.training_state import Ancestor, TrainingState
from rewarm.errors import RecipeError
from rewarm.recipe.fields import Role
from rewarm.recipe.saved_recipe import load_saved_document
from rewarm.recipe.yaml_document import flatten_settings
from rewarm.runs.metrics_file import METRICS_FILE, comparable_evaluations
from rewarm.runs.recorded_metrics import read_run_metrics
from rewarm.runs.validation_roles import ROLES, merge_roles, saved_roles
from rewarm.study.claimed_metrics import MetricRequest, claimed_value
from rewarm.study.intervals import Estimate, estimate_mean
from rewarm.study.loss_history import (
    Baseline,
    LossHistory,
    LossPoint,
    final_loss,
    mean_history,
    overtaking_tokens,
)


class RunOutcome(NamedTuple):
    """What a run has measured so far."""

    losses: dict[str, LossHistory]
    """The losses by validation set. Never empty."""
    stream_digest: str | None
    """Chained digest of all tokens that the run was trained on so far."""
    steps_done: int
    seconds_per_token: float | None
    validation_digests: Mapping[str, str] = MappingProxyType({})
    """Digest of the data of each validation set, as far as it is on record."""
    gaps: tuple[int, ...] = ()
    """Steps before which metrics are missing, which the user has accepted."""
    base: Ancestor | None = None
    """The model that it started from; None for new weights, or without a checkpoint."""
    cpu_threads: int | None = None
    """Threads that computed, on which the last bits depend; None on a GPU, or where not known."""
    roles: Mapping[str, Role] = MappingProxyType({})
    """The role of each validation set, as far as the run's recipe states it."""

    @property
    def last_evaluated_step(self) -> int:
        """The step of the last evaluation."""
        return max(history.points[-1].step for history in self.losses.values())


def read_outcome(directory: Path) -> RunOutcome | None:
    """Returns what a run has measured so far, or None if nothing was measured yet.

    Raises:
        CheckpointError: its metrics are damaged.
    """
    if not (directory / METRICS_FILE).exists() and not later_checkpoints(directory, None):
        return None
    settings: dict[str, Any] = {}
    with contextlib.suppress(RecipeError):
        settings = flatten_settings(load_saved_document(directory / "recipe.yaml").data)
    return outcome_from_metrics(*read_run_metrics(directory), settings)


def outcome_from_metrics(
    lines: list[dict[str, Any]],
    state: TrainingState | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> RunOutcome | None:
    """Returns the outcome that a run's metrics record, or None without a measured loss.

    Args:
        lines: the lines of metrics.jsonl.
        state: the training state in the last checkpoint, which has the baselines; None if nothing
            is saved yet.
        settings: the run's recipe, as {"a.b": value}, which states the roles of validation sets.
    """
    evaluations = comparable_evaluations(lines)
    train_lines = [line for line in lines if line["kind"] == "train"]
    gaps = tuple(line["step"] for line in lines if line["kind"] == "gap")
    if gaps and state and state.losses_step is not None:
        evaluations = [*evaluations, _last_evaluation(state, state.losses_step)]
    losses: dict[str, LossHistory] = {}
    for key in dict.fromkeys(key for line in evaluations for key in line if key.endswith("/loss")):
        name = key.removesuffix("/loss")
        bits = f"{name}/bits_per_byte"
        measured = {
            line["step"]: LossPoint(line["step"], line["tokens"], line[key], line.get(bits))
            for line in evaluations
            if line.get(key) is not None
        }
        if measured:
            points = [measured[step] for step in sorted(measured)]
            losses[name] = LossHistory(points, _baseline(name, lines, state), bool(gaps))
    if not losses:
        return None
    speeds = [line["tokens_per_second"] for line in train_lines if line.get("tokens_per_second")]
    return RunOutcome(
        losses,
        train_lines[-1].get("stream") if train_lines else None,
        train_lines[-1]["step"] if train_lines else 0,
        1 / fmean(speeds) if speeds else None,
        state.validation if state else {},
        gaps,
        state.lineage[-1] if state and state.lineage else None,
        state.cpu_threads if state else None,
        saved_roles(settings, [ancestor.corpora for ancestor in state.lineage] if state else []),
    )


def _last_evaluation(state: TrainingState, step: int) -> dict[str, Any]:
    """Returns the last losses that a checkpoint records, for a run whose metrics have a gap."""
    tokens = state.tokens * step // max(1, state.step)
    losses = {f"{name}/loss": loss for name, loss in state.losses.items()}
    return {"step": step, "tokens": tokens, **losses}


def _baseline(
    name: str, lines: list[dict[str, Any]], state: TrainingState | None
) -> Baseline | None:
    """Returns the loss on a validation set from which its changes are counted."""
    measured = [
        Baseline(line[f"{name}/loss"], line["step"])
        for line in lines
        if line["kind"] == "baseline" or (line["kind"] == "evaluate" and line["step"] == 0)
        if line.get(f"{name}/loss") is not None
    ]
    # A baseline that was measured after the last checkpoint is not in its state yet.
    if measured and (state is None or measured[-1].step >= state.step):
        return measured[-1]
    if state and name in state.baseline:
        return Baseline(state.baseline[name], state.baseline_steps.get(name, 0))
    return measured[-1] if measured else None


def _mean_name(role: Role) -> str:
    """Returns the name of the mean over several validation sets of a role."""
    return f"{role} mean"


class StudyResults:
    """The outcomes of a study's runs, by arm and seed, and metrics computed from them."""

    def __init__(self, outcomes: dict[tuple[str, int], RunOutcome]) -> None:
        """Takes the outcome of each run that has measurements, by arm and seed."""
        self.outcomes = outcomes

    @property
    def validation_sets(self) -> list[str]:
        """The names of the validation sets, in the order of their measurement."""
        return list(dict.fromkeys(name for run in self.outcomes.values() for name in run.losses))

    def seeds(self, arm: str) -> list[int]:
        """Returns the seeds for which an arm has an outcome, in order."""
        return sorted(seed for name, seed in self.outcomes if name == arm)

    def role(self, validation_set: str) -> Role | None:
        """Returns whether a validation set is upstream or downstream, in all runs; None: neither.

        What any run's base was trained on is upstream.
        """
        runs = (run for run in self.outcomes.values() if validation_set in run.losses)
        return merge_roles(validation_set, (run.roles.get(validation_set) for run in runs))

    def label(self, validation_set: str) -> str:
        """Returns the name of a validation set, with its role where that is another word."""
        role = self.role(validation_set)
        return validation_set if role in (None, validation_set) else f"{validation_set} ({role})"

    @property
    def upstream(self) -> str | None:
        """The upstream set's name; `upstream mean` if there are several, None if there is none."""
        names = self._sets_of_role("upstream")
        return _mean_name("upstream") if len(names) > 1 else next(iter(names), None)

    @property
    def new_sets(self) -> list[str]:
        """The names of the validation sets that are not upstream."""
        return [name for name in self.validation_sets if self.role(name) != "upstream"]

    def _sets_of_role(self, role: Role) -> list[str]:
        return [name for name in self.validation_sets if self.role(name) == role]

    def history(self, arm: str, seed: int, validation_set: str) -> LossHistory | None:
        """Returns the losses of a run on a validation set.

        Where no set has this name, `upstream` and `downstream` stand for the sets of that role: if
        there are several, for their mean. So do `upstream mean` and `downstream mean`.
        """
        outcome = self.outcomes.get((arm, seed))
        if outcome is None or validation_set in outcome.losses:
            return outcome and outcome.losses[validation_set]
        for role in ROLES:
            if validation_set in (role, _mean_name(role)):
                histories = [outcome.losses.get(name) for name in self._sets_of_role(role)]
                return mean_history([history for history in histories if history])
        return None

    def histories(self, arm: str, validation_set: str) -> list[LossHistory]:
        """Returns the losses of all runs of an arm that were measured on a validation set."""
        histories = (self.history(arm, seed, validation_set) for seed in self.seeds(arm))
        return [history for history in histories if history is not None]

    def claimed_metric(self, request: MetricRequest, seed: int) -> float | None:
        """Returns a metric that a claim refers to, or None if it was not measured.

        In a claim, `upstream` and `downstream` are the set of this name, if that is its role too,
        and else the mean of all sets of that role, if there are any.
        """

        def history_of(arm: str, name: str) -> LossHistory | None:
            others = [
                role
                for role in ROLES
                if name == role != self.role(name) and self._sets_of_role(role)
            ]
            return self.history(arm, seed, _mean_name(others[0]) if others else name)

        return claimed_value(request, history_of)

    def mean_over_seeds(
        self, arm: str, validation_set: str, metric: Callable[[LossHistory], float | None]
    ) -> Estimate | None:
        """Returns the mean of a metric over an arm's seeds, with its standard error."""
        values = map(metric, self.histories(arm, validation_set))
        return estimate_mean(value for value in values if value is not None)

    def overtaking_tokens(self, arm: str, other: str, validation_set: str) -> Estimate | None:
        """Returns the tokens after which an arm's loss stays below another's, averaged over seeds.

        None unless it crosses from above to below with every seed.
        """
        crossings = []
        for seed in self.seeds(arm):
            history = self.history(arm, seed, validation_set)
            other_history = self.history(other, seed, validation_set)
            if history is None or other_history is None:
                return None
            tokens = overtaking_tokens(history, other_history)
            if not tokens:
                return None
            crossings.append(tokens)
        return estimate_mean(crossings)

    def paired_difference(
        self,
        arm: str,
        reference: str,
        validation_set: str,
        metric: Callable[[LossHistory], float | None],
    ) -> Estimate | None:
        """Returns an arm's metric minus that of a reference arm, paired by seed."""
        differences = []
        for seed in self.seeds(arm):
            history = self.history(arm, seed, validation_set)
            other = self.history(reference, seed, validation_set)
            if history is None or other is None:
                continue
            a, b = metric(history), metric(other)
            if a is not None and b is not None:
                differences.append(a - b)
        return estimate_mean(differences)

    def final_difference(self, arm: str, reference: str, validation_set: str) -> Estimate | None:
        """Returns the paired difference of final losses; None if the numbers of tokens differ."""
        tokens_seen = {
            history.points[-1].tokens
            for name in (arm, reference)
            for history in self.histories(name, validation_set)
        }
        if len(tokens_seen) != 1:
            return None
        return self.paired_difference(arm, reference, validation_set, final_loss)


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Returns the names of the points that no other dominates, sorted by their points.

    A point dominates another if it is not above it in any coordinate, and they are not equal.
    """

    def is_dominated(name: str) -> bool:
        x, y = points[name]
        return any(
            a <= x and b <= y and (a, b) != (x, y)
            for other, (a, b) in points.items()
            if other != name
        )

    return sorted(
        (name for name in points if not is_dominated(name)), key=lambda name: points[name]
    )


def outcome_notes(results: StudyResults) -> list[str]:
    """Returns what limits the comparison of a study's losses, one sentence each."""
    notes: dict[str, None] = {}
    for (arm, seed), outcome in results.outcomes.items():
        for step in outcome.gaps:
            notes[f"{arm}, seed {seed}: metrics before step {step:,} are incomplete."] = None
        for name, history in outcome.losses.items():
            if history.baseline is None:
                notes[f"{arm}, seed {seed}: the {name} loss has no baseline."] = None
            elif history.baseline.step:
                notes[
                    f"{arm}, seed {seed}: the {name} data is new since step "
                    f"{history.baseline.step:,}; its changes count from there."
                ] = None
    for name in results.validation_sets:
        digests = {run: one.validation_digests.get(name) for run, one in results.outcomes.items()}
        if groups := _differing_runs(digests):
            notes[f"The {name} data differs between {groups}: do not compare these losses."] = None
    bases = {
        (one.base.name, one.base.revision): None for one in results.outcomes.values() if one.base
    }
    for name, revision in bases:
        digests = {
            run: one.base.sha256
            for run, one in results.outcomes.items()
            if one.base and (one.base.name, one.base.revision) == (name, revision)
        }
        if groups := _differing_runs(digests):
            notes[f"The base {name} differs between {groups}: do not compare these runs."] = None
    threads = {run: one.cpu_threads for run, one in results.outcomes.items()}
    if groups := _differing_runs(threads):
        counts = sorted({count for count in threads.values() if count})
        notes[
            f"The number of CPU threads ({', '.join(map(str, counts))}) differs between {groups}: "
            "so do the last bits of their losses."
        ] = None
    return list(notes)


def _differing_runs(values: Mapping[tuple[str, int], object]) -> str:
    """Returns the groups of runs, by arm and seed, that have the same value; empty if all have.

    Runs whose value is not known (None) are left out. An arm with the same value for all of its
    seeds is named without them.
    """
    known = {run: value for run, value in values.items() if value is not None}
    values_by_arm: dict[str, set[object]] = {}
    for (arm, _), value in known.items():
        values_by_arm.setdefault(arm, set()).add(value)
    groups: dict[object, list[str]] = {}
    for (arm, seed), value in known.items():
        name = arm if len(values_by_arm[arm]) == 1 else f"{arm} seed {seed}"
        groups.setdefault(value, []).append(name)
    if len(groups) < 2:
        return ""
    return "; ".join(", ".join(dict.fromkeys(names)) for names in groups.values())


def same_batches(results: StudyResults, arms: Iterable[str]) -> dict[int, list[list[str]]]:
    """Returns, for each seed, the groups of arms that were trained on the same tokens so far."""
    groups: dict[int, dict[tuple[str, int], list[str]]] = {}
    for arm in arms:
        for seed in results.seeds(arm):
            outcome = results.outcomes[arm, seed]
            if outcome.stream_digest:
                key = (outcome.stream_digest, outcome.steps_done)
                groups.setdefault(seed, {}).setdefault(key, []).append(arm)
    return {seed: list(by_stream.values()) for seed, by_stream in groups.items()}
