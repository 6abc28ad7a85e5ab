"""The recipes that travel with rewarm, and how one gets into a folder of the user's."""

from __future__ import annotations

import json
from pathlib import Path

from rewarm import recipe
from rewarm.errors import RecipeError, did_you_mean

SCHEMA = "rewarm.schema.json"
"""What the first line of a shipped recipe points editors to."""


def names() -> dict[str, str]:
    """Returns the shipped recipes by name, and what each does in a line."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
        for path in sorted(_folder().glob("*.yaml"))
    }


def write(name: str, folder: Path) -> list[Path]:
    """Writes a shipped recipe, and the schema that editors check it by, into a folder.

    Raises:
        RecipeError: there is no such recipe, its file is there already, or cannot be written.
    """
    source, target = _folder() / f"{name}.yaml", folder / f"{name}.yaml"
    if name not in names():
        near = did_you_mean(name, list(names()))
        raise RecipeError([f"no shipped recipe named {name!r}{near} (`rewarm new` lists them)"])
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
        (folder / SCHEMA).write_text(schema(), encoding="utf-8")
    except FileExistsError:
        said = f"{target}: is there already; remove it, or choose another folder with --out"
        raise RecipeError([said]) from None
    except OSError as error:
        raise RecipeError([f"{target}: cannot be written: {error.strerror}"]) from None
    return [target, folder / SCHEMA]


def schema() -> str:
    """Returns the JSON Schema of a recipe, with the settings of every installed schedule."""
    return json.dumps(recipe.schema(), indent=1) + "\n"


def _folder() -> Path:
    """Returns where the recipes are: in an installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    return next(one for one in (package / "recipes", package.parent / "recipes") if one.is_dir())
