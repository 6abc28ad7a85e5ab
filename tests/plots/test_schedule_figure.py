import csv
import json
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from recipes import recipe_of
from rewarm.errors import RewarmError
from rewarm.plots import schedule_figure
from rewarm.plots.axes import base_tails, round_ticks, token_labels
from rewarm.plots.schedule_preview import compute_curve
from rewarm.plots.terminal_plot import draw_schedules
from rewarm.recipe.recipe import Recipe


@pytest.fixture
def rewarm(thousand_steps) -> Recipe:
    return recipe_of(thousand_steps)


@pytest.fixture
def constant(thousand_steps) -> Recipe:
    return recipe_of(thousand_steps, "schedule={name: constant, lr: 1e-4}")


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_step_as_training_takes_it(rewarm, constant, tmp_path):
    path = tmp_path / "curves.csv"
    schedule_figure.save_schedules(
        [compute_curve("re, warm", rewarm), compute_curve("constant", constant)], path
    )
    rows = read(path)
    assert list(rows[0]) == ["recipe", "step", "tokens", "progress", "lr"]
    assert [row["recipe"] for row in rows] == ["re, warm"] * 1000 + ["constant"] * 1000
    for recipe, part in ((rewarm, rows[:1000]), (constant, rows[1000:])):
        assert [int(row["step"]) for row in part] == list(range(1, 1001))
        assert [int(row["tokens"]) for row in part] == list(range(100_000, 100_000_001, 100_000))
        assert [float(row["lr"]) for row in part] == [recipe.lr(step) for step in range(1, 1001)]
    assert (rows[49]["progress"], float(rows[49]["lr"])) == ("0.05", pytest.approx(1.5e-4))


def test_csv_of_a_long_run_is_thinned_but_keeps_its_ends_and_marks(thousand_steps, tmp_path):
    recipe = recipe_of(
        thousand_steps,
        "tokens=13_129_600_000",  # 131,296 steps
        "schedule={name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, decay: clipped-cosine}",
    )
    path = tmp_path / "long.csv"
    schedule_figure.save_schedules([compute_curve("long", recipe)], path)
    rows = {int(row["step"]): float(row["lr"]) for row in read(path)}
    assert 10_000 <= len(rows) <= 10_002
    assert {1, 131_296} <= rows.keys()
    assert {1313, 105_715} <= rows.keys()  # 1 % and 80.5167 %
    assert max(b - a for a, b in zip(list(rows)[:-1], list(rows)[1:], strict=True)) <= 14
    assert all(lr == recipe.lr(step) for step, lr in rows.items())


def test_exactly_ten_thousand_steps_are_all_kept(thousand_steps):
    recipe = recipe_of(thousand_steps, "tokens=1B")
    assert [p.step for p in compute_curve("x", recipe).points] == list(range(1, 10_001))


def test_marks(rewarm, constant):
    marks = compute_curve("rewarm", rewarm).marks
    assert {label: (mark.step, mark.lr) for label, mark in marks.items()} == {
        "end of warm-up": (100, 3e-4)
    }
    assert compute_curve("constant", constant).marks == {}


def test_png(rewarm, constant, tmp_path):
    path = tmp_path / "curves.png"
    schedule_figure.save_schedules(
        [compute_curve("rewarm", rewarm), compute_curve("constant", constant)], path
    )
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1280, 676)
    assert len(data) > 10_000


def test_svg(rewarm, constant, tmp_path):
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    schedule_figure.save_schedules([compute_curve("rewarm", rewarm)], one)
    schedule_figure.save_schedules(
        [compute_curve("rewarm", rewarm), compute_curve("constant", constant)], two
    )
    lines = [
        len(ElementTree.parse(path).findall(".//{http://www.w3.org/2000/svg}path"))
        for path in (one, two)
    ]
    assert 0 < lines[0] < lines[1]
    assert ElementTree.parse(one).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("columns", [60, 80, 131, 200])
@pytest.mark.parametrize("color", [True, False])
def test_the_terminals_width_is_kept(rewarm, constant, monkeypatch, columns, color):
    monkeypatch.setenv("COLUMNS", str(columns))
    curves = [compute_curve("rewarm", rewarm, 1000), compute_curve("constant", constant, 1000)]
    drawn = draw_schedules(curves, color=color)
    assert ("\x1b[" in drawn) == color
    lines = re.sub(r"\x1b\[[0-9;]*m", "", drawn).split("\n")
    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > columns - 5  # and used
    assert all(character.isprintable() for line in lines for character in line)


def test_a_width_that_is_asked_for_is_kept(rewarm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    drawn = draw_schedules([compute_curve("rewarm", rewarm, 1000)], color=False, width=60)
    assert max(map(len, drawn.split("\n"))) == 60


def test_the_terminal_says_where_the_rate_goes(rewarm, constant):
    curves = [compute_curve("rewarm", rewarm, 1000), compute_curve("constant", constant, 1000)]
    drawn = draw_schedules(curves, color=False, width=80)
    for said in (
        r" rate +step +tokens\n── rewarm\n +first +3e-6 +1 +100k\n",
        r"\n +end of warm-up +3e-4 +100 +10M\n +last +3e-5 +1,000 +100M\n",
        r"\n +area +0\.16351  the sum of all steps' rates\n",
        r"rates\n +at the floor +0\.1%  100k tokens at 3e-5\n",
        r"constant\n +first +1e-4 +1 ",
        r"\n +area +0\.1  the sum of all steps' rates\n +at the floor +100%  100M tokens at 1e-4$",
    ):
        assert re.search(said, drawn), said
    signs = re.findall(r"^(\S)\1 (rewarm|constant)$", drawn, re.MULTILINE)
    assert len({sign for sign, _ in signs}) == 2  # told apart without colour


def test_a_rate_of_zero_throughout_can_be_drawn(thousand_steps, tmp_path):
    recipe = recipe_of(thousand_steps, "schedule={name: constant, lr: 0}")
    assert " 0 " in draw_schedules([compute_curve("zero", recipe)], color=False, width=80)
    schedule_figure.save_schedules([compute_curve("zero", recipe)], tmp_path / "zero.png")


def test_a_run_of_one_step_can_be_drawn(thousand_steps, tmp_path):
    recipe = recipe_of(
        thousand_steps, "tokens=100k", "schedule={name: no-warmup, peak_lr: 1e-3, min_lr: 0}"
    )
    one = compute_curve("one", recipe)
    assert one.points == [(1, 100_000, 1.0, 0.0)]
    assert " 1    100k\n" in draw_schedules([one], color=False, width=80)
    schedule_figure.save_schedules([one], tmp_path / "one.png")


def test_other_endings_are_refused(rewarm, tmp_path):
    with pytest.raises(RewarmError, match=r"should end in \.png, \.svg, \.csv or \.json") as raised:
        schedule_figure.save_schedules([compute_curve("rewarm", rewarm)], tmp_path / "curve.pdf")
    assert raised.value.exit_code == 2
    assert not (tmp_path / "curve.pdf").exists()


@pytest.mark.parametrize("ending", ["png", "csv", "json"])
def test_a_folder_that_is_not_there(rewarm, tmp_path, ending):
    with pytest.raises(RewarmError, match=f"none/curve.{ending}: cannot be written: No such file"):
        schedule_figure.save_schedules(
            [compute_curve("rewarm", rewarm)], tmp_path / "none" / f"curve.{ending}"
        )


@pytest.fixture
def base(constant, reached):
    """The run stopped at step 600."""
    recipe = constant.to_yaml()
    return reached("pythia-14m", recipe, step=600, tokens=60_000_000, lrs=(1e-4, 1e-4, 1e-4))


def test_the_end_of_the_bases_own_curve_is_drawn_before_it(thousand_steps, base):
    recipe = recipe_of(thousand_steps, f"model={{base: {base}}}")
    tail = compute_curve("rewarm", recipe).tail
    # A quarter of this run's 1,000 steps: the base's steps 351 to 600, counted up to 0.
    assert [point.step for point in tail] == list(range(-249, 1))
    assert {point.lr for point in tail} == {1e-4}
    assert (tail[0].tokens, tail[0].progress) == (-24_900_000, 0.351)
    assert len(compute_curve("its beginning", recipe, zoom=":10%").tail) == 25
    assert compute_curve("its middle", recipe, zoom="10%:20%").tail == []
    drawn = draw_schedules([compute_curve("rewarm", recipe)], color=False, width=80)
    assert "left of 0: the base" in drawn
    assert max(map(len, drawn.split("\n"))) <= 80


def test_a_base_that_is_drawn_anew_has_no_curve(thousand_steps, base):
    recipe = recipe_of(thousand_steps, f"model={{base: {base}, fresh: true}}")
    assert compute_curve("scratch", recipe).tail == []


def test_a_base_whose_plug_in_is_not_here_has_no_curve(thousand_steps, base):
    [made] = base.glob("checkpoints/*/recipe.yaml")
    made.write_text(made.read_text().replace("name: constant", "name: not-here"))
    recipe = recipe_of(thousand_steps, f"model={{base: {base}}}")
    assert compute_curve("rewarm", recipe).tail == []


def test_json_holds_every_number(rewarm, base, thousand_steps, tmp_path):
    pieces = "[{from: 0, weight: 3}, {from: 50%, weight: 1}]"
    mixed = recipe_of(
        thousand_steps, f"model={{base: {base}}}", f"data.train.downstream.weight={pieces}"
    )
    path = tmp_path / "curves.json"
    schedule_figure.save_schedules(
        [compute_curve("plain", rewarm), compute_curve("mixed", mixed, zoom=":1%")], path
    )
    plain, other = json.loads(path.read_text())
    assert [point["lr"] for point in plain["points"]] == [rewarm.lr(k) for k in range(1, 1001)]
    assert plain["marks"]["end of warm-up"]["step"] == 100
    assert plain["floor"] == {"lr": 3e-5, "steps": 1, "tokens": 100_000, "share": 0.001}
    # Up: 3e-6·5050; down: the mean of a cosine from peak to end over 900 steps, less half of both.
    assert plain["area"] == pytest.approx(0.01515 + 900 * 1.65e-4 - (3e-4 - 3e-5) / 2, rel=1e-9)
    assert (plain["area"], plain["exact"]) == (other["area"], True)
    assert [point["step"] for point in other["points"]] == list(range(1, 11))
    assert [point["step"] for point in other["base"]] == [-1, 0]  # a quarter of what is drawn
    assert other["shares"]["upstream"] == [
        {"tokens": 0, "share": pytest.approx(0.25 / 3.25)},
        {"tokens": 50_000_000, "share": 0.2},
    ]


def cells(drawn: str, line: int) -> str:
    """What stands behind the axis in a line of a plot."""
    return re.split("[│┤]", drawn.split("\n")[line], maxsplit=1)[1]


def test_a_curve_is_drawn_where_its_rates_are(thousand_steps):
    straight = recipe_of(
        thousand_steps, "schedule={name: no-warmup, peak_lr: 4e-4, min_lr: 0, decay: linear}"
    )
    drawn = draw_schedules([compute_curve("x", straight, 1000)], color=False, width=80)
    lines = drawn.split("\n")
    labels = [line.split("┤")[0].strip() for line in lines if "┤" in line]
    assert labels == ["4e-4", "3e-4", "2e-4", "1e-4", "0"]
    rows = [i for i, line in enumerate(lines) if "┤" in line]
    assert {b - a for a, b in pairwise(rows)} == {4}  # evenly
    centres = []
    for row in rows:
        filled = [i for i, character in enumerate(cells(drawn, row)) if character != " "]
        centres.append(sum(filled) / len(filled))
    assert centres == [pytest.approx(i * 73 / 4, abs=3) for i in range(5)]  # 80 − 6 columns


def test_curves_on_each_other_all_show(constant):
    same = [compute_curve(name, constant, 1000) for name in ("a", "b", "c")]
    plain = draw_schedules(same, color=False, width=80)
    row = max(cells(plain, line) for line in range(1, 15))
    assert all(row.count(symbol) >= 20 for symbol in "+x")
    assert sum("\u2800" < character < "\u28ff" for character in row) >= 20
    inked = draw_schedules(same, color=True, width=80)
    assert {code: inked.count(f"[38;5;{code}m") >= 20 for code in (33, 166, 29)} == {
        **{33: True, 166: True, 29: True}
    }


@pytest.mark.parametrize("columns", range(60, 201, 7))
def test_labels_of_ticks_stand_apart_and_under_them(thousand_steps, columns):
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


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 5000, 10_000], ["0", "5k", "10k"]),
        ([-5e10, 0, 5e10, 1e11], ["-50B", "0", "50B", "100B"]),
        ([1.23456e9, 1.23457e9], ["1.23456B", "1.23457B"]),
        ([0, 1, 2], ["0", "1", "2"]),
    ],
)
def test_labels_tell_ticks_apart(ticks, labels):
    assert token_labels(ticks) == labels


def test_ticks_are_round():
    assert round_ticks(0, 3e-4, 5) == [0, 1e-4, 2e-4, 3e-4]
    assert round_ticks(-6e4, 2.5e5, 8) == [-5e4, 0, 5e4, 1e5, 1.5e5, 2e5, 2.5e5]


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_long_names_are_told_whole(thousand_steps, columns, monkeypatch):
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


def test_a_shared_tail_is_drawn_once(thousand_steps, base, constant):
    recipe = recipe_of(thousand_steps, f"model={{base: {base}}}")
    both = [compute_curve(name, recipe, 1000) for name in ("a", "b")]
    tails, shared = base_tails(both)
    assert ([*tails], shared) == ([0], True)
    other = compute_curve("c", constant, 1000)
    assert base_tails([other, both[0]]) == ({1: both[0].tail}, False)
    assert base_tails([other]) == ({}, False)


def test_the_legend_is_below_the_curves(rewarm, constant, base, thousand_steps):
    mixed = recipe_of(
        thousand_steps,
        f"model={{base: {base}}}",
        "data.train.downstream.weight=[{from: 0, weight: 3}, {from: 50%, weight: 1}]",
    )
    recipes = {"_a": rewarm, "$b$": constant, "c": mixed, "long-" * 30: rewarm, "e": constant}
    figure = schedule_figure._picture([compute_curve(name, run) for name, run in recipes.items()])
    figure.draw_without_rendering()
    [legend] = figure.legends
    texts = [text.get_text().strip() for text in legend.get_texts()]
    assert [text.replace("\n", "") for text in texts[:5]] == [*recipes]
    assert texts[5:] == ["end of warm-up", "share of downstream", "share of upstream"]
    frame = legend.get_window_extent()
    below = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert frame.y1 <= below + 1
    assert frame.x0 >= 0
    assert frame.x1 <= figure.bbox.x1


def test_shares_are_drawn_as_far_as_the_rates(thousand_steps):
    mixed = recipe_of(
        thousand_steps, "data.train.upstream.weight=[{from: 0, weight: 0}, {from: 50%, weight: 1}]"
    )
    for zoom, places in ((":", [0, 5e7, 1e8]), (":60%", [0, 5e7, 6e7]), (":30%", [0, 3e7])):
        _, panel = schedule_figure._picture([compute_curve("x", mixed, zoom=zoom)]).axes
        assert [list(line.get_xdata()) for line in panel.lines] == [places, places]


def test_curves_can_be_told_apart_without_colours(rewarm):
    figure = schedule_figure._picture([compute_curve(str(i), rewarm, 100) for i in range(5)])
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 10]
    assert len({str(line._dash_pattern) for line in drawn}) == len(drawn) == 5
    assert len({line.get_color() for line in drawn}) == 5


def test_the_same_curves_are_the_same_svg(rewarm, tmp_path):
    for name in ("a", "b"):
        schedule_figure.save_schedules([compute_curve("rewarm", rewarm)], tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_marks_that_are_counted_share_a_sign(plugins, thousand_steps):
    cycle = "{name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, decay: clipped-cosine}"
    cyclic = recipe_of(
        thousand_steps,
        f"schedule={{name: sequence, parts: [{{length: 100%, repeat: 9, schedule: {cycle}}}]}}",
    )
    decays = recipe_of(
        thousand_steps, "schedule={name: wsd-s, peak_lr: 3e-4, returns: [25%, 50%], decay: 10%}"
    )
    figure = schedule_figure._picture(
        [compute_curve("cyclic", cyclic), compute_curve("decays", decays)]
    )
    said = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert sorted(said) == [
        *("cyclic", "decays", "end of decay", "end of part", "end of warm-up"),
        *("floor", "start of decay"),
    ]
