"""The files of a probe: its target, the recipe of its arms, and the study that trains them.

```
 DIR/target.yaml    the recipe to predict          DIR/study.yaml          the arms: rewarm compare
 DIR/probe.yaml     the same, as long as an arm    DIR/ARM/SEED            the arms' runs
                                                   DIR/recommended.yaml    what to train
```
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rewarm.errors import CheckpointError, RecipeError
from rewarm.files import atomic_write, create_folder
from rewarm.predict.probe_plan import ProbeArm, ProbePlan
from rewarm.predict.probe_target import ProbeTarget
from rewarm.quantities import Span
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.saved_recipe import load_saved_document
from rewarm.recipe.yaml_document import YamlDocument, flatten_settings, write_yaml

STUDY_FILE = "study.yaml"
TARGET_FILE = "target.yaml"
RECOMMENDED_FILE = "recommended.yaml"
_PROBE_FILE = "probe.yaml"
_NOT_COMPARED = ("run", "trackers")
"""Settings that change no loss."""


def arm_recipe(target: ProbeTarget, arm: ProbeArm, folder: Path) -> Recipe:
    """Returns the recipe of an arm in the folder of a probe.

    Raises:
        RecipeError: it is not valid, or the schedule cannot be scaled.
    """
    settings = target.recipe.document()
    settings |= {
        "run": str(folder.absolute() / arm.name),
        "tokens": arm.steps * target.recipe.batch.tokens,
        "schedule": scaled_schedule(target.recipe, arm.peak),
        "every": arm.every.model_dump(mode="json"),
        "tasks": {},
        "sample": {},
        "keep": {"last": 1},
    }
    settings["data"]["train"] = target.train(arm.replay)
    return validate_recipe(YamlDocument(write_yaml(settings), f"arm {arm.name}"))


def scaled_schedule(recipe: Recipe, factor: float) -> dict[str, Any]:
    """Returns a recipe's schedule with all rates times a factor, for a run of any length.

    Lengths in tokens or steps become shares of the run, so that a short run has the same shape.

    Raises:
        RecipeError: the schedule has rates that are not in settings named `lr` or `..._lr`.
    """
    schedule = recipe.schedule
    settings: dict[str, Any] = _scaled(schedule, "", factor)
    document = YamlDocument(recipe.to_yaml(), recipe.run)
    document.set_value(("schedule",), settings, recipe.run)
    scaled = validate_recipe(document)
    steps = range(1, recipe.steps + 1, max(1, recipe.steps // 100))
    rates = [(scaled.lr(step), factor * recipe.lr(step)) for step in steps]
    # Rounding moves a rate of nearly 0 by any factor, and no loss.
    negligible = 1e-6 * max(expected for _, expected in rates)
    if all(math.isclose(*pair, rel_tol=1e-3, abs_tol=negligible) for pair in rates):
        return settings
    raise RecipeError(
        [
            f"schedule {schedule.name}: with its settings named lr or ..._lr times "
            f"{factor:g}, its rates are not {factor:g} times as high, so that no arm with a lower "
            "peak can be made of it; write a study with such an arm, and use rewarm compare and "
            "rewarm predict"
        ]
    )


def _scaled(value: Any, name: str, factor: float) -> Any:
    """Returns a setting of a schedule, with what is inside it, as plain data."""
    if isinstance(value, Span):
        return float(value)  # not rounded: a shape may be so steep that six digits show
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            field.alias or key: _scaled(getattr(value, key), key, factor)
            for key, field in fields.items()
        }
    if isinstance(value, list | tuple):
        return [_scaled(one, name, factor) for one in value]
    if isinstance(value, float) and (name == "lr" or name.endswith("_lr")):
        return float(f"{factor * value:.6g}")
    return value


def write_probe_study(recipe: Recipe, target: ProbeTarget, plan: ProbePlan, folder: Path) -> None:
    """Writes the files of a probe, the study last.

    Args:
        recipe: the recipe to predict, as it was loaded.
        target: the same, as the target of the probe.
        plan: the arms.
        folder: the folder; see `check_new_folder`.

    Raises:
        RecipeError: an arm's recipe is not valid.
        CheckpointError: the folder has other files, or cannot be written.
    """
    check_new_folder(folder)
    recipes = {arm.name: arm_recipe(target, arm, folder).document() for arm in plan.arms}
    first = next(iter(recipes.values()))
    study = {
        "study": ".",
        "recipe": _PROBE_FILE,
        "arms": {name: _changes(first, document) for name, document in recipes.items()},
        "seeds": [recipe.seed],
    }
    files = {
        TARGET_FILE: recipe.to_yaml(),
        _PROBE_FILE: write_yaml(first),
        STUDY_FILE: f"# Arms of a probe: rewarm compare {STUDY_FILE}\n{write_yaml(study)}",
    }
    try:
        create_folder(folder)
        for name, text in files.items():
            atomic_write(folder / name, text)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; free disk space, "
            "check the permissions, or name another folder with --out"
        ) from None


def check_new_folder(folder: Path) -> None:
    """Checks that a folder may become that of a probe: it has nothing else in it, or is not there.

    Raises:
        CheckpointError: it has other files, or is a file.
    """
    own = (TARGET_FILE, _PROBE_FILE, STUDY_FILE)
    try:
        others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be the folder of a probe: {error.strerror}; name a new folder with "
            "--out"
        ) from None
    if others:
        raise CheckpointError(
            f"{folder}: has other files, such as {others[0]}, and no probe; name a new folder "
            "with --out"
        )


def _changes(first: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Returns what an arm changes in the recipe of the first one, as a study file says it."""
    own, other = dict(document), dict(first)
    changes = {
        f"data.{name}": value
        for name, value in own.pop("data").items()
        if other["data"][name] != value
    }
    flat = flatten_settings({name: value for name, value in other.items() if name != "data"})
    changes |= {
        name: value for name, value in flatten_settings(own).items() if flat.get(name) != value
    }
    changes.pop("run", None)  # a study names the runs itself
    return changes


def check_same_target(recipe: Recipe, folder: Path) -> None:
    """Checks that the probe in a folder is for this recipe, apart from its run directory.

    Raises:
        CheckpointError: it is for another one, or its target is missing.
        RecipeError: its target cannot be read.
    """
    if not (folder / TARGET_FILE).exists():
        raise CheckpointError(
            f"{folder}: has a {STUDY_FILE} and no {TARGET_FILE}, the recipe that a probe is for; "
            f"restore {TARGET_FILE}, or name another folder with --out"
        )
    saved = flatten_settings(load_saved_document(folder / TARGET_FILE).data)
    current = flatten_settings(recipe.document())
    changes = [
        f"{name}: {saved.get(name)} → {current.get(name)}"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name) and name.split(".")[0] not in _NOT_COMPARED
    ]
    if changes:
        raise CheckpointError(
            f"{folder}: a probe of another recipe: {'; '.join(changes[:3])}; undo the changes, or "
            "name another folder with --out"
        )
