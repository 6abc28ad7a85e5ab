"""`every`: the steps after which a run evaluates, by hand."""

import pytest
from pydantic import ValidationError

from rewarm.quantities import Budget
from rewarm.recipe.periodic_work import EverySettings


def every(**settings):
    return EverySettings.model_validate(settings, context={"budget": Budget(1000, 2048)})


def evaluated(settings, steps):
    return [step for steps_of_piece in settings.evaluations(steps) for step in steps_of_piece]


@pytest.mark.parametrize(
    ("evaluate", "steps"),
    [
        (300, [300, 600, 900]),
        (None, []),
        (1000, []),  # the last step, which is always evaluated, is not in the list
        ([{"until": "1%", "every": 5}, {"every": 400}], [5, 10, 400, 800]),
        ([{"until": "10 steps", "every": 4}, {"until": "50%", "every": 250}, {"every": 300}],
         [4, 8, 250, 500, 600, 900]),
        ([{"until": "20_480 tokens", "every": 3}, {"every": 400}], [3, 6, 9, 400, 800]),
        ([{"until": "1%", "every": 50}, {"every": 400}], [400, 800]),
    ],
)  # fmt: skip
def test_steps_that_are_evaluated(evaluate, steps):
    settings = every(evaluate=evaluate)
    assert evaluated(settings, 1000) == steps
    assert settings.model_dump(mode="json")["evaluate"] == evaluate  # as it was written


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (0, "should be above 0, or null"),
        ("often", "should be a count"),
        ([], "the last piece should have none"),
        ([{"until": "1%", "every": 5}], "the last piece should have none"),
        ([{"every": 5}, {"every": 6}], "each `until` should be above the one before"),
        ([{"until": "2%", "every": 5}, {"until": "1%", "every": 5}, {"every": 6}], "each `until`"),
        ([{"until": "100%", "every": 5}, {"every": 6}], "less than 1"),
        ([{"every": 0}], "greater than 0"),
    ],
)
def test_schedules_of_evaluations_that_are_refused(evaluate, message):
    with pytest.raises(ValidationError, match=message):
        every(evaluate=evaluate)
