"""The section `trackers` of a recipe: the trackers that a run sends its metrics to."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from rewarm.recipe.fields import Name
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.trackers.run_trackers import quick_problems


def _settings_or_none(written: Any) -> Any:
    """Returns `{}` for `tensorboard:` without settings."""
    return {} if written is None else written


Trackers = dict[Name, Annotated[dict[str, Any], BeforeValidator(_settings_or_none)]]
"""A recipe that was saved may name trackers that are not installed here: it remains valid."""


def tracker_problems(document: YamlDocument) -> list[str]:
    """Returns the problems of the trackers in a document, one line each with its location."""
    written = document.data.get("trackers")
    if not isinstance(written, dict):
        return []  # the recipe's own validation reports it
    trackers = {name: settings or {} for name, settings in written.items()}
    well_formed = {name: value for name, value in trackers.items() if isinstance(value, dict)}
    problems = []
    for path, problem in quick_problems(well_formed):
        key_path = ("trackers", *path)
        problems.append(f"{document.source_location(key_path)}: {'.'.join(key_path)}: {problem}")
    return problems
