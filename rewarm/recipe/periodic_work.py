"""The section `every`: after which steps a run logs, evaluates and saves."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from rewarm.quantities import Span, parse_count
from rewarm.recipe.fields import Section, Steps


class EvaluateUntil(Section):
    """How often a part of the run evaluates."""

    until: Annotated[Span, Field(gt=0, lt=1)] | None = None
    """Point in the run up to which this holds: a share (1%), tokens or steps; none: the end."""
    every: Steps
    """Steps between evaluations: after each step that is a multiple of it."""


def _as_pieces(written: Any) -> Any:
    if written is None or isinstance(written, list | tuple):
        return written
    if parse_count(written) <= 0:
        raise ValueError(f"should be above 0, or null (got {written!r})")
    return [{"every": written}]


def _check_pieces_in_order(
    pieces: tuple[EvaluateUntil, ...] | None,
) -> tuple[EvaluateUntil, ...] | None:
    if pieces is None:
        return None
    ends = [2.0 if piece.until is None else float(piece.until) for piece in pieces]
    if not ends or ends[-1] < 2 or any(b <= a for a, b in pairwise(ends)):
        raise ValueError(
            "each `until` should be above the one before, and the last piece should have none: "
            "[{until: 1%, every: 20}, {every: 1000}]"
        )
    return pieces


def _as_written(pieces: tuple[EvaluateUntil, ...] | None) -> Any:
    if pieces is None or len(pieces) == 1:
        return pieces and pieces[0].every
    return [piece.model_dump(mode="json", exclude_none=True) for piece in pieces]


Evaluations = Annotated[
    tuple[EvaluateUntil, ...] | None,
    BeforeValidator(_as_pieces, json_schema_input_type=Steps | list[EvaluateUntil] | None),
    AfterValidator(_check_pieces_in_order),
    PlainSerializer(_as_written),
]


class EverySettings(Section):
    """Intervals in steps. The last step is always logged, evaluated and saved."""

    log: Steps = 10
    """Steps between records in metrics.jsonl."""
    evaluate: Evaluations = (EvaluateUntil(every=500),)
    """Steps between evaluations; null to evaluate only before the first step and after the last. A
    list of {until: SPAN, every: STEPS} changes it during the run, such as more at the start."""
    tasks: Steps | None = None
    """Steps between evaluations that also measure `tasks`; null to measure these only before the
    first step and after the last."""
    save: Steps | None = 1000
    """Steps between checkpoints; null to save only after the last step."""
    norms: Steps | None = None
    """Steps between records of the norm of each weight tensor and of its gradient; null for
    none."""

    def evaluations(self, steps: int) -> list[range]:
        """Returns the steps of a run of `steps` after which it evaluates, besides the last."""
        ranges, before = [], 0
        for piece in self.evaluate or ():
            # 1e-9: rounding in `until` should not end a piece a step early.
            end = steps - 1 if piece.until is None else int(piece.until * steps + 1e-9)
            first = (before // piece.every + 1) * piece.every
            ranges.append(range(first, min(end, steps - 1) + 1, piece.every))
            before = max(before, end)
        return [*ranges, self.task_steps(steps)] if self.tasks else ranges

    def task_steps(self, steps: int) -> range:
        """Returns the steps of a run of `steps` after which it measures tasks, besides the last."""
        return range(self.tasks, steps, self.tasks) if self.tasks else range(0)
