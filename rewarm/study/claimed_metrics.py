"""The metrics that claims name, of whole runs and of parts of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from rewarm.quantities import perplexity
from rewarm.study.loss_history import METRICS, LossHistory, fit_line, overtaking_share


class RunPart(NamedTuple):
    """A part of a run, from one share of its tokens to another."""

    start: float = 0.0
    end: float = 1.0


WHOLE_RUN = RunPart()


class MetricRequest(NamedTuple):
    """A metric that a claim refers to."""

    metric: str
    validation_sets: tuple[str, ...]
    """One set; two for `linearity`."""
    arms: tuple[str, ...]
    """One arm; two for `overtakes` and `gap`."""
    part: RunPart = WHOLE_RUN

    @property
    def least_evaluations(self) -> int:
        """The number of evaluations in the part without which the metric has no value."""
        return {"slope": 3, "linearity": 3, "bump": 2}.get(self.metric, 1)


USAGES = {
    **dict.fromkeys((*METRICS, "slope"), "(SET, ARM)"),
    "gap": "(SET, ARM, ARM)",
    "linearity": "(SET, SET, ARM)",
    "overtakes": "(ARM, ARM, SET)",
}
"""The arguments of each metric; all but `overtakes` may have a part of the run as one more."""


def claimed_value(
    request: MetricRequest, history_of: Callable[[str, str], LossHistory | None]
) -> float | None:
    """Returns the value of a metric for one seed; None if it was not measured.

    Args:
        request: the metric, its arms, its validation sets and its part of the runs.
        history_of: returns the losses of an arm's run on a validation set, if there are any.
    """
    histories = []
    for arm in request.arms:
        for validation_set in request.validation_sets:
            history = history_of(arm, validation_set)
            history = history and history.part(*request.part)
            if history is None:
                return None
            histories.append(history)
    match request.metric:
        case "overtakes":
            return overtaking_share(*histories)
        case "gap":
            return _largest_gap(*histories)
        case "linearity":
            return _linearity(*histories)
        case "slope":
            return histories[0].slope
    return METRICS[request.metric](histories[0])


def _largest_gap(a: LossHistory, b: LossHistory) -> float | None:
    """Returns the largest difference of two losses at a common step; None if there is none."""
    losses = {point.step: point.loss for point in b.points}
    gaps = [abs(point.loss - losses[point.step]) for point in a.points if point.step in losses]
    return max(gaps, default=None)


def _linearity(x: LossHistory, y: LossHistory) -> float | None:
    """Returns R² of the straight line through the perplexities on two validation sets."""
    line = fit_line(*(_perplexities(history) for history in (x, y)))
    return line.r2 if line and math.isfinite(line.r2) else None


def _perplexities(history: LossHistory) -> LossHistory:
    return history._replace(
        points=[point._replace(loss=perplexity(point.loss)) for point in history.points]
    )
