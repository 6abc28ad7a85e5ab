"""The recipe and study templates that are installed with rewarm; `rewarm new` copies them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

from rewarm.errors import RecipeError, did_you_mean
from rewarm.recipe.json_schema import accept_underscores, recipe_schema
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.study.study_file import is_study
from rewarm.study.study_plan import Study

SCHEMA_FILE = "rewarm.schema.json"
"""The JSON Schema that the first line of a recipe template names, for editors."""

STUDY_SCHEMA_FILE = "rewarm-study.schema.json"
"""The JSON Schema that the first line of a study template names."""


class Template(NamedTuple):
    """A recipe or study template."""

    kind: Literal["recipe", "study"]
    description: str
    """Its second line."""


def list_templates() -> dict[str, Template]:
    """Returns the templates by name: studies first, then recipes."""
    templates = {}
    for path in sorted(_template_folder().glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        schema, comment, *_ = text.splitlines()
        kind: Literal["recipe", "study"] = "study" if STUDY_SCHEMA_FILE in schema else "recipe"
        templates[path.stem] = Template(kind, comment.removeprefix("# "))
    return dict(sorted(templates.items(), key=lambda item: item[1].kind, reverse=True))


def write_template(name: str, folder: Path) -> list[Path]:
    """Copies a template into a folder, with its JSON Schema, and returns the paths.

    The recipes that a study names are copied too, except those that already exist there.

    The folder is created if there is none.

    Raises:
        RecipeError: no template has this name, or its file already exists or cannot be written.
    """
    templates = list_templates()
    if name not in templates:
        suggestion = did_you_mean(name, list(templates))
        raise RecipeError([f"no template named {name!r}{suggestion} (`rewarm new` lists them)"])
    target = folder / f"{name}.yaml"
    recipes, schemas = _recipes_and_schemas(_template_folder() / target.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _copy_template(target)
        for file in recipes:
            if not (folder / file).exists():
                _copy_template(folder / file)
        for file, schema in schemas.items():
            (folder / file).write_text(schema, encoding="utf-8")
    except FileExistsError as error:
        if error.filename == str(folder):  # a file is in the place of the folder
            raise RecipeError([f"{folder}: cannot be written: {error.strerror}"]) from None
        problem = f"{target}: already exists; remove it, or choose another folder with --out"
        raise RecipeError([problem]) from None
    except OSError as error:
        raise RecipeError([f"{target}: cannot be written: {error.strerror}"]) from None
    return [folder / file for file in (target.name, *recipes, *schemas)]


def _recipes_and_schemas(template: Path) -> tuple[list[str], dict[str, str]]:
    """Returns the files that a template needs: the recipes of a study, and JSON Schemas."""
    schemas = {SCHEMA_FILE: schema_json()}
    if not is_study(template):
        return [], schemas
    study = YamlDocument.load(template).data
    recipes = dict.fromkeys([study["recipe"], *study.get("bases", {}).values()])
    return list(recipes), schemas | {STUDY_SCHEMA_FILE: schema_json(Study)}


def _copy_template(target: Path) -> None:
    with target.open("x", encoding="utf-8") as file:
        file.write((_template_folder() / target.name).read_text(encoding="utf-8"))


def schema_json(model: type[Recipe] | type[Study] = Recipe) -> str:
    """Returns the JSON Schema of a recipe (with the settings of every schedule) or of a study."""
    schema = recipe_schema() if model is Recipe else accept_underscores(model.model_json_schema())
    return json.dumps(schema, indent=1) + "\n"


def _template_folder() -> Path:
    """Returns the folder of the templates: in the installed package, or recipes/ of a checkout."""
    package = Path(__file__).parents[1]
    folders = (package / "recipe" / "templates", package.parent / "recipes")
    return next(folder for folder in folders if folder.is_dir())
