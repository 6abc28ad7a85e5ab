"""The pages of the site that are written from the code: commands, settings, schedules, Python API.

They are not stored in the repository, so they cannot differ from the code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import typer
from docstrings import definition, markdown, one_line, page

from rewarm import errors, exit_codes, schedules, testing
from rewarm.cli.app import app
from rewarm.recipe.recipe import Recipe
from rewarm.schedules import Schedule, settings_schema
from rewarm.study.study_plan import Study

ROOT = Path(__file__).parents[2]


def reference_pages() -> dict[str, str]:
    """Returns the Markdown of each generated page, by the name of its file."""
    return {
        "commands.md": commands_page(),
        "settings.md": settings_page(),
        "schedules.md": schedules_page(),
        "python.md": python_page(),
        "exit-codes.md": exit_codes_page(),
    }


# Commands


def commands_page() -> str:
    """Returns the page of all commands with their arguments and options."""
    parts = [
        "# Commands\n\nEvery command ends with one of the [exit codes](exit-codes.md). "
        "`rewarm COMMAND --help` prints the same."
    ]
    for name, command in commands():
        text, _, example = inspect.cleandoc(command.help).partition("\n\nExample: ")
        parts += [f"## rewarm {name}", markdown(text)]
        parts.append(f"```text\nrewarm {name} {_usage(command)}\n```")
        parts += [_parameter(parameter) for parameter in command.params if not parameter.hidden]
        parts.append(f"Example:\n\n```sh\n{example}\n```" if example else "")
    return page(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Yields the words and the click command of every command and subcommand that help lists."""
    for name, command in sorted(typer.main.get_command(app).commands.items()):
        yield name, command
        for subname, subcommand in sorted(getattr(command, "commands", {}).items()):
            if not subcommand.hidden:
                yield f"{name} {subname}", subcommand


def _usage(command: Any) -> str:
    words = [_argument(p) for p in command.params if p.param_type_name == "argument"]
    options = ["[OPTIONS]"] if any(p.param_type_name == "option" for p in command.params) else []
    return " ".join([*words, *options])


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    name = name if parameter.nargs == 1 or name.endswith("...") else f"{name}..."
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        title = _argument(parameter)
    else:
        value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}"
        title = ", ".join([*parameter.opts, *parameter.secondary_opts]) + value
    default = parameter.default
    is_shown = default not in (None, False, (), []) and not callable(default)
    return definition(title, f"default `{default}`" if is_shown else "", parameter.help or "")


# Settings


def settings_page() -> str:
    """Returns the page of all settings of recipes and studies."""
    parts = [
        "# Settings\n\nEvery setting of a recipe, then of a study. [Recipes](../recipes.md) "
        "describes how settings are written, [Schedules](schedules.md) has those of `schedule`, "
        "and `rewarm schema` prints the JSON Schema by which editors check them. NAME stands for "
        "any name, and [] for each part of a list."
    ]
    for title, kind in (("Recipe", Recipe), ("Study", Study)):
        schema = kind.model_json_schema()
        parts += [f"## {title}", *_section(schema, schema, "", level=3)]
    return page(parts)


def _section(schema: dict[str, Any], root: dict[str, Any], prefix: str, level: int) -> list[str]:
    """Returns the settings of a section, then each section within it under its own heading."""
    parts, sections = [], []
    for name, setting in schema.get("properties", {}).items():
        inner = _inner_section(setting, root)
        required = name in schema.get("required", [])
        if inner is None or inner[1] == "[].":  # a list has a shorter form too
            parts.append(_setting(f"{prefix}{name}", setting, root, required=required))
        if inner:
            section, joint = inner
            text = setting.get("description") or section.get("description", "")
            sections += [
                f"{'#' * level} {prefix}{name}{joint.rstrip('.')}",
                markdown(section.get("description", "") if joint == "[]." else text),
                *_section(section, root, f"{prefix}{name}{joint}", level),
            ]
    return [*parts, *sections]


def _inner_section(setting: dict[str, Any], root: dict[str, Any]) -> tuple[dict, str] | None:
    """Returns the section that a setting is or contains, and how the names of both are joined."""
    for choice in (setting, *setting.get("allOf", ()), *setting.get("anyOf", ())):
        named = [*choice.get("patternProperties", {}).values(), choice.get("additionalProperties")]
        contained = [
            (choice, "."),
            *((part, ".NAME.") for part in named),
            (choice.get("items"), "[]."),
        ]
        for part, joint in contained:
            if isinstance(part, dict) and "properties" in (section := _resolved(part, root)):
                return section, joint
    return None


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return root["$defs"][reference.rpartition("/")[2]] if reference else schema


def _setting(name: str, schema: dict[str, Any], root: dict[str, Any], *, required: bool) -> str:
    facts = [_values(schema, root), "required" if required else ""]
    if "default" in schema:
        facts.append(f"default `{json.dumps(schema['default'], ensure_ascii=False)}`")
    text = schema.get("description") or _resolved(schema, root).get("description", "")
    return definition(name, ", ".join(filter(None, facts)), text)


def _values(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """Returns the values that a JSON Schema allows, in words."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if choices:
        return " or ".join(dict.fromkeys(_values(choice, root) for choice in choices))
    if "$ref" in schema:
        return _values(_resolved(schema, root), root)
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return "a list of " + ", ".join(_values(item, root) for item in items)
    names = {
        "null": "`null`",
        "string": "text",
        "integer": "an integer",
        "number": "a number",
        "boolean": "`true` or `false`",
        "object": "settings",
    }
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [
        f"{sign} {schema[key]:,g}" for key, sign in bounds.items() if schema.get(key, 1e9) < 1e9
    ]
    return " ".join([names.get(schema.get("type", ""), "any value"), " and ".join(limits)]).strip()


# Schedules


def schedules_page() -> str:
    """Returns the page of the built-in schedules and of the plug-ins in this repository."""
    parts = [
        "# Schedules\n\nThe formula and the settings of each schedule. The first three are part "
        "of rewarm; the others are [plug-ins](../../plugins/README.md) in its repository, each "
        "installed on its own."
    ]
    for distribution, kind in all_schedules():
        name = kind.model_fields["name"].default
        schema = settings_schema(kind)
        parts += [f"## {name}", f"Distribution: `{distribution}`.", markdown(kind.__doc__ or "")]
        required = schema.get("required", [])
        parts += [
            _setting(setting, values, schema, required=setting in required)
            for setting, values in schema["properties"].items()
            if setting != "name"
        ]
    return page(parts)


def all_schedules() -> Iterator[tuple[str, type[Schedule]]]:
    """Yields the distribution and the class of every schedule in the repository."""
    for path in (ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        sys.path.insert(0, str(path.parent))
        try:
            for entry in project["entry-points"]["rewarm.schedules"].values():
                module, _, name = entry.partition(":")
                yield project["name"], getattr(importlib.import_module(module), name)
        finally:
            sys.path.remove(str(path.parent))


# Exit codes


def exit_codes_page() -> str:
    """Returns the page of the exit codes, and of the errors that have them."""
    parts = [
        "# Exit codes\n\nScripts and batch systems can rely on them. [On a cluster]"
        "(../how-to/run-on-a-cluster.md), 75 means: start it again with `--resume`."
    ]
    kinds = [errors.RewarmError, *errors.RewarmError.__subclasses__()]
    for name, code, text in described_exit_codes():
        raised = [kind for kind in kinds if kind.exit_code == code]
        listed = "".join(f"\n* `{kind.__name__}`: {one_line(kind.__doc__)}" for kind in raised)
        parts.append(f"## {code}\n\n{text or 'Done.'}\n\n`rewarm.exit_codes.{name}`")
        parts.append(f"Errors:\n{listed}" if listed else "")
    return page(parts)


def described_exit_codes() -> Iterator[tuple[str, int, str]]:
    """Yields the name, the number and the description of each exit code."""
    for statement, text in _described_assignments(inspect.getsource(exit_codes)):
        name = ast.unparse(statement.targets[0])
        yield name, int(getattr(exit_codes, name)), text


# Python


def python_page() -> str:
    """Returns the page of the Python API: `rewarm.schedules` and `rewarm.testing`."""
    parts = [
        "# Python API\n\nWhat schedules and their tests use. Everything else in the package may "
        "change between versions."
    ]
    shown = ""
    for module, name, value in python_names():
        if module != shown:
            parts += [f"## {module}", markdown(sys.modules[module].__doc__ or "")]
            shown = module
        parts.append(f"### {name}")
        if inspect.isclass(value) or inspect.isfunction(value):
            parts.append(f"```python\n{_wrapped(_signature(name, value))}\n```")
            parts.append(markdown(inspect.getdoc(value) or ""))
            parts += _methods(value)
        else:
            text = _described_constant(module, name) or "A type of settings."
            code = f"{name} = {value!r}".replace("typing.", "")
            parts.append(f"```python\n{_wrapped(code)}\n```\n\n{markdown(text)}")
    return page(parts)


def _wrapped(code: str) -> str:
    return textwrap.fill(code, 76, subsequent_indent="    ", break_long_words=False)


def python_names() -> Iterator[tuple[str, str, Any]]:
    """Yields the module, the name and the value of everything on that page."""
    for module, names in (
        (schedules, schedules.__all__),
        (testing, ("check_schedule", "conformance", "rates")),
    ):
        for name in names:
            yield module.__name__, name, getattr(module, name)


def _signature(name: str, value: Any) -> str:
    if hasattr(value, "_fields"):
        fields = (f"{field}: {kind}" for field, kind in value.__annotations__.items())
        return f"class {name}({', '.join(fields)})".replace("'", "")
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        return f"class {name}({bases})"
    return f"def {name}{inspect.signature(value)}".replace("'", "")


def _methods(kind: Any) -> Iterator[str]:
    if not inspect.isclass(kind):
        return
    for name, method in vars(kind).items():
        is_public = name == "__call__" or not name.startswith("_")
        if is_public and inspect.isfunction(method) and inspect.getdoc(method):
            signature = str(inspect.signature(method)).replace("'", "")
            yield definition(f"{name}{signature}", "", inspect.getdoc(method) or "")


def _described_constant(module: str, name: str) -> str:
    """Returns the docstring below a constant, in the module that defines it, or ""."""
    for path in sorted((ROOT / module.replace(".", "/")).glob("*.py")):
        for statement, text in _described_assignments(path.read_text(encoding="utf-8")):
            if ast.unparse(statement.targets[0]) == name:
                return text
    return ""


def _described_assignments(source: str) -> Iterator[tuple[ast.Assign, str]]:
    """Yields each assignment at the top level of a module, and the docstring below it, or ""."""
    body = ast.parse(source).body
    for statement, following in zip_longest(body, body[1:]):
        if isinstance(statement, ast.Assign):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            yield statement, str(following.value.value) if is_text else ""
