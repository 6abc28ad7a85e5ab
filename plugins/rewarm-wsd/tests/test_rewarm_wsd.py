"""The curve, against values worked out elsewhere and against a second, plainer implementation."""

import plain_wsd as plain
import pytest

from rewarm import recipe, schedules
from rewarm.errors import RecipeError
from rewarm.testing import check_schedule, rates


@pytest.fixture
def load(tmp_path):
    """Returns a function from a schedule, and steps, to a Recipe that went through YAML."""

    def from_yaml(schedule, steps=1000):
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"run: runs/wsd\n"
            f"tokens: {64 * steps}\n"
            f"model: {{preset: pythia-14m}}\n"
            f"data: {{context: 64, train: {{downstream: {{shards: data/train}}}}}}\n"
            f"batch: {{tokens: 64, microbatch: 1}}\n"
            f"schedule: {{{schedule if 'name:' in schedule else f'name: wsd, {schedule}'}}}\n"
        )
        return recipe.load(path)

    return from_yaml


def test_they_keep_the_contract():
    for shape in plain.SHAPES:
        check_schedule("wsd", shape=shape)
        check_schedule("wsd-s", shape=shape)
    check_schedule("wsd", start_lr="base", warmup="10 steps", decay="6400 tokens")
    check_schedule("wsd-s", returns=["30%", "20000 tokens"], decay="100%", warmup=0)


@pytest.mark.parametrize(("settings", "steps", "expected"), plain.REFERENCE)
def test_published_values(settings, steps, expected):
    found = rates(settings["name"], steps, **settings)
    assert {step: f"{found[step - 1]:.4e}" for step in expected} == {
        step: f"{rate:.4e}" for step, rate in expected.items()
    }


@pytest.mark.parametrize(("settings", "steps"), plain.CASES)
def test_every_step_equals_the_plain_implementation(settings, steps):
    expected = plain.by_hand(steps, **settings)
    assert rates(settings["name"], steps, **settings) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("shape", plain.SHAPES)
def test_with_no_return_but_the_end_wsd_s_would_be_wsd(shape):
    late = rates("wsd-s", 1000, **plain.RATES, returns=["500 steps"], decay="40%", shape=shape)
    half = rates("wsd", 500, **plain.RATES, warmup=0, decay="40%", shape=shape)
    assert late[500:] == pytest.approx(half, rel=1e-12, abs=0)


@pytest.mark.parametrize("shape", plain.SHAPES)
@pytest.mark.parametrize("decay", ["7%", "20%", "100%"])
def test_ends_at_the_minimum_and_stays_there(shape, decay):
    kind = schedules.find("wsd")
    low = 3e-5 if shape in ("exponential", "inverse") else 0.0
    curve = kind(peak_lr=3e-4, min_lr=low, warmup=0, decay=decay, shape=shape)
    assert [curve(progress) for progress in (1.0, 1.1, 10.0)] == [low] * 3


def test_they_are_found_by_name_with_their_marks():
    assert {schedules.origin(name).distribution for name in ("wsd", "wsd-s")} == {"rewarm-wsd"}
    curve = schedules.find("wsd")(peak_lr=3e-4, min_lr=3e-5)
    assert curve.marks() == {"end of warm-up": 0.01, "start of decay": 0.8}
    sawtooth = schedules.find("wsd-s")(**plain.RATES, returns=["25%", "50%"])
    assert sawtooth.marks() == pytest.approx(
        {
            "end of warm-up": 0.01,
            **{"start of decay 1": 0.225, "end of decay 1": 0.25},
            **{"start of decay 2": 0.475, "end of decay 2": 0.5},
            **{"start of decay 3": 0.95, "end of decay 3": 1.0},
        }
    )


def test_a_recipe_with_it_comes_back_equal(load, tmp_path):
    run = load("peak_lr: 3e-4, min_lr: 3e-5, warmup: 640 tokens, decay: 200 steps, shape: cosine")
    path = tmp_path / "resolved.yaml"
    path.write_text(run.to_yaml())
    again = recipe.load(path)
    assert again == run
    assert again.document()["schedule"] == {
        "name": "wsd",
        "start_lr": 0.0,
        "peak_lr": 3e-4,
        "min_lr": 3e-5,
        "warmup": "640 tokens",
        "decay": "200 steps",
        "shape": "cosine",
    }


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            "peak_lr: 3e-4, min_lr: 3e-5, warmup: 30%, decay: 80%",
            "schedule: warmup takes 30 % of the run and decay 80 %; "
            "together they should take at most 100 %, not 110 %",
        ),
        (
            "peak_lr: 3e-5, min_lr: 3e-4",
            "schedule: min_lr 0.0003 should not be above peak_lr 3e-05",
        ),
        (
            "peak_lr: 3e-4, min_lr: 0, shape: exponential",
            "schedule: an exponential decay never reaches 0; min_lr should be above 0",
        ),
        (
            "peak_lr: 3e-4, min_lr: 0, decay: 0%",
            "schedule.decay: should be greater than 0 (got '0%')",
        ),
        (
            "name: wsd-s, peak_lr: 3e-4, min_lr: 3e-5, returns: [20%], warmup: 15%, decay: 50%",
            "schedule: warmup takes 15 % of the run and decay 10 %; "
            "together they should take at most 20 %, not 25 %",
        ),
        (
            "name: wsd-s, peak_lr: 3e-4, min_lr: 3e-5, returns: [50%, 300 steps]",
            "schedule: each of returns should be behind the one before it, not 50 %, 30 %",
        ),
        (
            "name: wsd-s, peak_lr: 3e-4, min_lr: 3e-5, returns: [50%, 100%]",
            "schedule.returns.1: should be less than 1 (got '100%')",
        ),
        (
            "name: wsd-s, peak_lr: 3e-4, min_lr: 0, returns: [50%], shape: inverse",
            "schedule: an inverse decay never reaches 0; min_lr should be above 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(load, settings, problem):
    with pytest.raises(RecipeError) as caught:
        load(settings)
    (only,) = caught.value.problems
    assert only.endswith(f" {problem}")
