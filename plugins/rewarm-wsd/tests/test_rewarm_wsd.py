"""The curve, against values worked out elsewhere and against a second, plainer implementation."""

import math

import pytest

from rewarm import recipe, schedules
from rewarm.errors import RecipeError

SHAPES = ["1-sqrt", "linear", "cosine", "exponential"]


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
            f"schedule: {{name: wsd, {schedule}}}\n"
        )
        return recipe.load(path)

    return from_yaml


def by_hand(steps, warmup, decay, start, peak, low, shape):
    """The rate of every step, counting in whole steps."""
    rates = []
    for step in range(1, steps + 1):
        into_decay = step - (steps - decay)
        if step < warmup:
            rate = start + (peak - start) * step / warmup
        elif into_decay <= 0:
            rate = peak
        elif shape == "1-sqrt":
            rate = low + (peak - low) * (1 - math.sqrt(into_decay / decay))
        elif shape == "linear":
            rate = (peak * (decay - into_decay) + low * into_decay) / decay
        elif shape == "cosine":
            rate = low + (peak - low) * math.cos(math.pi / 2 * into_decay / decay) ** 2
        else:
            rate = peak * math.exp(math.log(low / peak) * into_decay / decay)
        rates.append(rate)
    return rates


@pytest.mark.parametrize(
    ("shape", "step", "rate"),
    [
        ("1-sqrt", 800, 3e-4),
        ("1-sqrt", 801, 2.8091e-4),
        ("1-sqrt", 850, 1.6500e-4),
        ("1-sqrt", 900, 1.0908e-4),
        ("1-sqrt", 950, 6.6173e-5),
        ("1-sqrt", 1000, 3.0e-5),
        ("linear", 800, 3e-4),
        ("linear", 850, 2.3250e-4),
        ("linear", 900, 1.6500e-4),
        ("linear", 1000, 3.0e-5),
    ],
)
def test_published_values(load, shape, step, rate):
    run = load(f"peak_lr: 3e-4, min_lr: 3e-5, decay: 200 steps, shape: {shape}")
    assert f"{run.lr(step):.4e}" == f"{rate:.4e}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("steps", "warmup", "decay", "start", "low"),
    [
        (1000, 10, 200, 0.0, 3e-5),
        (1000, 0, 1000, 0.0, 3e-5),
        (1000, 900, 100, 3e-4, 3e-4),
        (997, 13, 101, 3e-5, 1e-9),
        (10_000, 70, 700, 0.0, 3e-5),  # in floating point, 1 - 0.07 is just below 0.93
    ],
)
def test_every_step_equals_the_plain_implementation(load, steps, warmup, decay, start, low, shape):
    run = load(
        f"start_lr: {start}, peak_lr: 3e-4, min_lr: {low}, warmup: {warmup} steps, "
        f"decay: {decay} steps, shape: {shape}",
        steps,
    )
    rates = [run.lr(step) for step in range(1, steps + 1)]
    expected = by_hand(steps, warmup, decay, start, 3e-4, low, shape)
    assert rates == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", ["7%", "20%", "100%"])
def test_ends_at_the_minimum_and_stays_there(shape, decay):
    kind = schedules.find("wsd")
    low = 3e-5 if shape == "exponential" else 0.0
    curve = kind(peak_lr=3e-4, min_lr=low, warmup=0, decay=decay, shape=shape)
    assert [curve(progress) for progress in (1.0, 1.1, 10.0)] == [low] * 3


def test_is_found_by_name_with_its_marks():
    plugin = schedules.origin("wsd")
    assert plugin.distribution == "rewarm-wsd"
    curve = schedules.find("wsd")(peak_lr=3e-4, min_lr=3e-5)
    assert curve.marks() == {"end of warm-up": 0.01, "start of decay": 0.8}


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
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(load, settings, problem):
    with pytest.raises(RecipeError) as caught:
        load(settings)
    (only,) = caught.value.problems
    assert only.endswith(f" {problem}")
