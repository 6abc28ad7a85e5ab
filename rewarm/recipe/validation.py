"""How a document becomes a recipe, or a study: every problem of it is one line, with its place.

```
Document ── pydantic ──> Section
                └── errors ──> file:line:column: path: what was found, what was wanted
```
"""

from __future__ import annotations

import re
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rewarm import schedules
from rewarm.errors import RecipeError, did_you_mean
from rewarm.recipe.fields import Section
from rewarm.recipe.yaml_document import Location, YamlDocument
from rewarm.schedules import Schedule

Kind = TypeVar("Kind", bound=Section)


def validate_document(document: YamlDocument, kind: type[Kind], context: dict[str, Any]) -> Kind:
    """Returns the recipe, or the like, in a parsed document.

    Raises:
        RecipeError: everything that is wrong with it, each line located.
    """
    try:
        return kind.model_validate(document.data, context=context)
    except ValidationError as error:
        problems = {_letter(document, one, kind): None for one in error.errors(include_url=False)}
        raise RecipeError(sorted(problems, key=_by_place)) from None


def _by_place(problem: str) -> tuple[str, int, int]:
    place = re.match(r"(.+?):(\d+):(\d+): ", problem)
    return (place[1], int(place[2]), int(place[3])) if place else (problem, 0, 0)


def _letter(document: YamlDocument, error: ErrorDetails, kind: type[Section]) -> str:
    """Returns one line about one problem: place, path, what was found, what was wanted."""
    location, found = error["loc"], error["input"]
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "missing":
        message = "required, but missing"
    elif error["type"] == "extra_forbidden":
        known = _settings(kind, document.data, location[:-1])
        near = did_you_mean(str(location[-1]), known)
        there = f" (there are: {', '.join(known)})" if known else ""
        message = f"no such setting{near or there}"
    elif error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = f"should be settings (`key: value` lines), got {_shown(found)}"
    elif error["type"] == "string_pattern_mismatch" and location[-1:] == ("[key]",):
        message = "a corpus's name should be letters, digits, '.', '_' and '-'"
    elif error["type"] != "recipe" and not isinstance(found, dict):
        message = f"{message} (got {_shown(found)})"
    location = tuple(part for part in location if part != "[key]")
    return f"{document.where(location)}: {'.'.join(map(str, location)) or 'recipe'}: {message}"


def _shown(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _settings(model: Any, data: Any, location: Location) -> list[str]:
    """Returns the names of the settings that a section has, found by walking the models."""
    for part in location:
        fields = getattr(model, "model_fields", {})
        # Not a field: an entry of a mapping or a list, dict[Name, Section] → Section.
        entries = [None, *(one for one in get_args(model) if one is not ...)]
        inner = fields[part].annotation if part in fields else entries[-1]
        if get_origin(inner) in (Union, UnionType):  # Section | None → Section
            inner = get_args(inner)[0]
        data = data[part]
        model = schedules.find(data["name"]) if inner is Schedule else inner
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]
