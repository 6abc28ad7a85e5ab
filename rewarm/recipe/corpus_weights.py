"""Checks of the weights of a run's corpora, which may change during it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

from pydantic_core import InitErrorDetails

from rewarm.recipe.data_settings import Percentage, TrainSet, WeightFrom
from rewarm.recipe.fields import field_problem

TrainSets = Mapping[str, TrainSet]
"""The corpora of a recipe, by name."""


def steps_before(piece: WeightFrom, steps: int) -> int:
    """Returns the number of steps, of a run of `steps`, before a weight holds."""
    # 1e-9: rounding in `start` should not delay a piece by a step.
    return math.ceil(piece.start * steps - 1e-9)


def weight_problems(corpora: TrainSets, steps: int) -> Iterator[InitErrorDetails]:
    """Yields a problem for each step from which the weights are wrong.

    Some corpus needs a weight above 0, and weights in percent have to make 100%.

    Args:
        corpora: the corpora.
        steps: steps of the run.
    """
    for first_step, weights in _weights_by_step(corpora, steps):
        total = sum(weights.values())
        if total == 0:
            yield field_problem(
                ("data", "train"),
                "should have a corpus with a weight above 0 at every step; from step "
                f"{first_step:,} on, all weights are 0",
                0,
            )
        elif any(map(_is_percentage, weights.values())) and abs(total - 1) > 1e-9:
            from_step = f" from step {first_step:,} on" if first_step > 1 else ""
            parts = " + ".join(f"{name} {_written(weight)}" for name, weight in weights.items())
            yield field_problem(
                ("data", "train"),
                f"weights in percent should make 100%, and these make {100 * total:.10g}%"
                f"{from_step}: {parts}; write all in percent, or all as numbers, which are "
                "relative to each other",
                total,
            )


def unread_corpus_problems(
    corpora: TrainSets, steps: int, sequences_per_step: int, context: int
) -> Iterator[InitErrorDetails]:
    """Yields a problem for each corpus of which a run would read less than one sequence.

    Args:
        corpora: the corpora; their weights have no problem.
        steps: steps of the run.
        sequences_per_step: sequences in a batch.
        context: tokens in a sequence.
    """
    sequences = dict.fromkeys(corpora, 0.0)
    for (first, weights), (next_first, _) in pairwise(
        [*_weights_by_step(corpora, steps), (steps + 1, {})]
    ):
        read = max(0, min(next_first, steps + 1) - first) * sequences_per_step
        for name, weight in weights.items():
            sequences[name] += read * weight / sum(weights.values())
    total = steps * sequences_per_step
    for name, count in sequences.items():
        if count < 1 - 1e-9:
            yield field_problem(
                ("data", "train", name),
                f"its weight is {count / total:.2g} of the run, {count:.2g} of {total:,} sequences "
                f"of {context:,} tokens, and less than one cannot be read; give it more weight, or "
                "remove it",
                count,
            )


def _weights_by_step(corpora: TrainSets, steps: int) -> list[tuple[int, dict[str, float]]]:
    """Returns the weights as (first step at which they hold, weights), in order."""
    changes: dict[int, dict[str, float]] = {}
    for name, corpus in corpora.items():
        for piece in corpus.weight:
            changes.setdefault(steps_before(piece, steps) + 1, {})[name] = piece.weight
    weights: dict[str, float] = {}
    by_step = []
    for step in sorted(changes):
        weights = weights | changes[step]
        by_step.append((step, weights))
    return by_step


def _is_percentage(weight: float) -> bool:
    return isinstance(weight, Percentage)


def _written(weight: float) -> str:
    return f"{100 * weight:.10g}%" if _is_percentage(weight) else f"{weight:.10g}"
