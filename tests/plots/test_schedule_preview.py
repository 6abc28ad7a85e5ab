"""Positions, parts and sums of a curve against values computed by hand and those of the paper."""

import math
import re

import pytest

from recipes import recipe_of
from rewarm.errors import RecipeError, ScheduleError
from rewarm.plots import schedule_preview
from rewarm.plots.schedule_preview import (
    parse_step,
    parse_step_range,
    rates_at_positions,
    recipe_for_schedule,
)
from rewarm.recipe.recipe import Recipe


@pytest.fixture
def thousand(thousand_steps) -> Recipe:
    """1,000 steps of 100,000 tokens: 100 up to 3e-4, 900 down to 3e-5."""
    return recipe_of(thousand_steps, "schedule.decay=linear")


@pytest.fixture(scope="module")
def paper() -> Recipe:
    """The run of arXiv:2308.04014: 131,296 steps of 2,260,992 tokens."""
    return recipe_for_schedule(
        "{name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, decay: clipped-cosine}",
        "296_859_205_632",
        ["batch.tokens=2_260_992"],
    )


def test_positions_are_rounded_to_the_nearest_step(paper):
    steps = {
        **{"1": 1, "656": 656, "131_296": 131_296, "656 steps": 656, "1 step": 1},
        **{"0.5%": 656, "1%": 1313, "0.01": 1313, "2%": 2626, "100%": 131_296, " 1 % ": 1313},
        **{"50B": 22_114, "240B": 106_148, "240B tokens": 106_148, "2_260_992 tokens": 1},
        **{"296_859_205_632 tokens": 131_296, "1 tokens": 1, "0.0001%": 1},
    }
    assert {position: parse_step(position, paper) for position in steps} == steps


# Rates of the paper's table, which counts from update 0: its n is the step before this n.
@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (1, "2.2849e-07"),
        (656, "1.4989e-04"),
        (13_130, "2.9404e-04"),
        (22_114, "2.8180e-04"),
        (65_648, "1.5471e-04"),
        (98_472, "4.7318e-05"),
        (105_715, "3.0001e-05"),
        (105_716, "3.0000e-05"),
    ],
)
def test_rates_equal_those_of_the_paper(paper, step, rate):
    [value] = rates_at_positions({"paper": paper}, str(step))
    assert f"{value.lr:.4e}" == rate
    assert value == ("paper", str(step), step, step * 2_260_992, step / 131_296, paper.lr(step))


def test_rates_keep_the_order_of_recipes_and_positions(thousand, paper):
    rates = rates_at_positions({"b": thousand, "a": paper}, "100%, 1")
    assert [(rate.recipe, rate.at, rate.step) for rate in rates] == [
        *(("b", "100%", 1000), ("b", "1", 1), ("a", "100%", 131_296), ("a", "1", 1)),
    ]


@pytest.mark.parametrize("position", ["0", "0%", "0 tokens", "0B"])
def test_a_position_before_the_first_step_is_refused(thousand, position):
    with pytest.raises(ValueError, match=f"^{position} is before the first step, which is 1$"):
        parse_step(position, thousand)


@pytest.mark.parametrize("position", ["1001", "1001 steps", "100.1%", "1.5", "101M", "9T tokens"])
def test_a_position_past_the_end_is_refused(thousand, position):
    message = rf"^{position} is past the end of the run \(1,000 steps, 100M tokens\); 100% is the"
    with pytest.raises(ValueError, match=message):
        parse_step(position, thousand)
    with pytest.raises(ValueError, match=message):
        parse_step_range(f":{position}", thousand)


@pytest.mark.parametrize("position", ["", "x", "-5", "1e9", "nan", "1.5 steps", "5 %%", "9" * 60])
def test_anything_else_is_not_a_position(thousand, position):
    with pytest.raises(
        ValueError, match=re.escape(f"{position!r} should be a step (656), a share")
    ):
        parse_step(position, thousand)


def test_the_error_names_the_recipe_whose_run_ends_before_a_position(thousand, paper):
    with pytest.raises(ValueError, match=r"^short: 1001 is past the end of the run \(1,000 st"):
        rates_at_positions({"long": paper, "short": thousand}, "1001")
    with pytest.raises(ValueError, match=r"^1001 is past"):
        rates_at_positions({"short": thousand}, "1001")


def test_a_budget_of_a_fraction_of_a_batch_ends_at_the_last_step():
    run = recipe_for_schedule("{name: constant, lr: 1e-4}", "10B", [])
    assert run.steps == 4768  # and 0.37 of another, which is not trained
    assert parse_step("10B", run) == parse_step("9_999_220_736 tokens", run) == 4768
    with pytest.raises(ValueError, match="past the end"):
        parse_step("10_000_000_001 tokens", run)


def test_parts_of_a_run(thousand):
    parts = {
        **{":": (1, 1000), "0:2%": (1, 20), ":2%": (1, 20), "98%:": (980, 1000), "5:5": (5, 5)},
        **{"100:200": (100, 200), "1M:1.5M": (10, 15), "10 steps : 2M tokens": (10, 20)},
    }
    assert {position: parse_step_range(position, thousand) for position in parts} == parts


@pytest.mark.parametrize(
    ("zoom", "message"),
    [
        ("2%", "'2%' should be FROM:TO"),
        ("5%:2%", "its last step, 20, is before its first step, 50"),
        ("0:0", "its last step, 0, is before its first step, 1"),
        ("a:", "'a' should be a step"),
        ("1:2:3", "'2:3' should be a step"),
    ],
)
def test_anything_else_is_not_a_part(thousand, zoom, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_step_range(zoom, thousand)


def test_a_zoomed_curve_has_every_step_and_the_marks_of_its_part(paper):
    zoomed = schedule_preview.compute_curve("paper", paper, zoom="0:2%")
    assert [point.step for point in zoomed.points] == list(range(1, 2627))
    assert {label: mark.step for label, mark in zoomed.marks.items()} == {"end of warm-up": 1313}
    assert all(point.lr == paper.lr(point.step) for point in zoomed.points)
    assert zoomed.totals.floor.steps == 25_581  # of the whole run
    later = schedule_preview.compute_curve("paper", paper, zoom="80%:")
    assert list(later.marks) == ["floor"]
    assert len(later.points) in (10_000, 10_001)  # of 26,260: thinned by default
    every_step = schedule_preview.compute_curve(
        "paper", paper, schedule_preview.MAX_SUMMED_STEPS, "80%:"
    ).points
    assert [point.step for point in every_step] == list(range(105_037, 131_297))


def test_marks_are_ordered_by_step(paper):
    marks = schedule_preview.compute_curve("paper", paper, 100).marks
    assert [(label, mark.step) for label, mark in marks.items()] == [
        ("end of warm-up", 1313),
        ("floor", 105_716),
    ]


def test_the_area_of_a_linear_schedule_by_hand(thousand):
    totals = schedule_preview.compute_curve("x", thousand, 10).totals
    # Up: 3e-6·(1 + ... + 100); down, steps 101 to 1,000: 3e-4 − 3e-7·(1 + ... + 900).
    assert totals.area == pytest.approx(3e-6 * 5050 + 900 * 3e-4 - 3e-7 * 450 * 901, rel=1e-12)
    assert totals.floor[1:] == (1, 100_000, 0.001)
    assert totals.floor.lr == pytest.approx(3e-5, rel=1e-12)
    assert totals.exact


def test_the_area_of_the_papers_run(paper):
    n = 131_296
    rates = [
        3e-4 * k / (0.01 * n)
        if k < 0.01 * n
        else max(1.5e-4 * (1 + math.cos(math.pi * (k / n - 0.01))), 3e-5)
        for k in range(1, n + 1)
    ]
    totals = schedule_preview.compute_curve("paper", paper, 100).totals
    assert totals.area == pytest.approx(math.fsum(rates), rel=1e-12)
    # The floor is reached at w + arccos(-0.8)/π of the run, and holds from the next step on.
    held = n - math.floor((0.01 + math.acos(-0.8) / math.pi) * n)
    assert totals.floor == (3e-5, held, held * 2_260_992, held / n)
    assert held == 25_581


def test_a_constant_rate_is_at_its_floor_throughout():
    totals = schedule_preview.compute_curve(
        "x", recipe_for_schedule("{name: constant, lr: 3e-5}", "10B", [])
    ).totals
    assert totals == (pytest.approx(4768 * 3e-5), (3e-5, 4768, 4768 * 2_097_152, 1.0), True)


def test_a_run_too_long_to_sum_is_estimated(monkeypatch, thousand):
    exact = schedule_preview.compute_curve("x", thousand).totals
    monkeypatch.setattr(schedule_preview, "MAX_SUMMED_STEPS", 100)
    about = schedule_preview.compute_curve("x", thousand).totals
    assert not about.exact
    assert about.area == pytest.approx(exact.area, rel=0.02)


def test_an_invalid_rate_between_the_points_is_reported(thousand, monkeypatch):
    from rewarm.schedules import Rewarm

    rise = Rewarm.__call__
    monkeypatch.setattr(Rewarm, "__call__", lambda s, p: -1.0 if p == 0.333 else rise(s, p))
    with pytest.raises(ScheduleError, match=r"at progress 0\.333 gave -1\.0; a rate is finite"):
        _ = schedule_preview.compute_curve("x", thousand, 10).totals


def test_a_schedule_needs_no_recipe():
    run = recipe_for_schedule(
        "rewarm", "10B", ["schedule.peak_lr=3e-4", "schedule.min_lr=0", "batch.tokens=1_000_003"]
    )
    assert (run.steps, run.batch.tokens) == (9999, 1_000_003)
    assert run.schedule.peak_lr == 3e-4
    assert recipe_for_schedule("{name: constant, lr: 1}", "3M", []).steps == 1
    assert (
        recipe_for_schedule("constant", None, ["tokens=4M", "schedule.lr=2.5e-4"]).lr(1) == 2.5e-4
    )


def test_a_schedule_relative_to_the_base_needs_no_recipe():
    schedule = "{name: rewarm, peak_lr: 5x base, min_lr: base}"
    run = recipe_for_schedule(schedule, "10B", ["model.base_lr=3e-5"])
    assert (run.schedule.peak_lr, run.lr(run.steps)) == (pytest.approx(1.5e-4), 3e-5)
    asked = []
    run = recipe_for_schedule(
        schedule,
        "10B",
        ["model.base=some/model"],
        base_lr=lambda model: asked.append(model.base) or 1e-4,
    )
    assert (run.lr(run.steps), set(asked)) == (1e-4, {"some/model"})


@pytest.mark.parametrize(
    ("schedule", "tokens", "overrides", "message"),
    [
        ("constant", None, [], "--schedule constant: needs a token budget, such as --tokens 10B"),
        ("constant", "10B", [], "--schedule constant: schedule.lr: required, but missing"),
        ("constant", "ten", ["schedule.lr=1"], "--tokens ten: tokens: should be a count, such as"),
        ("constant", "2M", ["schedule.lr=1"], "--tokens 2M: tokens: should be at least one batch"),
        ("constnt", "10B", [], "--schedule constnt: schedule.name: no schedule named 'constnt'; d"),
        ("{name: x", "10B", [], r"--schedule {name: x.*: not valid YAML"),
        ("", "10B", [], "--schedule : schedule.name: required, but missing"),
        ("constant", "10B", ["schedule.lt=1"], "--set schedule.lt=1: schedule.lt: no such setting"),
        (
            "{name: constant, lr: base}",
            "10B",
            [],
            r"the last rate of the base is not known; give it as model.base_lr",
        ),
    ],
)
def test_problems_of_a_schedule_without_recipe(schedule, tokens, overrides, message):
    with pytest.raises(RecipeError, match=message):
        recipe_for_schedule(schedule, tokens, overrides)


def test_ten_thousand_steps_are_not_thinned(thousand_steps):
    recipe = recipe_of(thousand_steps, "tokens=1B")
    assert [p.step for p in schedule_preview.compute_curve("x", recipe).points] == list(
        range(1, 10_001)
    )


def test_marks_have_steps_and_rates(rewarm_recipe, constant_recipe):
    marks = schedule_preview.compute_curve("rewarm", rewarm_recipe).marks
    assert {label: (mark.step, mark.lr) for label, mark in marks.items()} == {
        "end of warm-up": (100, 3e-4)
    }
    assert schedule_preview.compute_curve("constant", constant_recipe).marks == {}


def test_a_curve_includes_the_end_of_its_base(thousand_steps, base_run):
    recipe = recipe_of(thousand_steps, f"model={{base: {base_run}}}")
    points = schedule_preview.compute_curve("rewarm", recipe).base_points
    # A quarter of this run's 1,000 steps: the base's steps 351 to 600, counted up to 0.
    assert [point.step for point in points] == list(range(-249, 1))
    assert {point.lr for point in points} == {1e-4}
    assert (points[0].tokens, points[0].progress) == (-24_900_000, 0.351)
    assert len(schedule_preview.compute_curve("start", recipe, zoom=":10%").base_points) == 25
    assert schedule_preview.compute_curve("middle", recipe, zoom="10%:20%").base_points == []


def test_a_fresh_model_has_no_base_points(thousand_steps, base_run):
    recipe = recipe_of(thousand_steps, f"model={{base: {base_run}, fresh: true}}")
    assert schedule_preview.compute_curve("scratch", recipe).base_points == []


def test_a_base_with_a_missing_plugin_has_no_base_points(thousand_steps, base_run):
    [base_recipe] = base_run.glob("checkpoints/*/recipe.yaml")
    base_recipe.write_text(base_recipe.read_text().replace("name: constant", "name: not-here"))
    recipe = recipe_of(thousand_steps, f"model={{base: {base_run}}}")
    assert schedule_preview.compute_curve("rewarm", recipe).base_points == []
