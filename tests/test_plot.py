import csv
import re
from xml.etree import ElementTree

import pytest

from rewarm import plot
from rewarm.document import Document
from rewarm.errors import RewarmError
from rewarm.recipe import Recipe, validate


def recipe_of(text: str, *overrides: str) -> Recipe:
    document = Document(text, "r.yaml")
    for override in overrides:
        document.set(override)
    return validate(document)


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
    plot.save([plot.curve("re, warm", rewarm), plot.curve("constant", constant)], path)
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
    plot.save([plot.curve("long", recipe)], path)
    rows = {int(row["step"]): float(row["lr"]) for row in read(path)}
    assert 10_000 <= len(rows) <= 10_002
    assert {1, 131_296} <= rows.keys()
    assert {1313, 105_715} <= rows.keys()  # 1 % and 80.5167 %
    assert max(b - a for a, b in zip(list(rows)[:-1], list(rows)[1:], strict=True)) <= 14
    assert all(lr == recipe.lr(step) for step, lr in rows.items())


def test_exactly_ten_thousand_steps_are_all_kept(thousand_steps):
    recipe = recipe_of(thousand_steps, "tokens=1B")
    assert [p.step for p in plot.curve("x", recipe).points] == list(range(1, 10_001))


def test_marks(rewarm, constant):
    marks = plot.curve("rewarm", rewarm).marks
    assert {label: (mark.step, mark.lr) for label, mark in marks.items()} == {
        "end of warm-up": (100, 3e-4)
    }
    assert plot.curve("constant", constant).marks == {}


def test_png(rewarm, constant, tmp_path):
    path = tmp_path / "curves.png"
    plot.save([plot.curve("rewarm", rewarm), plot.curve("constant", constant)], path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1280, 720)
    assert len(data) > 10_000


def test_svg(rewarm, constant, tmp_path):
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    plot.save([plot.curve("rewarm", rewarm)], one)
    plot.save([plot.curve("rewarm", rewarm), plot.curve("constant", constant)], two)
    lines = [
        len(ElementTree.parse(path).findall(".//{http://www.w3.org/2000/svg}path"))
        for path in (one, two)
    ]
    assert 0 < lines[0] < lines[1]
    assert ElementTree.parse(one).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("color", [True, False])
def test_the_terminals_width_is_kept(rewarm, constant, monkeypatch, columns, color):
    monkeypatch.setenv("COLUMNS", str(columns))
    curves = [plot.curve("rewarm", rewarm, 1000), plot.curve("constant", constant, 1000)]
    drawn = plot.in_terminal(curves, color=color)
    assert ("\x1b[" in drawn) == color
    lines = re.sub(r"\x1b\[[0-9;]*m", "", drawn).split("\n")
    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > columns - 5  # and used
    assert all(character.isprintable() for line in lines for character in line)


def test_a_width_that_is_asked_for_is_kept(rewarm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    drawn = plot.in_terminal([plot.curve("rewarm", rewarm, 1000)], color=False, width=60)
    assert max(map(len, drawn.split("\n"))) == 60


def test_the_terminal_says_where_the_rate_goes(rewarm, constant):
    curves = [plot.curve("rewarm", rewarm, 1000), plot.curve("constant", constant, 1000)]
    drawn = plot.in_terminal(curves, color=False, width=80)
    for said in (
        r"rewarm\n +first +3e-6 +step 1 \(100k tokens\)",
        r"end of warm-up +3e-4 +step 100 \(10M tokens\)",
        r"last +3e-5 +step 1,000 \(100M tokens\)",
        r"constant\n +first +1e-4 +step 1 ",
    ):
        assert re.search(said, drawn)
    signs = re.findall(r"^(\S)\1 (rewarm|constant)$", drawn, re.MULTILINE)
    assert len({sign for sign, _ in signs}) == 2  # told apart without colour


def test_a_rate_of_zero_throughout_can_be_drawn(thousand_steps, tmp_path):
    recipe = recipe_of(thousand_steps, "schedule={name: constant, lr: 0}")
    assert " 0 " in plot.in_terminal([plot.curve("zero", recipe)], color=False, width=80)
    plot.save([plot.curve("zero", recipe)], tmp_path / "zero.png")


def test_a_run_of_one_step_can_be_drawn(thousand_steps, tmp_path):
    recipe = recipe_of(
        thousand_steps, "tokens=100k", "schedule={name: no-warmup, peak_lr: 1e-3, min_lr: 0}"
    )
    curve = plot.curve("one", recipe)
    assert curve.points == [(1, 100_000, 1.0, 0.0)]
    assert "step 1 " in plot.in_terminal([curve], color=False, width=80)
    plot.save([curve], tmp_path / "one.png")


def test_other_endings_are_refused(rewarm, tmp_path):
    with pytest.raises(RewarmError, match=r"should end in \.png, \.svg or \.csv") as raised:
        plot.save([plot.curve("rewarm", rewarm)], tmp_path / "curve.pdf")
    assert raised.value.exit_code == 2
    assert not (tmp_path / "curve.pdf").exists()


@pytest.mark.parametrize("ending", ["png", "csv"])
def test_a_folder_that_is_not_there(rewarm, tmp_path, ending):
    with pytest.raises(RewarmError, match=f"none/curve.{ending}: cannot be written: No such file"):
        plot.save([plot.curve("rewarm", rewarm)], tmp_path / "none" / f"curve.{ending}")


@pytest.fixture
def base(constant, reached):
    """The run stopped at step 600."""
    recipe = constant.to_yaml()
    return reached("pythia-14m", recipe, step=600, tokens=60_000_000, lrs=(1e-4, 1e-4, 1e-4))


def test_the_end_of_the_bases_own_curve_is_drawn_before_it(thousand_steps, base):
    recipe = recipe_of(thousand_steps, f"model={{base: {base}}}")
    tail = plot.curve("rewarm", recipe).tail
    # A quarter of this run's 1,000 steps: the base's steps 351 to 600, counted up to 0.
    assert [point.step for point in tail] == list(range(-249, 1))
    assert {point.lr for point in tail} == {1e-4}
    assert (tail[0].tokens, tail[0].progress) == (-24_900_000, 0.351)
    drawn = plot.in_terminal([plot.curve("rewarm", recipe)], color=False, width=80)
    assert "base to the left of 0" in drawn
    assert max(map(len, drawn.split("\n"))) <= 80


def test_a_base_that_is_drawn_anew_has_no_curve(thousand_steps, base):
    recipe = recipe_of(thousand_steps, f"model={{base: {base}, fresh: true}}")
    assert plot.curve("scratch", recipe).tail == []
