"""What a search varies, by the schedule, the arms and the recipe."""

import pytest
from predicted_studies import BATCH, PEAK
from searched_arms import ARMS, arms_of, recipe_of_arm
from synthetic_probes import Arm

from rewarm.errors import RecipeError
from rewarm.predict.search_ranges import parse_ranges
from rewarm.predict.search_space import (
    choice_of,
    default_space,
    readable_shares,
    recipe_of,
    schedule_with,
    setting_names,
)

RECIPE = recipe_of_arm(Arm(replay=0.05))


def test_values_by_default_are_within_the_limits():
    space = default_space(ARMS, RECIPE)
    assert min(space.peak) == pytest.approx(0.2 * 0.25 * PEAK, rel=0.01)
    assert max(space.peak) == PEAK  # not above: it might diverge
    assert max(space.replay) == 0.5
    assert min(space.replay) == 0
    assert space.decay == ("cosine", "clipped-cosine", "linear", "1-sqrt", "inverse-sqrt")
    assert space.minimum == (0, 0.05, 0.1, 0.2)
    assert [f"{one:.2f}" for one in space.warmup] == ["0.01", "0.02", "0.05", "0.10"]
    assert space.length == (None,)
    assert space.tokens == (400 * BATCH,)
    assert space.notes == []


def test_budgets_are_whole_steps_up_to_the_largest():
    space = default_space(ARMS, RECIPE, most_tokens=600 * BATCH + 5)
    assert space.tokens == tuple(BATCH * steps for steps in (75, 150, 300, 400, 450, 600))
    assert default_space(ARMS, RECIPE, most_tokens=399 * BATCH).tokens[-1] == 399 * BATCH


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        (ARMS, "add one, such as data.train.upstream: {shards: /data/old"),
        (arms_of(Arm(), Arm(0.5), Arm(0.25)), "add one, such as data.train.upstream"),
    ],
)
def test_replay_is_not_searched_without_old_data(arms, reason):
    recipe = recipe_of_arm(Arm())
    space = default_space(arms, recipe)
    assert space.replay == (0,)
    assert reason in space.notes[0]
    with pytest.raises(RecipeError, match="replay is not searched"):
        default_space(arms, recipe, {"replay": [0.01]})


def test_replay_is_refused_if_no_arm_has_any():
    with pytest.raises(RecipeError, match=r"0.05 of replay: .* up to 0; no arm has any"):
        default_space(arms_of(Arm(), Arm(0.5), Arm(0.25)), RECIPE)


def test_a_base_that_has_not_decayed_is_refused():
    with pytest.raises(RecipeError, match=r"the base's last rate is 0.9 of its peak"):
        default_space(ARMS._replace(start=0.9), RECIPE)


def test_a_recipe_gets_the_settings_of_a_choice():
    choice = choice_of(ARMS, RECIPE)
    assert recipe_of(ARMS, RECIPE, choice) == RECIPE
    changed = choice._replace(peak=1e-3, minimum=0.05, decay="linear", replay=0.2, tokens=3 * BATCH)
    recipe = recipe_of(ARMS, RECIPE, changed)
    schedule = recipe.schedule
    assert (schedule.peak_lr, schedule.min_lr, schedule.decay) == (1e-3, 5e-5, "linear")
    assert (float(schedule.warmup), recipe.steps) == (0.05, 3)
    assert {name: pieces[0][1] for name, pieces in recipe.corpus_weights.items()} == {
        "downstream": pytest.approx(0.8),
        "upstream": pytest.approx(0.2),
    }
    assert list(recipe_of(ARMS, RECIPE, choice._replace(replay=0)).data.train) == ["downstream"]


def test_corpora_keep_their_proportions():
    corpora = {
        name: {"shards": f"/data/{name}/train", "weight": weight}
        for name, weight in (("new", 6), ("code", 2), ("old", 1), ("older", 1))
    }
    recipe = recipe_of_arm(Arm(), data__train=corpora)
    arms = ARMS._replace(old_corpora={"old": "", "older": ""})
    assert arms.replay_share(recipe) == pytest.approx(0.2)
    weights = recipe_of(arms, recipe, choice_of(arms, recipe)._replace(replay=0.4)).corpus_weights
    assert {name: pieces[0][1] for name, pieces in weights.items()} == pytest.approx(
        {"new": 0.45, "code": 0.15, "old": 0.2, "older": 0.2}
    )


def test_a_corpus_is_read_at_least_once_and_at_most_as_often_as_allowed():
    space = default_space(ARMS, RECIPE, {"replay": [0.0, 0.01, 0.1, 0.5]})
    assert readable_shares(space, RECIPE, ARMS, 10 * BATCH) == [0, 0.01, 0.1, 0.5]
    assert readable_shares(space, RECIPE, ARMS, 5 * BATCH) == [0, 0.1, 0.5]  # 80 sequences
    limited = space._replace(most_sequences={"downstream": 75, "upstream": 30})
    assert readable_shares(limited, RECIPE, ARMS, 5 * BATCH) == [0.1]


def test_schedules_of_plugins(plugins):
    names = {
        name: setting_names(recipe_of_arm(Arm(), schedule=settings).schedule)
        for name, settings in {
            "wsd": {"name": "wsd", "peak_lr": 1e-3},
            "infinite": {"name": "infinite", "peak_lr": 1e-3, "constant_lr": 5e-4, "min_lr": 1e-4},
            "d2z": {"name": "d2z", "peak_lr": 1e-3},
            "reuse": {"name": "reuse", "start_lr": 1e-3},
        }.items()
    }
    rates = {"peak": "peak_lr", "minimum": "min_lr", "warmup": "warmup"}
    assert names["wsd"] == {**rates, "decay": "shape", "length": "decay"}
    assert names["infinite"] == {**rates, "decay": "cooldown", "length": "annealing"}
    assert names["d2z"] == {"peak": "peak_lr", "warmup": "warmup"}
    assert names["reuse"] == {}
    wsd = recipe_of_arm(Arm(), schedule={"name": "wsd", "peak_lr": 1e-3, "min_lr": 1e-4})
    space = default_space(ARMS, wsd)
    assert [float(length) for length in space.length] == [0.1, 0.2, 0.3, 0.5]
    choice = choice_of(ARMS, wsd)._replace(decay="linear", length=space.length[-1])
    assert recipe_of(ARMS, wsd, choice).schedule.decay == 0.5
    too_long = choice._replace(warmup=0.6, length=0.5)
    assert schedule_with(wsd, too_long) is None
    assert (
        "has no peak, minimum, warmup, decay"
        in default_space(
            ARMS, recipe_of_arm(Arm(), schedule={"name": "reuse", "start_lr": 1e-3})
        ).notes[-1]
    )


@pytest.mark.parametrize(
    ("ranges", "tokens", "problem"),
    [
        ({"peak": [2.1 * PEAK]}, None, "a peak of 0.0042: predictions are known to hold from"),
        ({"peak": [0.04 * PEAK]}, None, "a peak of 8e-05"),
        ({"replay": [0.51]}, None, "0.51 of replay: predictions are known to hold up to 0.5"),
        ({"decay": ["cosin"]}, None, "cosin: schedule rewarm has no such decay"),
        ({"length": [0.1]}, None, "length: schedule rewarm has no such setting"),
        ({}, 801 * BATCH, "1.64M tokens: predictions are known to hold up to 1.64M, twice"),
        ({}, BATCH - 1, "2,047 tokens are less than one step of 2,048"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(ranges, tokens, problem):
    with pytest.raises(RecipeError) as error:
        default_space(ARMS, RECIPE, ranges, most_tokens=tokens)
    assert problem in str(error.value)


def test_ranges_as_they_are_written():
    ranges = parse_ranges(
        ["peak=1e-4:1.6e-3", "replay = 0:8%", "warmup=1%,5%", "decay=cosine, linear", "minimum=10%"]
    )
    assert ranges["peak"][:3] == [1e-4, 1.41e-4, 2e-4]
    assert (len(ranges["peak"]), ranges["peak"][-1]) == (9, 1.6e-3)
    assert ranges["replay"] == pytest.approx([0.01 * percent for percent in range(9)])
    assert [one.written for one in ranges["warmup"]] == ["1%", "5%"]
    assert ranges["decay"] == ["cosine", "linear"]
    assert ranges["minimum"] == [0.1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("peak", "should be written NAME=FROM:TO or NAME=VALUE,VALUE"),
        ("pek=1e-3", "no setting named 'pek'; did you mean 'peak'?"),
        ("tokens=1B", "no setting named 'tokens'"),
        ("peak=high", "a peak should be a rate above 0, such as 3e-4"),
        ("peak=0:1e-3", "a peak should be a rate above 0"),
        ("replay=100%", "should be a share from 0 to below 100%"),
        ("warmup=5%:1%", "the first number should be below the second"),
    ],
)
def test_what_is_no_range(text, problem):
    with pytest.raises(RecipeError) as error:
        parse_ranges([text])
    assert str(error.value).startswith(f"--range {text}: {problem}")
