"""What is outside of the arms is named, and what is beyond the limits is refused."""

import pytest
from synthetic_probes import Arm, rewarmed, synthetic_probe

from rewarm.errors import CheckpointError
from rewarm.predict.arms import StudiedArms
from rewarm.predict.law import rate_curve
from rewarm.predict.reach import reach_of, recipe_differences
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument

RECIPE = """\
run: runs/x
tokens: 819_200
model: {base: /models/base, base_lr: 2e-4}
data:
  context: 128
  train: {new: {shards: /data/new/train, weight: 75%}, old: {shards: /data/o/train, weight: 25%}}
  validation:
    upstream: {shards: /data/o/val}
    downstream: {shards: /data/new/val}
batch: {tokens: 2048, microbatch: 16}
schedule: {name: rewarm, peak_lr: 2e-3, min_lr: 2e-4}
precision: fp32
"""


def recipe_with(*changes):
    document = YamlDocument(RECIPE, "recipe")
    for change in changes:
        document.apply_override(change)
    return validate_recipe(document)


def arms_of(*arms, start=0.1, old_corpora=None):
    probes = [synthetic_probe(str(index), arm) for index, arm in enumerate(arms)]
    roles = {"upstream": "upstream", "downstream": "downstream"}
    corpora = old_corpora or {}
    return StudiedArms(
        probes, dict.fromkeys(roles, 3.0), roles, [], recipe_with(), 2e-3, start, True, corpora, []
    )


ARMS = arms_of(Arm(), Arm(0.5), Arm(replay=0.05))


def reach(peak=1.0, steps=400, replay=0.0, arms=ARMS):
    return reach_of(arms, rate_curve(rewarmed(peak, steps), [steps]), replay)


def test_inside_there_is_nothing_to_say():
    assert reach(0.7, 400, 0.02) == ([], [], False)


@pytest.mark.parametrize(
    ("target", "limit"),
    [
        ({"steps": 800}, {"steps": 804}),
        ({"peak": 2.0}, {"peak": 2.02}),
        ({"peak": 0.1}, {"peak": 0.099}),
        ({"replay": 0.25}, {"replay": 0.251}),
    ],
)
def test_limits(target, limit):
    within, beyond = reach(**target), reach(**limit)
    assert (len(within.notes), len(within.refusals)) == (1, 0)
    assert (len(beyond.notes), len(beyond.refusals)) == (1, 1)
    assert within.is_longer == ("steps" in target)


def test_no_new_data_and_a_base_that_has_not_decayed():
    assert reach(replay=1.0).refusals == []
    assert "trains on old data only" in reach(2.0, replay=1.0).refusals[0]
    not_decayed = arms_of(Arm(), Arm(0.5), Arm(0.25), start=0.9)
    assert "0.9 of its peak" in reach(0.5, arms=not_decayed).refusals[0]


def test_replay_is_what_the_base_was_trained_on():
    """By the base's lineage, or by the folder that an upstream set was held out of."""
    assert ARMS.replay_share(recipe_with()) == 0.25
    elsewhere = recipe_with("data.train.old.shards=/data/elsewhere/train")
    assert ARMS.replay_share(elsewhere) == 0
    by_lineage = arms_of(Arm(), old_corpora={"pile": "/data/elsewhere/train"})
    assert by_lineage.replay_share(elsewhere) == 0.25
    assert ARMS.new_data(recipe_with()) == "new (/data/new/train)"


def test_a_share_that_changes_is_refused():
    recipe = recipe_with(
        "data.train.old.weight=[{from: 0, weight: 50%}, {from: 50%, weight: 25%}]",
        "data.train.new.weight=[{from: 0, weight: 50%}, {from: 50%, weight: 75%}]",
    )
    with pytest.raises(CheckpointError, match="change during the run"):
        ARMS.replay_share(recipe)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("model.base=/models/x", "model.base is /models/x, and /models/base in the arms; "),
        ("model.tokenizer=/models/t", "model.tokenizer is /models/t, and not set in the arms; "),
        ("data.context=64", "data.context is 64, and 128 in the arms; "),
        ("data.documents=separate", "data.documents is separate, and attend-across in the arms; "),
        ("optimizer.weight_decay=0", "optimizer.weight_decay is 0.0, and 0.1 in the arms; "),
        (
            "data.validation.upstream.tokens=1280",
            "data.validation.upstream.tokens is 1280, and not set in the arms; ",
        ),
        ("data.train.new.shards=/x", "new data new (/x), and new (/data/new/train) in the arms; "),
    ],
)
def test_recipes_that_differ(change, difference):
    arms = ARMS._replace(new_corpora=["new (/data/new/train)"])
    assert recipe_differences(arms, recipe_with("schedule.peak_lr=1e-3")) == []
    [found] = recipe_differences(arms, recipe_with(change))
    assert found.startswith(difference)


def test_rates_count_in_units_of_the_bases_peak():
    curve = ARMS.curve(recipe_with(), [400])
    assert curve.peak == pytest.approx(1)
