import plain_infinite as plain
import pytest
from pydantic import ValidationError

from rewarm import schedules
from rewarm.testing import check_schedule, rates

RATES = {"peak_lr": 3e-4, "constant_lr": 1.65e-4, "min_lr": 3e-5}


def test_it_keeps_the_contract():
    check_schedule("infinite")
    check_schedule("infinite", cooldown="inverse-sqrt", warmup="0%", alpha=3)
    check_schedule("infinite", peak_lr="10x base", warmup="10 steps", annealing="640 tokens")


@pytest.mark.parametrize(("settings", "steps", "expected"), plain.REFERENCE)
def test_published_values(settings, steps, expected):
    found = rates("infinite", steps, **settings)
    assert {step: f"{found[step - 1]:.4e}" for step in expected} == {
        step: f"{rate:.4e}" for step, rate in expected.items()
    }


@pytest.mark.parametrize(("settings", "steps"), plain.CASES)
def test_every_step_equals_the_plain_implementation(settings, steps):
    expected = plain.by_hand(steps, **settings)
    assert rates("infinite", steps, **settings) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_defaults_are_those_of_the_paper_with_its_marks():
    curve = schedules.find("infinite")(**RATES)
    assert curve.marks() == pytest.approx(
        {"end of warm-up": 0.01, "end of cool-down": 0.61, "start of annealing": 0.85}
    )
    assert {curve(place) for place in (0.61, 0.7, 0.85)} == {1.65e-4}
    assert curve(1.0) == curve(7.0) == 3e-5
    assert schedules.origin("infinite").distribution == "rewarm-infinite"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"warmup": "10%", "cooling": "60%", "annealing": "50%"},
            "Value error, warmup takes 10 % of the run, cooling 60 % and annealing 50 %; "
            "together they should take at most 100 %, not 120 %",
        ),
        (
            {"constant_lr": 1e-5},
            "Value error, constant_lr 1e-05 should be between min_lr 3e-05 and peak_lr 0.0003",
        ),
        ({"min_lr": 0.0}, "Input should be greater than 0"),
        ({"cooldown": "linear"}, "Input should be 'cosine' or 'inverse-sqrt'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(settings, problem):
    with pytest.raises(ValidationError) as caught:
        schedules.find("infinite")(**RATES | settings)
    (only,) = caught.value.errors()
    assert only["msg"] == problem


def test_parts_that_fill_the_run_to_the_last_digit_are_taken():
    thirds = {"warmup": "10%", "cooling": "20%", "annealing": "70%"}  # 0.1 + 0.2 is above 0.3
    assert schedules.find("infinite")(**RATES | thirds)(1.0) == 3e-5
