"""GPUs that can share the paper's batch of 1,104 sequences, and those that cannot."""

import pytest
from repository import ROOT

from rewarm.errors import RecipeError
from rewarm.recipe.gpu_sharing import shard_size_on, split_on
from rewarm.recipe.recipe import load_recipe

PAPER = ROOT / "recipes" / "pythia-410m-rewarm.yaml"


@pytest.mark.parametrize(
    ("gpus", "shard", "size"), [(8, "1", 1), (8, "4", 4), (8, "all", 8), (1, "all", 1)]
)
def test_shard_size(gpus, shard, size):
    assert shard_size_on(load_recipe(PAPER, [f"parallel.shard={shard}"]), gpus) == size


def test_an_automatic_microbatch_is_split_into_single_sequences():
    assert split_on(load_recipe(PAPER), 8).parts == 9
    split = split_on(load_recipe(PAPER, ["batch.microbatch=auto"]), 8)
    assert (split.parts, split.microbatch) == (138, 1)


@pytest.mark.parametrize(
    ("gpus", "override", "message"),
    [
        (8, "parallel.shard=3",
         "parallel.shard: 3 does not divide 8 GPUs; try one of 1, 2, 4, 8, or all"),
        (2048, "parallel.shard=all",
         "batch.tokens: 2,260,992 are 1,104 sequences of 2,048 tokens, fewer than 2,048 GPUs; each "
         "needs one: use 1,104 GPUs or fewer"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(gpus, override, message):
    recipe = load_recipe(PAPER, [override])
    with pytest.raises(RecipeError) as raised:
        shard_size_on(recipe, gpus)
    assert str(raised.value) == message
