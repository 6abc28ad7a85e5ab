"""The arms of a probe that fit in a time, from what steps and evaluations take."""

import re
from itertools import pairwise

import pytest

from rewarm.errors import RecipeError
from rewarm.predict.probe_plan import (
    ProbeCosts,
    plan_probes,
    probe_every,
    short_lengths,
    shortest_arm,
)

COSTS = ProbeCosts(step=1.0, evaluation=2.0, arm=10.0)


def lengths(plan):
    return {arm.name: arm.steps for arm in plan.arms}


def evaluated(every, steps):
    return sorted(set().union(*every.evaluations(steps), {steps}))


def test_with_time_enough_one_arm_is_as_long_as_the_target():
    plan = plan_probes(1200, COSTS, 10, 0.05)
    assert lengths(plan) == {"peak": 400, "quarter": 400, "long": 1200, "replay-5": 1200}
    assert [(arm.peak, arm.replay) for arm in plan.arms] == [(1, 0), (0.25, 0), (1, 0), (1, 0.05)]
    evaluations = sum(1 + len(evaluated(arm.every, arm.steps)) for arm in plan.arms)
    assert plan.seconds == pytest.approx(3200 + 4 * 10 + 2 * evaluations)
    assert plan.evaluating == pytest.approx(2 * evaluations / plan.seconds)


def test_the_arms_are_as_long_as_the_time_allows():
    hours = 2600 / 3600
    plan = plan_probes(1200, COSTS, hours, 0.05)
    arms = lengths(plan)
    assert arms["long"] == arms["replay-5"] == 3 * arms["peak"]
    assert 600 <= arms["long"] < 1200
    assert 2600 - 8 * (COSTS.step + COSTS.evaluation) < plan.seconds <= 2600


def test_the_hours_that_a_refusal_names_are_enough():
    with pytest.raises(RecipeError) as refused:
        plan_probes(12_000, COSTS, 0.5, 0.05)
    message = str(refused.value)
    assert "from which 12,000 steps can be predicted" in message
    assert "peak 2,000, quarter 2,000, long 6,000, replay-5 6,000 steps" in message
    assert "1.00 s a step" in message
    needed = float(re.search(r"take ([0-9.]+) hours", message)[1])
    assert lengths(plan_probes(12_000, COSTS, needed, 0.05))["long"] >= 6000
    with pytest.raises(RecipeError):
        plan_probes(12_000, COSTS, needed - 0.01, 0.05)


@pytest.mark.parametrize(
    ("target", "replay", "expected"),
    [
        (120, 0.05, {"peak": 60, "quarter": 60, "long": 120, "replay-5": 120}),
        (120, 0, {"peak": 60, "quarter": 60, "long": 120}),
        (60, 0.1, {"peak": 60, "quarter": 60, "replay-10": 60}),
        (60, 0, {"peak": 60, "quarter": 60, "half": 60}),
    ],
)
def test_short_targets(target, replay, expected):
    """Three arms at least, of at least 60 steps."""
    assert lengths(plan_probes(target, COSTS, 10, replay)) == expected


@pytest.mark.parametrize("target", [60, 61, 180, 181, 1000, 143_000])
def test_no_arm_is_longer_than_the_target_nor_too_short_for_it(target):
    assert shortest_arm(target).steps == short_lengths(target)[0]
    for short in (short_lengths(target)[0], short_lengths(target)[-1]):
        assert 60 <= short <= target
        assert 2 * min(target, 3 * short) >= target


@pytest.mark.parametrize("steps", [20, 60, 400, 10_000])
def test_evaluations_are_denser_at_first_and_several_near_the_end(steps):
    steps_evaluated = evaluated(probe_every(steps), steps)
    assert len(steps_evaluated) <= 25
    early = [step for step in steps_evaluated if step <= 0.1 * steps]
    late = [step for step in steps_evaluated if step > 0.9 * steps]
    assert len(early) >= min(5, 0.1 * steps)
    assert len(late) >= min(5, 0.1 * steps)
    assert max(b - a for a, b in pairwise(steps_evaluated)) <= 0.1 * steps


def test_slow_evaluations_are_fewer():
    slow = COSTS._replace(evaluation=30.0)
    hours = 4800 / 3600
    counts = [
        len(evaluated(plan.arms[0].every, plan.arms[0].steps))
        for plan in (plan_probes(1200, costs, hours, 0.05) for costs in (COSTS, slow))
    ]
    assert counts[0] > 2 * counts[1] >= 8
    assert plan_probes(1200, slow, hours, 0.05).seconds <= 4800
