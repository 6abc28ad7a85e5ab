"""The recipe: the YAML document that describes a run, and its validation."""

from rewarm.errors import RecipeError
from rewarm.recipe.json_schema import recipe_schema as schema
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.recipe import load_recipe as load
from rewarm.recipe.recipe import validate_recipe as validate

__all__ = ["Recipe", "RecipeError", "load", "schema", "validate"]
