"""Recipes of 1,000 steps, and a base that one of them can start from."""

import pytest

from recipes import recipe_of
from rewarm.recipe.recipe import Recipe


@pytest.fixture
def rewarm_recipe(thousand_steps) -> Recipe:
    return recipe_of(thousand_steps)


@pytest.fixture
def constant_recipe(thousand_steps) -> Recipe:
    return recipe_of(thousand_steps, "schedule={name: constant, lr: 1e-4}")


@pytest.fixture
def base_run(constant_recipe, reached):
    """A run of the constant recipe, stopped at step 600."""
    return reached(
        "pythia-14m",
        constant_recipe.to_yaml(),
        step=600,
        tokens=60_000_000,
        lrs=(1e-4, 1e-4, 1e-4),
    )
