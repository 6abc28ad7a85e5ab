import pytest

from rewarm.errors import RecipeError
from rewarm.recipe.profiled_steps import StepRange, check_profiled_steps, parse_profiled_steps


def test_a_range_has_both_ends():
    assert parse_profiled_steps("10:20") == StepRange(10, 20)
    assert str(StepRange(10, 20)) == "10:20"
    assert parse_profiled_steps("3:3") == StepRange(3, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "should be the first and the last step, such as 10:20"),
        ("a:b", "should be the first and the last step"),
        ("-1:3", "should be the first and the last step"),
        ("0:3", "steps are counted from 1"),
        ("20:10", "the last step is before the first; try 10:20"),
        ("1:101", "101 steps; a trace of more than 100 is too large to open; try 1:10"),
    ],
)
def test_bad_ranges_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_profiled_steps(text)


def test_a_run_has_to_have_the_steps():
    check_profiled_steps(None, 5)
    check_profiled_steps(StepRange(4, 5), 5)
    with pytest.raises(RecipeError, match=r"--profile 4:6: the run has 5 steps; name steps from"):
        check_profiled_steps(StepRange(4, 6), 5)
