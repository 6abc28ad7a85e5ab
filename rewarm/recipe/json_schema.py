"""The JSON Schemas of recipes and studies, with which editors complete and check them.

Editors read YAML 1.2. All numbers of a recipe are numbers there, except those with underscores:
`20_000` is text. So the schemas accept such text wherever they accept a number.
"""

from __future__ import annotations

from typing import Any

from rewarm import schedules
from rewarm.errors import ScheduleError
from rewarm.recipe.recipe import Recipe

_DIGITS_WITH_UNDERSCORES = {
    "integer": r"^\+?[1-9][0-9]*_[0-9_]*$",
    "number": r"^\+?(?=.*_)[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?$",
}
"""What rewarm reads as a number of a type, and YAML 1.2 as text."""

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe, with the settings of every schedule that loads."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    choices = []
    for plugin in schedules.installed():
        try:
            kind = schedules.find(plugin.name)
            settings = schedules.settings_schema(kind, ref_template="#/$defs/{model}")
        except ScheduleError:
            continue
        definitions |= settings.pop("$defs", {})
        settings["required"] = ["name", *settings.get("required", [])]
        definitions[f"schedule-{plugin.name}"] = settings
        choices.append({"$ref": f"#/$defs/schedule-{plugin.name}"})
    schema["properties"]["schedule"] = {"oneOf": choices, "title": "Schedule"}
    _refer_nested_schedules(definitions)
    accepting: dict[str, Any] = accept_underscores(schema)
    return accepting


def accept_underscores(schema: Any) -> Any:
    """Returns a JSON Schema whose numbers may also be text with underscores, such as `20_000`."""
    if isinstance(schema, list):
        return [accept_underscores(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("integer", "number"):
        number = {key: schema[key] for key in ("type", *_BOUNDS) if key in schema}
        text = {"type": "string", "pattern": _DIGITS_WITH_UNDERSCORES[number["type"]]}
        others = {key: value for key, value in schema.items() if key not in number}
        return {**others, "anyOf": [number, text]}
    return {key: accept_underscores(value) for key, value in schema.items()}


def _refer_nested_schedules(definitions: dict[str, Any]) -> None:
    """Allows any schedule where a schedule contains one, as in rewarm-sequence."""
    for section in definitions.values():
        for setting in section.get("properties", {}).values():
            if setting.get("format") == "schedule":
                for key in ("type", "additionalProperties", "format"):
                    setting.pop(key, None)
                setting["$ref"] = "#/properties/schedule"
