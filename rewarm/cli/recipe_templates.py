"""The recipes and studies that travel with rewarm, and how one gets into a folder of the user's."""

from __future__ import annotations

import json
from pathlib import Path

from rewarm.errors import RecipeError, did_you_mean
from rewarm.recipe.recipe import Recipe, recipe_schema
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.study.study_file import Study, is_study

SCHEMA_FILE = "rewarm.schema.json"
"""What the first line of a shipped recipe points editors to."""

STUDY_SCHEMA_FILE = "rewarm-study.schema.json"
"""And that of a study."""


def list_templates() -> dict[str, str]:
    """Returns the shipped recipes by name, and what each does in a line."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
        for path in sorted(_folder().glob("*.yaml"))
    }


def write_template(name: str, folder: Path) -> list[Path]:
    """Writes what is shipped under a name, and the schema that editors check it by, into a folder.

    A study brings the recipes that it names along; one that is there already stays as it is.

    Raises:
        RecipeError: there is no such name, its file is there already, or cannot be written.
    """
    target = folder / f"{name}.yaml"
    if name not in list_templates():
        near = did_you_mean(name, list(list_templates()))
        raise RecipeError([f"no shipped recipe named {name!r}{near} (`rewarm new` lists them)"])
    schemas, brought = {SCHEMA_FILE: schema_json()}, []
    if is_study(_folder() / target.name):
        said = YamlDocument.load(_folder() / target.name).data
        brought = list(dict.fromkeys([said["recipe"], *said.get("bases", {}).values()]))
        schemas[STUDY_SCHEMA_FILE] = schema_json(Study)
    try:
        _copy(target)
        for file in brought:
            if not (folder / file).exists():
                _copy(folder / file)
        for file, text in schemas.items():
            (folder / file).write_text(text, encoding="utf-8")
    except FileExistsError:
        where = f"{target}: is there already; remove it, or choose another folder with --out"
        raise RecipeError([where]) from None
    except OSError as error:
        raise RecipeError([f"{target}: cannot be written: {error.strerror}"]) from None
    return [folder / file for file in (target.name, *brought, *schemas)]


def _copy(target: Path) -> None:
    with target.open("x", encoding="utf-8") as file:
        file.write((_folder() / target.name).read_text(encoding="utf-8"))


def schema_json(of: type[Recipe] | type[Study] = Recipe) -> str:
    """Returns the JSON Schema of a recipe, with the settings of every schedule, or of a study."""
    whole = recipe_schema() if of is Recipe else of.model_json_schema()
    return json.dumps(whole, indent=1) + "\n"


def _folder() -> Path:
    """Returns where the recipes are: in an installed package, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    places = (package / "recipe" / "templates", package.parent / "recipes")
    return next(folder for folder in places if folder.is_dir())
