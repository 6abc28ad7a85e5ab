import csv
import json
from xml.etree import ElementTree

import pytest

from recipes import recipe_of
from rewarm.errors import RewarmError
from rewarm.plots import schedule_figure
from rewarm.plots.schedule_preview import compute_curve


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_the_rate_of_every_step(rewarm_recipe, constant_recipe, tmp_path):
    path = tmp_path / "curves.csv"
    schedule_figure.save_schedules(
        [compute_curve("re, warm", rewarm_recipe), compute_curve("constant", constant_recipe)], path
    )
    rows = read_csv(path)
    assert list(rows[0]) == ["recipe", "step", "tokens", "progress", "lr"]
    assert [row["recipe"] for row in rows] == ["re, warm"] * 1000 + ["constant"] * 1000
    for recipe, part in ((rewarm_recipe, rows[:1000]), (constant_recipe, rows[1000:])):
        assert [int(row["step"]) for row in part] == list(range(1, 1001))
        assert [int(row["tokens"]) for row in part] == list(range(100_000, 100_000_001, 100_000))
        assert [float(row["lr"]) for row in part] == [recipe.lr(step) for step in range(1, 1001)]
    assert (rows[49]["progress"], float(rows[49]["lr"])) == ("0.05", pytest.approx(1.5e-4))


def test_csv_of_a_long_run_is_thinned_but_keeps_ends_and_marks(thousand_steps, tmp_path):
    recipe = recipe_of(
        thousand_steps,
        "tokens=13_129_600_000",  # 131,296 steps
        "schedule={name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, decay: clipped-cosine}",
    )
    path = tmp_path / "long.csv"
    schedule_figure.save_schedules([compute_curve("long", recipe)], path)
    rows = {int(row["step"]): float(row["lr"]) for row in read_csv(path)}
    assert 10_000 <= len(rows) <= 10_002
    assert {1, 131_296} <= rows.keys()
    assert {1313, 105_716} <= rows.keys()  # 1 % and 80.5167 %
    assert max(b - a for a, b in zip(list(rows)[:-1], list(rows)[1:], strict=True)) <= 14
    assert all(lr == recipe.lr(step) for step, lr in rows.items())


def test_png_has_the_size_of_the_figure(rewarm_recipe, constant_recipe, tmp_path):
    path = tmp_path / "curves.png"
    schedule_figure.save_schedules(
        [compute_curve("rewarm", rewarm_recipe), compute_curve("constant", constant_recipe)], path
    )
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1280, 676)
    assert len(data) > 10_000


def test_svg_has_a_line_for_each_curve(rewarm_recipe, constant_recipe, tmp_path):
    path_one, path_two = tmp_path / "one.svg", tmp_path / "two.svg"
    schedule_figure.save_schedules([compute_curve("rewarm", rewarm_recipe)], path_one)
    schedule_figure.save_schedules(
        [compute_curve("rewarm", rewarm_recipe), compute_curve("constant", constant_recipe)],
        path_two,
    )
    line_counts = [
        len(ElementTree.parse(path).findall(".//{http://www.w3.org/2000/svg}path"))
        for path in (path_one, path_two)
    ]
    assert 0 < line_counts[0] < line_counts[1]
    assert ElementTree.parse(path_one).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_run_of_one_step_can_be_drawn(thousand_steps, tmp_path):
    recipe = recipe_of(
        thousand_steps, "tokens=100k", "schedule={name: no-warmup, peak_lr: 1e-3, min_lr: 1e-4}"
    )
    curve = compute_curve("one step", recipe)
    assert curve.points == [(1, 100_000, 1.0, 1e-4)]
    schedule_figure.save_schedules([curve], tmp_path / "one.png")


def test_other_suffixes_are_refused(rewarm_recipe, tmp_path):
    with pytest.raises(RewarmError, match=r"should end in \.png, .* \.csv or \.json") as raised:
        schedule_figure.save_schedules(
            [compute_curve("rewarm", rewarm_recipe)], tmp_path / "curve.jpg"
        )
    assert raised.value.exit_code == 2
    assert not (tmp_path / "curve.jpg").exists()


@pytest.mark.parametrize("suffix", ["png", "pdf", "csv", "json"])
def test_the_folder_of_the_file_is_created(rewarm_recipe, tmp_path, suffix):
    curves = [compute_curve("rewarm", rewarm_recipe)]
    schedule_figure.save_schedules(curves, tmp_path / "a" / "b" / f"curve.{suffix}")
    assert (tmp_path / "a" / "b" / f"curve.{suffix}").stat().st_size > 100
    (tmp_path / "file").touch()
    with pytest.raises(RewarmError, match=f"file/curve.{suffix}: cannot be written: "):
        schedule_figure.save_schedules(curves, tmp_path / "file" / f"curve.{suffix}")


def test_json_has_points_marks_sums_base_and_shares(
    rewarm_recipe, base_run, thousand_steps, tmp_path
):
    pieces = "[{from: 0, weight: 3}, {from: 50%, weight: 1}]"
    mixed = recipe_of(
        thousand_steps, f"model={{base: {base_run}}}", f"data.train.downstream.weight={pieces}"
    )
    path = tmp_path / "curves.json"
    schedule_figure.save_schedules(
        [compute_curve("plain", rewarm_recipe), compute_curve("mixed", mixed, zoom=":1%")], path
    )
    plain, zoomed = json.loads(path.read_text())
    assert [point["lr"] for point in plain["points"]] == [
        rewarm_recipe.lr(k) for k in range(1, 1001)
    ]
    assert plain["marks"]["end of warm-up"]["step"] == 100
    assert plain["floor"] == {"lr": 3e-5, "steps": 1, "tokens": 100_000, "share": 0.001}
    # Up: 3e-6·5050; down: the mean of a cosine from peak to end over 900 steps, less half of both.
    assert plain["area"] == pytest.approx(0.01515 + 900 * 1.65e-4 - (3e-4 - 3e-5) / 2, rel=1e-9)
    assert (plain["area"], plain["exact"]) == (zoomed["area"], True)
    assert [point["step"] for point in zoomed["points"]] == list(range(1, 11))
    assert [point["step"] for point in zoomed["base"]] == [-1, 0]  # a quarter of the length drawn
    assert zoomed["shares"]["upstream"] == [
        {"tokens": 0, "share": pytest.approx(0.25 / 3.25)},
        {"tokens": 50_000_000, "share": 0.2},
    ]


def test_the_legend_is_below_the_curves(rewarm_recipe, constant_recipe, base_run, thousand_steps):
    mixed = recipe_of(
        thousand_steps,
        f"model={{base: {base_run}}}",
        "data.train.downstream.weight=[{from: 0, weight: 3}, {from: 50%, weight: 1}]",
    )
    recipes = {
        **{"_a": rewarm_recipe, "$b$": constant_recipe, "c": mixed},
        **{"long-" * 30: rewarm_recipe, "e": constant_recipe},
    }
    figure = schedule_figure._schedule_figure(
        [compute_curve(name, recipe) for name, recipe in recipes.items()]
    )
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


def test_shares_are_drawn_up_to_the_last_rate(thousand_steps):
    mixed = recipe_of(
        thousand_steps, "data.train.upstream.weight=[{from: 0, weight: 0}, {from: 50%, weight: 1}]"
    )
    for zoom, tokens in ((":", [0, 5e7, 1e8]), (":60%", [0, 5e7, 6e7]), (":30%", [0, 3e7])):
        _, panel = schedule_figure._schedule_figure([compute_curve("x", mixed, zoom=zoom)]).axes
        assert [list(line.get_xdata()) for line in panel.lines] == [tokens, tokens]


def test_five_curves_have_distinct_dashes_and_colors(rewarm_recipe):
    figure = schedule_figure._schedule_figure(
        [compute_curve(str(i), rewarm_recipe, 100) for i in range(5)]
    )
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 10]
    assert len({str(line._dash_pattern) for line in drawn}) == len(drawn) == 5
    assert len({line.get_color() for line in drawn}) == 5


def test_the_same_curves_give_the_same_svg(rewarm_recipe, tmp_path):
    for name in ("a", "b"):
        schedule_figure.save_schedules(
            [compute_curve("rewarm", rewarm_recipe)], tmp_path / f"{name}.svg"
        )
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_numbered_marks_share_a_marker(plugins, thousand_steps):
    cycle = "{name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, decay: clipped-cosine}"
    cyclic = recipe_of(
        thousand_steps,
        f"schedule={{name: sequence, parts: [{{length: 100%, repeat: 9, schedule: {cycle}}}]}}",
    )
    decays = recipe_of(
        thousand_steps, "schedule={name: wsd-s, peak_lr: 3e-4, returns: [25%, 50%], decay: 10%}"
    )
    figure = schedule_figure._schedule_figure(
        [compute_curve("cyclic", cyclic), compute_curve("decays", decays)]
    )
    texts = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert sorted(texts) == [
        *("cyclic", "decays", "end of decay", "end of part", "end of warm-up"),
        *("floor", "start of decay"),
    ]
