"""Places, parts and sums of a curve, against values worked out by hand and those of the paper."""

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


def test_places_of_the_paper(paper):
    places = {
        **{"1": 1, "656": 656, "131_296": 131_296, "656 steps": 656, "1 step": 1},
        **{"0.5%": 656, "1%": 1313, "0.01": 1313, "2%": 2626, "100%": 131_296, " 1 % ": 1313},
        **{"50B": 22_114, "240B": 106_148, "240B tokens": 106_148, "2_260_992 tokens": 1},
        **{"296_859_205_632 tokens": 131_296, "1 tokens": 1, "0.0001%": 1},
    }
    assert {written: parse_step(written, paper) for written in places} == places


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
def test_the_papers_rates(paper, step, rate):
    [value] = rates_at_positions({"paper": paper}, str(step))
    assert f"{value.lr:.4e}" == rate
    assert value == ("paper", str(step), step, step * 2_260_992, step / 131_296, paper.lr(step))


def test_values_keep_the_order_of_recipes_and_places(thousand, paper):
    found = rates_at_positions({"b": thousand, "a": paper}, "100%, 1")
    assert [(one.recipe, one.at, one.step) for one in found] == [
        *(("b", "100%", 1000), ("b", "1", 1), ("a", "100%", 131_296), ("a", "1", 1)),
    ]


@pytest.mark.parametrize("written", ["0", "0%", "0 tokens", "0B"])
def test_before_the_first_step(thousand, written):
    with pytest.raises(ValueError, match=f"^{written} is before the first step, which is 1$"):
        parse_step(written, thousand)


@pytest.mark.parametrize("written", ["1001", "1001 steps", "100.1%", "1.5", "101M", "9T tokens"])
def test_behind_the_end(thousand, written):
    said = rf"^{written} is behind the end of the run \(1,000 steps, 100M tokens\); 100% is the"
    with pytest.raises(ValueError, match=said):
        parse_step(written, thousand)
    with pytest.raises(ValueError, match=said):
        parse_step_range(f":{written}", thousand)


@pytest.mark.parametrize("written", ["", "x", "-5", "1e9", "nan", "1.5 steps", "5 %%", "9" * 60])
def test_what_is_no_place(thousand, written):
    with pytest.raises(ValueError, match=re.escape(f"{written!r} should be a step (656), a share")):
        parse_step(written, thousand)


def test_a_place_in_one_recipe_only_names_the_other(thousand, paper):
    with pytest.raises(ValueError, match=r"^short: 1001 is behind the end of the run \(1,000 st"):
        rates_at_positions({"long": paper, "short": thousand}, "1001")
    with pytest.raises(ValueError, match=r"^1001 is behind"):
        rates_at_positions({"short": thousand}, "1001")


def test_a_budget_that_is_not_whole_batches_ends_with_its_last_step():
    run = recipe_for_schedule("{name: constant, lr: 1e-4}", "10B", [])
    assert run.steps == 4768  # and 0.37 of one more, which is left out
    assert parse_step("10B", run) == parse_step("9_999_220_736 tokens", run) == 4768
    with pytest.raises(ValueError, match="behind the end"):
        parse_step("10_000_000_001 tokens", run)


def test_stretches(thousand):
    parts = {
        **{":": (1, 1000), "0:2%": (1, 20), ":2%": (1, 20), "98%:": (980, 1000), "5:5": (5, 5)},
        **{"100:200": (100, 200), "1M:1.5M": (10, 15), "10 steps : 2M tokens": (10, 20)},
    }
    assert {written: parse_step_range(written, thousand) for written in parts} == parts


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("2%", "'2%' should be FROM:TO"),
        ("5%:2%", "step 20, its end, is before step 50, its beginning"),
        ("0:0", "step 0, its end, is before step 1"),
        ("a:", "'a' should be a step"),
        ("1:2:3", "'2:3' should be a step"),
    ],
)
def test_what_is_no_stretch(thousand, written, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        parse_step_range(written, thousand)


def test_a_zoom_holds_every_step_of_its_part_and_its_marks(paper):
    zoomed = schedule_preview.compute_curve("paper", paper, zoom="0:2%")
    assert [point.step for point in zoomed.points] == list(range(1, 2627))
    assert {label: mark.step for label, mark in zoomed.marks.items()} == {"end of warm-up": 1313}
    assert all(point.lr == paper.lr(point.step) for point in zoomed.points)
    assert zoomed.totals.floor.steps == 25_581  # of the whole run
    later = schedule_preview.compute_curve("paper", paper, zoom="80%:")
    assert list(later.marks) == ["floor"]
    assert len(later.points) in (10_000, 10_001)  # of 26,260: thinned, unless more is asked for
    everything = schedule_preview.compute_curve(
        "paper", paper, schedule_preview.MOST_STEPS, "80%:"
    ).points
    assert [point.step for point in everything] == list(range(105_037, 131_297))


def test_marks_come_in_the_order_of_their_steps(paper):
    marks = schedule_preview.compute_curve("paper", paper, 100).marks
    assert [(label, mark.step) for label, mark in marks.items()] == [
        ("end of warm-up", 1313),
        ("floor", 105_715),
    ]


def test_the_area_of_lines_by_hand(thousand):
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
    monkeypatch.setattr(schedule_preview, "MOST_STEPS", 100)
    about = schedule_preview.compute_curve("x", thousand).totals
    assert not about.exact
    assert about.area == pytest.approx(exact.area, rel=0.02)


def test_a_rate_that_is_none_somewhere_between_is_told(thousand, monkeypatch):
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


def test_rates_of_the_base_need_no_recipe_either():
    written = "{name: rewarm, peak_lr: 5x base, min_lr: base}"
    run = recipe_for_schedule(written, "10B", ["model.base_lr=3e-5"])
    assert (run.schedule.peak_lr, run.lr(run.steps)) == (pytest.approx(1.5e-4), 3e-5)
    asked = []
    run = recipe_for_schedule(
        written,
        "10B",
        ["model.base=some/model"],
        base_lr=lambda model: asked.append(model.base) or 1e-4,
    )
    assert (run.lr(run.steps), set(asked)) == (1e-4, {"some/model"})


@pytest.mark.parametrize(
    ("schedule", "tokens", "overrides", "said"),
    [
        ("constant", None, [], "--schedule constant: a length is needed with it, such as --toke"),
        ("constant", "10B", [], "--schedule constant: schedule.lr: required, but missing"),
        ("constant", "ten", ["schedule.lr=1"], "--tokens ten: tokens: should be a count, such as"),
        ("constant", "2M", ["schedule.lr=1"], "--tokens 2M: tokens: a budget of 2,000,000 tokens"),
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
def test_what_a_bare_schedule_lacks_is_said(schedule, tokens, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe_for_schedule(schedule, tokens, overrides)
