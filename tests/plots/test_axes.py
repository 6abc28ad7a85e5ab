import pytest

from recipes import recipe_of
from rewarm.plots.axes import AxisRange, base_curves, format_rate, round_ticks, token_labels
from rewarm.plots.schedule_preview import compute_curve


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 5000, 10_000], ["0", "5k", "10k"]),
        ([-5e10, 0, 5e10, 1e11], ["-50B", "0", "50B", "100B"]),
        ([1.23456e9, 1.23457e9], ["1.23456B", "1.23457B"]),
        ([0, 1, 2], ["0", "1", "2"]),
    ],
)
def test_token_labels_are_distinct(ticks, labels):
    assert token_labels(ticks) == labels


def test_ticks_are_round():
    assert round_ticks(0, 3e-4, 5) == [0, 1e-4, 2e-4, 3e-4]
    assert round_ticks(-6e4, 2.5e5, 8) == [-5e4, 0, 5e4, 1e5, 1.5e5, 2e5, 2.5e5]


@pytest.mark.parametrize(
    ("lr", "digits", "text"),
    [(0.0, 3, "0"), (3e-4, 3, "3e-4"), (1.23456e-5, 3, "1.23e-5"), (2.5e-3, 7, "2.5e-3")],
)
def test_rates_are_formatted_as_in_recipes(lr, digits, text):
    assert format_rate(lr, digits) == text


def test_the_range_starts_before_the_first_step_or_with_the_base(thousand_steps, base_run):
    recipe = recipe_of(thousand_steps)
    assert AxisRange.covering([compute_curve("x", recipe)]) == (0, 100_000_000, 3e-4)
    assert AxisRange.covering([compute_curve("x", recipe, zoom="50%:")])[0] == 49_900_000
    continued = recipe_of(thousand_steps, f"model={{base: {base_run}}}")
    assert AxisRange.covering([compute_curve("x", continued)])[0] == -24_900_000


def test_base_points_that_all_curves_share_are_drawn_once(
    thousand_steps, base_run, constant_recipe
):
    recipe = recipe_of(thousand_steps, f"model={{base: {base_run}}}")
    curves = [compute_curve(name, recipe, 1000) for name in ("a", "b")]
    bases, shared = base_curves(curves)
    assert ([*bases], shared) == ([0], True)
    without_base = compute_curve("c", constant_recipe, 1000)
    assert base_curves([without_base, curves[0]]) == ({1: curves[0].base_points}, False)
    assert base_curves([without_base]) == ({}, False)
