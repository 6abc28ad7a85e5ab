"""The recipe.yaml that rewarm saves in a run directory and in each checkpoint."""

from __future__ import annotations

from pathlib import Path

from rewarm.errors import RecipeError
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument, write_yaml


def load_saved_recipe(path: Path) -> Recipe:
    """Returns the recipe that rewarm saved in a run directory or a checkpoint, paths as saved.

    They are absolute; in an older recipe they are relative to the folder in which the run was
    started, which is not known.

    Raises:
        RecipeError: every problem, one line each with its source location.
    """
    return validate_recipe(load_saved_document(path))


def load_saved_document(path: Path) -> YamlDocument:
    """Returns the document in a file of a run or a checkpoint, which is not checked.

    Raises:
        RecipeError: it cannot be read, or is no regular file, such as a pipe: that could block
            forever.
    """
    if path.exists() and not path.is_file():
        raise RecipeError([f"{path}: not a regular file"])
    return YamlDocument.load(path)


def is_saved_recipe(path: Path) -> bool:
    """Returns whether a file has the layout in which rewarm saves a recipe: without comments."""
    if not path.is_file():
        return False
    try:
        return write_yaml(YamlDocument.load(path).data) == path.read_text(encoding="utf-8")
    except (RecipeError, OSError, UnicodeDecodeError):
        return False
