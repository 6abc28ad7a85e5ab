"""The JSON Schema of a recipe, with which editors complete and check it."""

from __future__ import annotations

from typing import Any

from rewarm import schedules
from rewarm.errors import ScheduleError
from rewarm.recipe.recipe import Recipe


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
    return schema


def _refer_nested_schedules(definitions: dict[str, Any]) -> None:
    """Allows any schedule where a schedule contains one, as in rewarm-sequence."""
    for section in definitions.values():
        for setting in section.get("properties", {}).values():
            if setting.get("format") == "schedule":
                for key in ("type", "additionalProperties", "format"):
                    setting.pop(key, None)
                setting["$ref"] = "#/properties/schedule"
