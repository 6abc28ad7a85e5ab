"""Arms whose losses follow the law exactly, fitted, and a recipe to search from."""

from dataclasses import replace
from functools import cache

import yaml
from predicted_studies import PEAK, STARTS, recipe_document
from synthetic_probes import LAW, LOGARITHMS, Arm, synthetic_probe

from rewarm.predict.arms import StudiedArms
from rewarm.predict.fit import Fit
from rewarm.predict.loss_models import LawModel
from rewarm.predict.prediction import FittedArms, fit_arms
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument


def recipe_of_arm(arm, **changes):
    """The recipe of an arm; `schedule__decay="linear"` changes one of its settings."""
    own = YamlDocument(yaml.safe_dump(recipe_document(arm, "/runs/next")), "recipe")
    for name, value in changes.items():
        own.set_value(tuple(name.split("__")), value, "test")
    return validate_recipe(own)


def arms_of(*arms):
    """Arms that follow the law of `synthetic_probes`."""
    probes = []
    for index, arm in enumerate(arms):
        probe = synthetic_probe(str(index), arm)
        names = dict(zip(LAW.sets, STARTS, strict=True))
        changes = {names[name]: change for name, change in probe.changes.items()}
        probes.append(probe._replace(changes=changes))
    return StudiedArms(
        probes,
        STARTS,
        {name: name for name in STARTS},
        [],
        recipe_of_arm(Arm()),
        PEAK,
        0.1,
        True,
        {"upstream": "/data/old/train"},
        [],
    )


ARMS = arms_of(Arm(), Arm(0.5), Arm(0.25), Arm(replay=0.05), Arm(0.5, 0.1))


@cache
def fitted_arms() -> FittedArms:
    """ARMS with the law fitted to them."""
    return fit_arms(ARMS)


def known_arms() -> FittedArms:
    """ARMS with the parameters that they were made from, in place of those of a fit."""
    fitted = fitted_arms()
    law = LawModel(("upstream",), ("downstream",), 0.1)
    return replace(fitted, law=Fit(law, LOGARITHMS, fitted.law.covariance, 0.0))
