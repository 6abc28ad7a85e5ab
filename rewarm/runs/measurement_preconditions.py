"""What has to hold for the tasks and the prompts of a recipe, as far as can be told quickly."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rewarm.data.prompts import EncodedPrompts, encode_prompts
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError
from rewarm.paths import short_path
from rewarm.recipe.recipe import Recipe


def task_problems(recipe: Recipe) -> Iterator[DataError]:
    """Yields what prevents the tasks of a recipe from being measured."""
    if not recipe.tasks.names:
        return
    if find_spec("lm_eval") is None:
        yield harness_missing()
    include = recipe.tasks.include
    if include and not Path(include).is_dir():
        yield no_task_folder(include)


def harness_missing() -> DataError:
    """Returns the error of a machine without the LM Evaluation Harness."""
    return DataError("tasks need the LM Evaluation Harness: pip install 'rewarm[lm-eval]'")


def no_task_folder(folder: str) -> DataError:
    """Returns the error of a folder of own tasks that does not exist."""
    return DataError(
        f"{short_path(folder)}: no such folder; expected a folder with tasks of the LM Evaluation "
        "Harness as YAML files"
    )


def recipe_prompts(recipe: Recipe, tokenizer_folder: Path, eos_token: str) -> EncodedPrompts | None:
    """Returns the prompts of a recipe with their tokens; None if it has none.

    Raises:
        DataError: a prompt cannot be encoded.
        CheckpointError: a prompt with its continuation is longer than the context.
    """
    if not recipe.sample.prompts:
        return None
    return encode_prompts(
        load_tokenizer(str(tokenizer_folder), eos_token),
        list(recipe.sample.prompts),
        tokens=recipe.sample.tokens,
        limit=recipe.data.context,
        limit_name="data.context",
    )
