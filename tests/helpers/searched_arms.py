"""Arms whose losses follow the law exactly, fitted, and a recipe to search from."""

from functools import cache

import yaml
from synthetic_probes import LAW, LOGARITHMS, Arm, synthetic_probe

from rewarm.predict.arms import StudiedArms
from rewarm.predict.fit import Fit
from rewarm.predict.loss_models import LawModel
from rewarm.predict.prediction import FittedArms, fit_arms
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument

PEAK = 2e-3
STARTS = {"upstream": 3.5, "downstream": 5.9}
BATCH = 2048


def recipe_of_arm(arm, **changes):
    """The recipe of an arm; `schedule__decay="linear"` changes one of its settings."""
    corpora = {
        "new": {"shards": "/data/new/train", "weight": 1 - arm.replay},
        "old": {"shards": "/data/old/train", "weight": arm.replay},
    }
    settings = {
        "run": "/runs/next",
        "tokens": arm.steps * BATCH,
        "model": {"base": "/models/base", "base_lr": PEAK / 10},
        "data": {
            "context": 128,
            "train": {name: corpus for name, corpus in corpora.items() if corpus["weight"]},
            "validation": {
                "upstream": {"shards": "/data/old/val"},
                "downstream": {"shards": "/data/new/val"},
            },
        },
        "batch": {"tokens": BATCH, "microbatch": 16},
        "schedule": {
            "name": "rewarm",
            "peak_lr": PEAK * arm.peak,
            "min_lr": PEAK * arm.peak / 10,
            "warmup": "5%",
        },
        "precision": "fp32",
    }
    document = YamlDocument(yaml.safe_dump(settings), "recipe")
    for name, value in changes.items():
        document.set_value(tuple(name.split("__")), value, "test")
    return validate_recipe(document)


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
        {"old": "/data/old/train"},
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
    return fitted._replace(law=Fit(law, LOGARITHMS, fitted.law.covariance, 0.0))
