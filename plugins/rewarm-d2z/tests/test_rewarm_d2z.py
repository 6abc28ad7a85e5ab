import plain_d2z as plain
import pytest
from pydantic import ValidationError

from rewarm import schedules
from rewarm.testing import check_schedule, rates


def test_it_keeps_the_contract():
    check_schedule("d2z")
    check_schedule("d2z", peak_lr="5x base", warmup="50 steps")


@pytest.mark.parametrize(("settings", "steps", "expected"), plain.REFERENCE)
def test_reference_values(settings, steps, expected):
    found = rates("d2z", steps, **settings)
    assert {step: found[step - 1] for step in expected} == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(("settings", "steps"), plain.CASES)
def test_every_step_equals_the_plain_implementation(settings, steps):
    expected = plain.by_hand(steps, **settings)
    assert rates("d2z", steps, **settings) == pytest.approx(expected, rel=1e-12, abs=0)


def test_it_is_found_by_name_with_its_mark():
    assert schedules.origin("d2z").distribution == "rewarm-d2z"
    assert schedules.find("d2z")(peak_lr=3e-4).marks() == {"end of warm-up": 0.1}


def test_a_floor_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        schedules.find("d2z")(peak_lr=3e-4, min_lr=3e-5)
