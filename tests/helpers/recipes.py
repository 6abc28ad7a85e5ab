"""Recipes from text, with overrides."""

from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument


def recipe_of(text: str, *overrides: str) -> Recipe:
    document = YamlDocument(text, "r.yaml")
    for override in overrides:
        document.apply_override(override)
    return validate_recipe(document)
