"""The losses of runs, read from their metrics, and compared by arm over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rewarm.runs.metrics_file import read_metrics
from rewarm.study.claims import MetricRequest
from rewarm.study.intervals import Estimate, estimate_mean
from rewarm.study.loss_history import (
    METRICS,
    LossHistory,
    LossPoint,
    final_loss,
    overtaking_share,
    overtaking_tokens,
)

UPSTREAM = "upstream"
"""The validation set of the data that the base model was trained on; measures forgetting."""


class RunOutcome(NamedTuple):
    """What a run has measured so far."""

    losses: dict[str, LossHistory]
    """The losses by validation set. Never empty."""
    stream_digest: str | None
    """Chained digest of all tokens that the run was trained on so far."""
    steps_done: int
    seconds_per_token: float | None

    @property
    def last_evaluated_step(self) -> int:
        """The step of the last evaluation."""
        return max(history.points[-1].step for history in self.losses.values())


def read_outcome(directory: Path) -> RunOutcome | None:
    """Returns what a run has measured so far, or None if nothing was measured yet.

    Raises:
        CheckpointError: its metrics are damaged.
    """
    path = directory / "metrics.jsonl"
    return outcome_from_metrics(read_metrics(path)) if path.exists() else None


def outcome_from_metrics(lines: list[dict[str, Any]]) -> RunOutcome | None:
    """Returns the outcome that lines of metrics.jsonl record, or None without a measured loss."""
    evaluations = [line for line in lines if line["kind"] == "evaluate"]
    train_lines = [line for line in lines if line["kind"] == "train"]
    losses: dict[str, LossHistory] = {}
    for key in dict.fromkeys(key for line in evaluations for key in line if key.endswith("/loss")):
        points = [
            LossPoint(line["step"], line["tokens"], line[key])
            for line in evaluations
            if line.get(key) is not None
        ]
        if points:
            losses[key.removesuffix("/loss")] = LossHistory(points)
    if not losses:
        return None
    speeds = [line["tokens_per_second"] for line in train_lines if line.get("tokens_per_second")]
    return RunOutcome(
        losses,
        train_lines[-1].get("stream") if train_lines else None,
        train_lines[-1]["step"] if train_lines else 0,
        1 / fmean(speeds) if speeds else None,
    )


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

    def history(self, arm: str, seed: int, validation_set: str) -> LossHistory | None:
        """Returns the losses of a run on a validation set."""
        outcome = self.outcomes.get((arm, seed))
        return outcome.losses.get(validation_set) if outcome else None

    def histories(self, arm: str, validation_set: str) -> list[LossHistory]:
        """Returns the losses of all runs of an arm that were measured on a validation set."""
        histories = (self.history(arm, seed, validation_set) for seed in self.seeds(arm))
        return [history for history in histories if history is not None]

    def claimed_metric(self, request: MetricRequest, seed: int) -> float | None:
        """Returns a metric that a claim refers to, or None if it was not measured."""
        first, *others = (self.history(arm, seed, request.validation_set) for arm in request.arms)
        if first is None or None in others:
            return None
        if request.metric == "overtakes":
            [other] = others
            assert other is not None
            return overtaking_share(first, other)
        return METRICS[request.metric](first)

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
