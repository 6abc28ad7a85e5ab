from xml.etree import ElementTree

import pytest

from rewarm.plots import loss_scatter
from rewarm.plots.loss_scatter import ArmLosses, final_losses_svg, loss_trajectories_svg
from rewarm.study.intervals import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def arm(name: str, index: int, x: float, y: float, error: float | None = 0.01) -> ArmLosses:
    final = (Estimate(x, error, 3), Estimate(y, error, 3))
    return ArmLosses(name, index, final, [(3.0, 4.0), (3.2, 3.5), (x, y)])


ARMS = [arm("rewarm", 0, 3.6, 2.5), arm("constant", 1, 3.3, 3.0), arm("beaten", 2, 3.65, 3.1)]


def svg_texts(svg: str) -> list[str]:
    return [
        "".join(text.itertext()).strip() for text in ElementTree.fromstring(svg).iter(f"{SVG}text")
    ]


def final_losses_figure(arms, front):
    """Returns the matplotlib figure that the SVG is made of."""
    figures = []

    def keep_figure(draw, *_, **__):
        figures.append(draw())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scatter, "save_figure", keep_figure)
        final_losses_svg(arms, front, "x", "y")
    return figures[0]


def test_names_are_beside_the_points():
    for svg in (
        final_losses_svg(ARMS, ["constant", "rewarm"], "upstream loss", "downstream loss"),
        loss_trajectories_svg(ARMS, "upstream loss", "downstream loss"),
    ):
        texts = svg_texts(svg)
        assert {"rewarm", "constant", "beaten", "upstream loss", "downstream loss"} <= {*texts}
        assert 'id="legend' not in svg


def test_names_cover_neither_points_nor_each_other():
    arms = [arm(f"arm {i}", i, 3.3 + 0.1 * (i % 3), 2.5 + 0.1 * (i // 3)) for i in range(9)]
    figure = final_losses_figure(arms, ["arm 0"])
    assert not figure.legends
    [axes] = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 9
    for i, box in enumerate(boxes):
        assert box.count_overlaps(boxes[i + 1 :]) == 0
        for x, y in axes.transData.transform([(a.final[0].mean, a.final[1].mean) for a in arms]):
            assert not box.contains(x, y)


def test_names_without_space_are_in_a_legend():
    arms = [arm(f"arm {i}", i, 3.3 + 1e-4 * i, 2.5) for i in range(9)] + ARMS
    figure = final_losses_figure(arms, ["arm 0"])
    [legend] = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == [a.name for a in arms]
    assert not figure.axes[0].texts


def test_only_the_pareto_front_is_filled():
    figure = final_losses_figure(ARMS, ["constant", "rewarm"])
    front, *points = figure.axes[0].lines
    assert front.get_xydata().tolist() == [[3.3, 3.0], [3.6, 2.5]]
    markers = [line for line in points if line.get_marker() == "o"]
    filled = [line.get_markerfacecolor() == line.get_color() for line in markers]
    assert filled == [True, True, False]


def test_error_bars_are_one_standard_error_long():
    figure = final_losses_figure([arm("a", 0, 3.0, 2.0, 0.1), arm("b", 1, 4.0, 3.0, None)], ["a"])
    bars = [
        path.vertices.tolist() for bar in figure.axes[0].collections for path in bar.get_paths()
    ]
    assert bars == [
        [[pytest.approx(2.9), 2.0], [pytest.approx(3.1), 2.0]],
        [[3.0, pytest.approx(1.9)], [3.0, pytest.approx(2.1)]],
    ]


def test_colors_repeat_with_another_marker():
    arms = [arm("first", 0, 3.0, 2.0), arm("eighth", 7, 4.0, 3.0)]
    first, eighth = (line for line in final_losses_figure(arms, []).axes[0].lines)
    assert first.get_color() == eighth.get_color()
    assert first.get_marker() != eighth.get_marker()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$x$", "_a", "日本", "bad\x1b[1m"])
def test_any_name_gives_valid_svg(name):
    arms = [arm(name, 0, 3.0, 2.0), arm("other", 1, 4.0, 3.0)]
    shown = name.replace("\x1b", "\\x1b")
    for svg in (
        final_losses_svg(arms, [name], f"{name} loss", "y"),
        loss_trajectories_svg(arms, f"{name} loss", "y"),
    ):
        assert {shown, f"{shown} loss"} <= {*svg_texts(svg)}
        assert not [*ElementTree.fromstring(svg).iter(f"{SVG}script")]


def test_the_same_losses_give_the_same_bytes():
    def draw():
        return final_losses_svg(ARMS, ["rewarm"], "x", "y") + loss_trajectories_svg(ARMS, "x", "y")

    assert draw() == draw()
