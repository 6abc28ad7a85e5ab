"""What came of a run, of an arm over its seeds, and of two arms beside each other, from metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rewarm.runs.metrics_file import read_metrics
from rewarm.study.claims import FigureRequest
from rewarm.study.intervals import Estimate, estimate_mean


class LossPoint(NamedTuple):
    """A validation loss on the way."""

    step: int
    tokens: int
    loss: float
    """In nats."""


class Outcome(NamedTuple):
    """What came of one run on one validation set."""

    losses: list[LossPoint]
    """In the order of their steps; the first before step 1."""

    @property
    def start(self) -> float:
        """The loss before the first step."""
        return self.losses[0].loss

    @property
    def final(self) -> float:
        """The last loss."""
        return self.losses[-1].loss

    @property
    def forgetting(self) -> float:
        """How much the loss rose from the start to the end."""
        return self.final - self.start

    @property
    def adaptation(self) -> float:
        """How much the loss fell from the start to the end."""
        return self.start - self.final

    @property
    def top(self) -> LossPoint:
        """Where the loss was highest."""
        return max(self.losses, key=lambda one: one.loss)

    @property
    def bump(self) -> float:
        """How far the loss rose above its start, at most."""
        return self.top.loss - self.start

    @property
    def recovered(self) -> int | None:
        """Tokens from which the loss is back where it started; None where it does not come back.

        0 where it never rose.
        """
        if self.bump <= 0:
            return 0
        back = (one for one in self.losses if one.step > self.top.step and one.loss <= self.start)
        return next((one.tokens for one in back), None)

    @property
    def area(self) -> float:
        """The mean loss over the run's tokens, by trapezoids between measurements."""
        whole = self.losses[-1].tokens - self.losses[0].tokens
        if not whole:
            return self.final
        return (
            sum((b.tokens - a.tokens) * (a.loss + b.loss) / 2 for a, b in pairwise(self.losses))
            / whole
        )


class RunOutcome(NamedTuple):
    """What is known of a run."""

    sets: dict[str, Outcome]
    stream: str | None
    """Chained digest of every token that it was trained on so far."""
    steps: int
    """Those that are done."""
    seconds_per_token: float | None

    @property
    def last(self) -> int:
        """The step of the last measurement."""
        return max(one.losses[-1].step for one in self.sets.values())


def read_outcome(directory: Path) -> RunOutcome | None:
    """Returns what came of a run so far, or None where nothing was measured yet.

    Raises:
        CheckpointError: its metrics are damaged.
    """
    path = directory / "metrics.jsonl"
    return outcome_from_metrics(read_metrics(path)) if path.exists() else None


def outcome_from_metrics(lines: list[dict[str, Any]]) -> RunOutcome | None:
    """Returns what came of a run by its lines of metrics, or None where nothing was measured."""
    measured = [line for line in lines if line["kind"] == "evaluate"]
    trained = [line for line in lines if line["kind"] == "train"]
    sets: dict[str, Outcome] = {}
    for key in dict.fromkeys(key for line in measured for key in line if key.endswith("/loss")):
        losses = [
            LossPoint(line["step"], line["tokens"], line[key])
            for line in measured
            if line.get(key) is not None
        ]
        if losses:
            sets[key.removesuffix("/loss")] = Outcome(losses)
    if not sets:
        return None
    speeds = [line["tokens_per_second"] for line in trained if line.get("tokens_per_second")]
    return RunOutcome(
        sets,
        trained[-1].get("stream") if trained else None,
        trained[-1]["step"] if trained else 0,
        1 / fmean(speeds) if speeds else None,
    )


def crossing(one: Outcome, other: Outcome) -> float | None:
    """Returns the tokens from which one loss stays below the other; None if it does not.

    0 where it always was. Between two measurements it is where straight lines cross.
    """
    others = {loss.step: loss.loss for loss in other.losses}
    gaps = [(a.tokens, a.loss - others[a.step]) for a in one.losses if a.step in others]
    if not gaps or gaps[-1][1] >= 0:
        return None
    for (before, above), (after, below) in reversed(list(pairwise(gaps))):
        if above >= 0:
            return before + (after - before) * above / (above - below)
    return 0.0


def overtakes(one: Outcome, other: Outcome) -> float | None:
    """Returns the share of the run from which one loss stays below the other, or None."""
    tokens = crossing(one, other)
    return tokens / min(one.losses[-1].tokens, other.losses[-1].tokens) if tokens else tokens


class FittedLine(NamedTuple):
    """The straight line through the losses on two sets, by least squares."""

    slope: float
    intercept: float
    r2: float


def fit_line(x: Outcome, y: Outcome) -> FittedLine | None:
    """Returns y's losses as a line over x's at the same steps; None of fewer than three, or flat.

    arXiv:2308.04014 finds perplexity on the new data against that on the old to be one.
    """
    there = {loss.step: loss.loss for loss in x.losses}
    pairs = [(there[loss.step], loss.loss) for loss in y.losses if loss.step in there]
    if len(pairs) < 3:
        return None
    mean_x, mean_y = fmean(a for a, _ in pairs), fmean(b for _, b in pairs)
    xx = sum((a - mean_x) ** 2 for a, _ in pairs)
    xy = sum((a - mean_x) * (b - mean_y) for a, b in pairs)
    yy = sum((b - mean_y) ** 2 for _, b in pairs)
    if not xx or not yy:
        return None
    slope = xy / xx
    return FittedLine(slope, mean_y - slope * mean_x, xy * xy / (xx * yy))


class StudyResults:
    """What came of all runs of a study: figures by arm and seed."""

    def __init__(self, ran: dict[tuple[str, int], RunOutcome]) -> None:
        """Takes what came of each run that has measurements, by arm and seed."""
        self.ran = ran

    def seeds(self, arm: str) -> list[int]:
        """Returns the seeds of which there is something, in order."""
        return sorted(seed for name, seed in self.ran if name == arm)

    def outcome(self, arm: str, seed: int, on: str) -> Outcome | None:
        """Returns what came of a run on a validation set."""
        ran = self.ran.get((arm, seed))
        return ran.sets.get(on) if ran else None

    def known(self, asked: FigureRequest, seed: int) -> float | None:
        """Returns a figure that a claim asks for, or None where it is not known."""
        outcomes = [self.outcome(arm, seed, asked.on) for arm in asked.arms]
        first, *rest = outcomes
        if first is None or None in rest:
            return None
        if asked.figure == "overtakes":
            [other] = rest
            assert other is not None
            return overtakes(first, other)
        value: float = getattr(first, asked.figure)
        return value

    def over_seeds(
        self, arm: str, on: str, figure: Callable[[Outcome], float | None]
    ) -> Estimate | None:
        """Returns mean and standard error of a figure over an arm's seeds."""
        there = (self.outcome(arm, seed, on) for seed in self.seeds(arm))
        values = (figure(one) for one in there if one is not None)
        return estimate_mean(value for value in values if value is not None)

    def crossing(self, arm: str, other: str, on: str) -> Estimate | None:
        """Returns the tokens from which an arm's loss stays below another's, over the seeds.

        None where it does not come from above to below with every seed.
        """
        pairs = [
            (self.outcome(arm, seed, on), self.outcome(other, seed, on)) for seed in self.seeds(arm)
        ]
        tokens = [crossing(one, two) if one and two else None for one, two in pairs]
        return (
            estimate_mean(there)
            if len(there := [one for one in tokens if one]) == len(pairs)
            else None
        )

    def paired(
        self, arm: str, reference: str, on: str, figure: Callable[[Outcome], float | None]
    ) -> Estimate | None:
        """Returns by how much an arm is above another, seed by seed on the same batches."""
        differences = []
        for seed in self.seeds(arm):
            one, other = self.outcome(arm, seed, on), self.outcome(reference, seed, on)
            if one is None or other is None:
                continue
            a, b = figure(one), figure(other)
            if a is not None and b is not None:
                differences.append(a - b)
        return estimate_mean(differences)


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Returns the names that no other beats: none has less of the first and of the second."""

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(
            a <= x and b <= y and (a, b) != (x, y)
            for other, (a, b) in points.items()
            if other != name
        )

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def same_batches(results: StudyResults, arms: Iterable[str]) -> dict[int, list[list[str]]]:
    """Returns by seed the groups of arms that were trained on the very same tokens so far."""
    groups: dict[int, dict[tuple[str, int], list[str]]] = {}
    for arm in arms:
        for seed in results.seeds(arm):
            ran = results.ran[arm, seed]
            if ran.stream:
                groups.setdefault(seed, {}).setdefault((ran.stream, ran.steps), []).append(arm)
    return {seed: list(by.values()) for seed, by in groups.items()}


def outcome_figures(outcome: Outcome) -> dict[str, Any]:
    """Returns all figures of a run on a set, for tables and files."""
    return {
        "start": outcome.start,
        "bump": outcome.bump,
        "bump at tokens": outcome.top.tokens,
        "recovered at tokens": outcome.recovered,
        "final": outcome.final,
        "forgetting": outcome.forgetting,
        "adaptation": outcome.adaptation,
        "area": outcome.area,
    }
