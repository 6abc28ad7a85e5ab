"""The sections `tasks` and `sample`: what a run measures and writes besides losses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rewarm.quantities import Count
from rewarm.recipe.fields import Section, Text


class TaskSettings(Section):
    """Tasks of the LM Evaluation Harness, before the first step, after the last, and every
    `every.tasks` steps; needs rewarm[lm-eval].
    """

    names: tuple[Text, ...] = ()
    """Tasks or groups of tasks, such as [lambada_openai, hellaswag]; `lm_eval ls tasks` lists
    them."""
    include: Text | None = None
    """A folder with tasks of your own, as YAML files of the harness (its --include_path)."""
    few_shot: Annotated[int, Field(strict=True, ge=0)] | None = None
    """Examples before each question; null for the number that the task states."""
    limit: Annotated[int, Field(strict=True, gt=0)] | None = None
    """Number of questions of each task, from its start; null for all."""


class SampleSettings(Section):
    """Prompts that the model continues at each evaluation, with the most probable tokens."""

    prompts: tuple[Text, ...] = ()
    """Texts to continue. Their continuations are in metrics.jsonl and in the report."""
    tokens: Annotated[Count, Field(le=1_048_576)] = 64
    """Maximum number of tokens of a continuation, which ends earlier at an end-of-text token."""
