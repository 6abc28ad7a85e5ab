import re
from itertools import pairwise

import pytest

from recipes import recipe_of
from rewarm.plots.schedule_preview import compute_curve
from rewarm.plots.terminal_plot import draw_schedules


@pytest.mark.parametrize("columns", [60, 80, 131, 200])
@pytest.mark.parametrize("color", [True, False])
def test_the_plot_is_as_wide_as_the_terminal(
    rewarm_recipe, constant_recipe, monkeypatch, columns, color
):
    monkeypatch.setenv("COLUMNS", str(columns))
    curves = [
        compute_curve("rewarm", rewarm_recipe, 1000),
        compute_curve("constant", constant_recipe, 1000),
    ]
    drawn = draw_schedules(curves, color=color)
    assert ("\x1b[" in drawn) == color
    lines = re.sub(r"\x1b\[[0-9;]*m", "", drawn).split("\n")
    assert columns - 5 < max(map(len, lines)) <= columns
    assert all(character.isprintable() for line in lines for character in line)


def test_a_given_width_overrides_the_terminal(rewarm_recipe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    drawn = draw_schedules([compute_curve("rewarm", rewarm_recipe, 1000)], color=False, width=60)
    assert max(map(len, drawn.split("\n"))) == 60


def test_the_table_lists_rates_at_marks_and_sums(rewarm_recipe, constant_recipe):
    curves = [
        compute_curve("rewarm", rewarm_recipe, 1000),
        compute_curve("constant", constant_recipe, 1000),
    ]
    drawn = draw_schedules(curves, color=False, width=80)
    for pattern in (
        r" rate +step +tokens\n── rewarm\n +first +3e-6 +1 +100k\n",
        r"\n +end of warm-up +3e-4 +100 +10M\n +last +3e-5 +1,000 +100M\n",
        r"\n +area +0\.16351  the sum of all steps' rates\n",
        r"rates\n +at the floor +0\.1%  100k tokens at 3e-5\n",
        r"constant\n +first +1e-4 +1 ",
        r"\n +area +0\.1  the sum of all steps' rates\n +at the floor +100%  100M tokens at 1e-4$",
    ):
        assert re.search(pattern, drawn), pattern
    symbols = re.findall(r"^(\S)\1 (rewarm|constant)$", drawn, re.MULTILINE)
    assert len({symbol for symbol, _ in symbols}) == 2  # distinct without color


def test_the_table_lists_changing_corpus_shares(thousand_steps):
    mixed = recipe_of(
        thousand_steps, "data.train.upstream.weight=[{from: 0, weight: 0}, {from: 50%, weight: 1}]"
    )
    lines = draw_schedules([compute_curve("x", mixed)], color=False, width=80).split("\n")
    assert lines[-2:] == [
        "   downstream: 100.0% of every batch, 42.9% from 50M tokens",
        "   upstream: 0.0% of every batch, 57.1% from 50M tokens",
    ]


def test_a_run_of_one_step_can_be_drawn(thousand_steps):
    recipe = recipe_of(
        thousand_steps, "tokens=100k", "schedule={name: no-warmup, peak_lr: 1e-3, min_lr: 1e-4}"
    )
    curve = compute_curve("one step", recipe)
    assert " 1    100k\n" in draw_schedules([curve], color=False, width=80)


def test_the_end_of_the_base_is_drawn_left_of_the_run(thousand_steps, base_run):
    recipe = recipe_of(thousand_steps, f"model={{base: {base_run}}}")
    drawn = draw_schedules([compute_curve("rewarm", recipe)], color=False, width=80)
    assert "left of 0: the base" in drawn
    assert max(map(len, drawn.split("\n"))) <= 80


def plot_cells(drawn: str, line: int) -> str:
    """Returns the part of a line of a plot that is right of the axis."""
    return re.split("[│┤]", drawn.split("\n")[line], maxsplit=1)[1]


def test_a_curve_passes_through_its_rates(thousand_steps):
    straight = recipe_of(
        thousand_steps, "schedule={name: no-warmup, peak_lr: 4e-4, min_lr: 0, decay: linear}"
    )
    drawn = draw_schedules([compute_curve("x", straight, 1000)], color=False, width=80)
    lines = drawn.split("\n")
    labels = [line.split("┤")[0].strip() for line in lines if "┤" in line]
    assert labels == ["4e-4", "3e-4", "2e-4", "1e-4", "0"]
    rows = [i for i, line in enumerate(lines) if "┤" in line]
    assert {b - a for a, b in pairwise(rows)} == {4}  # evenly spaced
    centers = []
    for row in rows:
        filled = [i for i, cell in enumerate(plot_cells(drawn, row)) if cell != " "]
        centers.append(sum(filled) / len(filled))
    assert centers == [pytest.approx(i * 73 / 4, abs=3) for i in range(5)]  # 80 − 6 columns


def test_curves_that_coincide_are_all_visible(constant_recipe):
    curves = [compute_curve(name, constant_recipe, 1000) for name in ("a", "b", "c")]
    plain = draw_schedules(curves, color=False, width=80)
    row = max(plot_cells(plain, line) for line in range(1, 15))
    assert all(row.count(symbol) >= 20 for symbol in "+x")
    assert sum("\u2800" < character < "\u28ff" for character in row) >= 20
    colored = draw_schedules(curves, color=True, width=80)
    assert all(colored.count(f"[38;5;{code}m") >= 20 for code in (33, 166, 29))


@pytest.mark.parametrize("columns", range(60, 201, 7))
def test_tick_labels_are_spaced_and_below_their_ticks(thousand_steps, columns):
    for tokens, zoom in (("100M", ":"), ("3B", "0:2%"), ("1.7B", "33%:33.1%")):
        recipe = recipe_of(thousand_steps, f"tokens={tokens}")
        drawn = draw_schedules(
            [compute_curve("x", recipe, 1000, zoom)], color=False, width=columns
        ).split("\n")
        rule = next(i for i, line in enumerate(drawn) if "└" in line)
        ticks = [match.start() for match in re.finditer("┬", drawn[rule])]
        labels = [*re.finditer(r"\S+", drawn[rule + 1])]
        assert len(ticks) == len(labels) >= 3
        for tick, label in zip(ticks, labels, strict=True):
            assert label.start() <= tick <= label.end()
        assert len({label[0] for label in labels}) == len(labels)
        assert all(b.start() - a.end() >= 3 for a, b in pairwise(labels))


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_long_names_are_wrapped_and_complete(thousand_steps, columns, monkeypatch):
    recipe = recipe_of(thousand_steps)
    label = "where the second of the two long plateaus of this run begins"
    monkeypatch.setattr(type(recipe.schedule), "marks", lambda _: {label: 0.5, "bad\x1b[1m": 0.6})
    name = "runs/" + "a-long-name-" * 9 + "end"
    drawn = draw_schedules([compute_curve(name, recipe, 100)], color=False, width=columns)
    lines = drawn.split("\n")
    assert max(map(len, lines)) <= columns
    assert "\x1b" not in drawn
    joined = re.sub(r"\s+", "", drawn.partition("tokens\n── ")[2])
    assert joined.startswith(name)
    assert label.replace(" ", "") in joined
