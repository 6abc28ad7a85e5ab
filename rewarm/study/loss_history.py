"""The losses of one run on one validation set, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import fmean, linear_regression
from typing import NamedTuple


class LossPoint(NamedTuple):
    """A validation loss measured during a run."""

    step: int
    tokens: int
    loss: float
    """In nats per token."""
    bits_per_byte: float | None = None
    """The loss in bits per byte of text; None if the bytes are not known."""


class Baseline(NamedTuple):
    """The loss from which changes are counted."""

    loss: float
    """In nats per token."""
    step: int = 0
    """The step after which it was measured: later than 0 where the validation data changed."""


class LossHistory(NamedTuple):
    """The validation losses of one run on one validation set."""

    points: list[LossPoint]
    """In the order of their steps. Never empty."""
    baseline: Baseline | None
    """None if it was not measured: then no change of the loss is known."""
    has_gap: bool = False
    """Whether measurements are missing, so that the highest loss and the mean are not known."""

    @property
    def start(self) -> float | None:
        """The loss before the first step, or where the validation data changed."""
        return self.baseline.loss if self.baseline else None

    @property
    def final(self) -> float:
        """The last loss."""
        return self.points[-1].loss

    @property
    def bits_per_byte(self) -> float | None:
        """The last loss, in bits per byte of text; None if the bytes are not known."""
        return self.points[-1].bits_per_byte

    @property
    def forgetting(self) -> float | None:
        """How much the loss rose from start to end."""
        return None if self.start is None else self.final - self.start

    @property
    def adaptation(self) -> float | None:
        """How much the loss fell from start to end."""
        return None if self.start is None else self.start - self.final

    @property
    def peak(self) -> LossPoint | None:
        """The point with the highest loss."""
        return None if self.has_gap else max(self.points, key=lambda point: point.loss)

    @property
    def peak_rise(self) -> float | None:
        """How far the highest loss is above the start."""
        peak = self.peak
        return None if peak is None or self.start is None else peak.loss - self.start

    @property
    def recovered_at(self) -> int | None:
        """Tokens at the first point after the peak whose loss is at most the start, if any.

        None if the loss never recovers, or that is not known; 0 if it never rose.
        """
        peak, start, rise = self.peak, self.start, self.peak_rise
        if peak is None or start is None or rise is None:
            return None
        if rise <= 0:
            return 0
        recovered_tokens = (
            point.tokens for point in self.points if point.step > peak.step and point.loss <= start
        )
        return next(recovered_tokens, None)

    @property
    def slope(self) -> float | None:
        """The slope of the line through the losses by least squares, in nats over their tokens.

        It is how far the line rises from the first point to the last; None below three points.
        """
        if len(self.points) < 3:
            return None
        tokens = [point.tokens for point in self.points]
        slope, _ = linear_regression(tokens, [point.loss for point in self.points])
        return slope * (tokens[-1] - tokens[0])

    def part(self, start: float, end: float) -> LossHistory | None:
        """Returns the losses in a part of the run, between two shares of its tokens.

        Changes still count from the baseline of the whole run. None if there is no loss in it.
        """
        if (start, end) == (0, 1):
            return self
        total = self.points[-1].tokens
        first, last = (start - 1e-9) * total, (end + 1e-9) * total
        points = [point for point in self.points if first <= point.tokens <= last]
        return self._replace(points=points) if points else None

    @property
    def mean_loss(self) -> float | None:
        """The loss averaged over the training tokens, by the trapezoidal rule."""
        if self.has_gap:
            return None
        tokens = self.points[-1].tokens - self.points[0].tokens
        if not tokens:
            return self.final
        areas = ((b.tokens - a.tokens) * (a.loss + b.loss) / 2 for a, b in pairwise(self.points))
        return sum(areas) / tokens


def mean_history(histories: list[LossHistory]) -> LossHistory | None:
    """Returns the mean losses over several validation sets, at the steps where all were measured.

    Each set counts the same, however long it is. None without such a step.
    """
    measured = [{point.step: point for point in history.points} for history in histories]
    points = [
        _mean_point([by_step[point.step] for by_step in measured])
        for point in (histories[0].points if histories else [])
        if all(point.step in by_step for by_step in measured)
    ]
    baselines = [history.baseline for history in histories if history.baseline]
    baseline = None
    if len(baselines) == len(histories) and len({start.step for start in baselines}) == 1:
        baseline = Baseline(fmean(start.loss for start in baselines), baselines[0].step)
    has_gap = any(history.has_gap for history in histories)
    return LossHistory(points, baseline, has_gap) if points else None


def _mean_point(points: list[LossPoint]) -> LossPoint:
    bits = [point.bits_per_byte for point in points if point.bits_per_byte is not None]
    return points[0]._replace(
        loss=fmean(point.loss for point in points),
        bits_per_byte=fmean(bits) if len(bits) == len(points) else None,
    )


METRICS: dict[str, Callable[[LossHistory], float | None]] = {
    "start": lambda history: history.start,
    "final": lambda history: history.final,
    "forgetting": lambda history: history.forgetting,
    "adaptation": lambda history: history.adaptation,
    "bump": lambda history: history.peak_rise,
    "area": lambda history: history.mean_loss,
    "bpb": lambda history: history.bits_per_byte,
}
"""The metrics of a loss history, by their names in claims and in results.json; None: not known."""


def final_loss(history: LossHistory) -> float:
    """Returns the last loss; for callers that take a metric as a function."""
    return history.final


def overtaking_tokens(history: LossHistory, other: LossHistory) -> float | None:
    """Returns the tokens after which one loss stays below another; None if it does not end below.

    0 if it was always below. Both losses are interpolated linearly between measurements.
    """
    other_losses = {point.step: point.loss for point in other.points}
    gaps = [
        (point.tokens, point.loss - other_losses[point.step])
        for point in history.points
        if point.step in other_losses
    ]
    if not gaps or gaps[-1][1] >= 0:
        return None
    for (tokens_before, gap_before), (tokens_after, gap_after) in reversed(list(pairwise(gaps))):
        if gap_before >= 0:
            tokens_between = tokens_after - tokens_before
            return tokens_before + tokens_between * gap_before / (gap_before - gap_after)
    return 0.0


def overtaking_share(history: LossHistory, other: LossHistory) -> float | None:
    """Returns the share of the run after which one loss stays below another; None if never."""
    tokens = overtaking_tokens(history, other)
    if not tokens:
        return tokens
    return tokens / min(history.points[-1].tokens, other.points[-1].tokens)


class FittedLine(NamedTuple):
    """A straight line through the losses on two validation sets, by least squares."""

    slope: float
    intercept: float
    r2: float


def fit_line(x: LossHistory, y: LossHistory) -> FittedLine | None:
    """Returns y's losses as a line over x's losses at the same steps.

    None with fewer than three common steps, or if either loss is constant. arXiv:2308.04014
    finds the perplexity on new data to be linear in the perplexity on old data.
    """
    x_losses = {point.step: point.loss for point in x.points}
    pairs = [(x_losses[point.step], point.loss) for point in y.points if point.step in x_losses]
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


def metrics_as_json(history: LossHistory) -> dict[str, float | int | None]:
    """Returns all metrics of a loss history with their keys in results.json."""
    return {
        "start": history.start,
        "bump": history.peak_rise,
        "bump at tokens": history.peak and history.peak.tokens,
        "recovered at tokens": history.recovered_at,
        "final": history.final,
        "forgetting": history.forgetting,
        "adaptation": history.adaptation,
        "area": history.mean_loss,
        "bpb": history.bits_per_byte,
    }
