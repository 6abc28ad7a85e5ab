"""Which weights a run mixes its corpora with: the recipe's, from the step on where they hold."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from rewarm.checkpoints.training_state import TrainingState, WeightChange
from rewarm.data.mixture import Mixture, WeightPieces, merge_weights
from rewarm.recipe.recipe import Recipe

Shares = dict[str, Fraction]
"""The share of each corpus."""


class CorpusMixture(NamedTuple):
    """The weights of a run, in blocks of its stream."""

    weights: dict[str, WeightPieces]
    start: dict[str, int]
    """Blocks of each corpus that were read before these weights began to hold."""
    blocks: int
    """Blocks of the whole run."""

    def blocks_needed(self) -> Shares:
        """Returns the blocks of each corpus that the whole run reads."""
        return Mixture(self.weights, self.start).exact_shares(self.blocks)


def corpus_mixture(recipe: Recipe, change: WeightChange | None) -> CorpusMixture:
    """Returns the weights of a run.

    Args:
        recipe: its recipe.
        change: the last resume that changed the weights; None if there was none.
    """
    per_step, weights = recipe.sequences_per_step, recipe.corpus_weights
    if change is None:
        return CorpusMixture(weights, dict.fromkeys(weights, 0), recipe.steps * per_step)
    # A step may have had another number of blocks before the change.
    offset = sum(change.blocks.values()) - change.step * per_step
    shifted = {
        name: [(first + offset, weight) for first, weight in pieces]
        for name, pieces in weights.items()
    }
    return CorpusMixture(shifted, change.blocks, recipe.steps * per_step + offset)


def weight_change(
    before: Recipe | None, state: TrainingState, recipe: Recipe
) -> WeightChange | None:
    """Returns the last resume that changed the weights, which may be this one.

    Args:
        before: the recipe in the checkpoint; None if it cannot be validated any more.
        state: the training state in the checkpoint.
        recipe: the recipe to resume with.
    """
    since = state.weight_change.step if state.weight_change else 0
    if before and _blocks_and_shares(before, since) == _blocks_and_shares(recipe, since):
        return state.weight_change
    return WeightChange(step=state.step, blocks=state.blocks)


def share_changes(before: Recipe, recipe: Recipe, step: int) -> Iterator[str]:
    """Yields how the shares of the corpora after a step change, a line for each range of steps."""
    stretches = [dict(shares_by_step(before, step)), dict(shares_by_step(recipe, step))]
    starts = {first for first in {*stretches[0], *stretches[1]} if first < recipe.steps}
    current: list[Shares] = [{}, {}]
    for first, end in pairwise([*sorted(starts), recipe.steps]):
        current = [new.get(first, old) for new, old in zip(stretches, current, strict=True)]
        if current[0] != current[1]:
            shares = ", ".join(
                f"{name} {_percent(current[0].get(name))} → {_percent(share)}"
                for name, share in current[1].items()
            )
            yield f"mixture of steps {first + 1:,} to {end:,}: {shares}"


def shares_by_step(recipe: Recipe, step: int) -> list[tuple[int, Shares]]:
    """Returns the corpora's shares after a step, as (step after which they hold, shares)."""
    per_step = recipe.sequences_per_step
    return [
        (first // per_step, shares)
        for first, shares in merge_weights(recipe.corpus_weights, step * per_step)
    ]


def _blocks_and_shares(recipe: Recipe, step: int) -> tuple[int, list[tuple[int, Shares]]]:
    return recipe.sequences_per_step, shares_by_step(recipe, step)


def _percent(share: Fraction | None) -> str:
    return "none" if share is None else f"{float(share):.3%}".replace(".000%", "%")
