"""Whether and how GPUs can share a run of a recipe, which does not say how many there are."""

from __future__ import annotations

from rewarm.errors import RecipeError
from rewarm.recipe.batch_split import BatchSplit, split_batch
from rewarm.recipe.recipe import Recipe


def shard_size_on(recipe: Recipe, gpus: int) -> int:
    """Returns among how many of its GPUs a run divides its weights.

    Raises:
        RecipeError: `parallel.shard` does not divide the GPUs, or there are fewer sequences in a
            batch than GPUs.
    """
    sequences = recipe.sequences_per_step
    if sequences < gpus:
        raise RecipeError(
            [
                f"batch.tokens: {recipe.batch.tokens:,} are {sequences:,} sequences of "
                f"{recipe.data.context:,} tokens, fewer than {gpus:,} GPUs; each needs one: use "
                f"{sequences:,} GPUs or fewer"
            ]
        )
    try:
        return recipe.parallel.shard_size(gpus)
    except ValueError as error:
        raise RecipeError([str(error)]) from None


def split_on(recipe: Recipe, gpus: int) -> BatchSplit:
    """Returns how GPUs share the recipe's batch; one sequence at once if `microbatch` is `auto`."""
    return split_batch(recipe.sequences_per_step, gpus, recipe.batch.microbatch or 1)
