"""Losses on two validation sets against each other, as SVG: final losses and trajectories."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import StringIO
from typing import Any, NamedTuple

from rewarm.errors import printable
from rewarm.plots.figure_style import (
    COLORS,
    LineStyle,
    add_legend,
    line_style,
    save_figure,
    style_axes,
)
from rewarm.study.intervals import Estimate

_WIDTH, _HEIGHT = 5.0, 3.6  # inches
_LEGEND_LINE_LENGTH = 64  # characters that fit the width
_FONT_SIZE, _MARKER_SIZE = 9, 7  # points
_MARKERS = "osD^v"  # change when colors repeat


class ArmLosses(NamedTuple):
    """The losses of an arm on two validation sets, x and y."""

    name: str
    color_index: int
    """The arm's index among all arms of the report, which determines its color."""
    final: tuple[Estimate, Estimate]
    """The final losses, averaged over seeds."""
    trajectory: list[tuple[float, float]]
    """The losses of the arm's first seed, from the first evaluation to the last."""


class _Label(NamedTuple):
    """An arm's name, the point that it labels, and the arm's style in a legend."""

    name: str
    point: tuple[float, float]
    style: LineStyle


def final_losses_svg(
    arms: list[ArmLosses], pareto_front: list[str], x_label: str, y_label: str
) -> str:
    """Returns the final losses with their standard errors, and the Pareto front, as SVG.

    Args:
        arms: the arms to draw.
        pareto_front: the names of the arms on the front, by ascending x loss.
        x_label: the label of the x axis.
        y_label: the label of the y axis.
    """

    def draw(axes: Any) -> list[_Label]:
        means = {arm.name: (arm.final[0].mean, arm.final[1].mean) for arm in arms}
        front = [means[name] for name in pareto_front]
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color="0.45", lw=1, ls=":", drawstyle="steps-post")
        labels = []
        for arm in arms:
            x, y = arm.final
            style = _marker_style(arm, filled=arm.name in pareto_front)
            axes.errorbar(
                x.mean, y.mean, xerr=x.standard_error, yerr=y.standard_error, elinewidth=1, **style
            )
            labels.append(_Label(arm.name, means[arm.name], style))
        return labels

    return _scatter_svg(draw, x_label, y_label)


def _marker_style(arm: ArmLosses, *, filled: bool) -> LineStyle:
    repeat, color_index = divmod(arm.color_index, len(COLORS))
    color = COLORS[color_index]
    return {
        "color": color,
        "marker": _MARKERS[repeat % len(_MARKERS)],
        "ls": "",
        "ms": _MARKER_SIZE,
        "mfc": color if filled else "white",
        "mew": 1.5,
    }


def loss_trajectories_svg(arms: list[ArmLosses], x_label: str, y_label: str) -> str:
    """Returns the losses of each arm's first seed as a line that ends in a dot, as SVG."""

    def draw(axes: Any) -> list[_Label]:
        labels = []
        for arm in arms:
            if arm.trajectory:
                style = line_style(arm.color_index)
                axes.plot(*zip(*arm.trajectory, strict=True), **style)
                axes.plot(*arm.trajectory[-1], "o", color=style["color"], ms=_MARKER_SIZE - 1)
                labels.append(_Label(arm.name, arm.trajectory[-1], style))
        return labels

    return _scatter_svg(draw, x_label, y_label)


def _scatter_svg(draw: Callable[[Any], list[_Label]], x_label: str, y_label: str) -> str:
    """Returns as SVG what `draw` draws into the axes, with the labels that it returns."""
    svg = StringIO()
    # Text stays text: a browser may have glyphs that matplotlib's font lacks.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        save_figure(
            lambda: _scatter_figure(draw, x_label, y_label),
            svg,
            file_format="svg",
            text_as_paths=False,
        )
    return svg.getvalue()


def _scatter_figure(draw: Callable[[Any], list[_Label]], x_label: str, y_label: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    labels = draw(axes)
    style_axes(axes)
    axes.margins(0.08)
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=_FONT_SIZE)
    axes.set_xlabel(" " + printable(x_label), fontsize=_FONT_SIZE)
    axes.set_ylabel(" " + printable(y_label), fontsize=_FONT_SIZE)
    if not _add_labels_beside_points(figure, axes, labels):
        legend_lines = add_legend(
            figure, [(label.name, label.style) for label in labels], _LEGEND_LINE_LENGTH
        )
        figure.set_size_inches(_WIDTH, _HEIGHT + 0.18 * legend_lines)
    return figure


def _add_labels_beside_points(figure: Any, axes: Any, labels: list[_Label]) -> bool:
    """Writes each name beside its point; returns False, and writes none, if they do not all fit.

    A name never covers a point or another name, and covers lines only if it cannot avoid them.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # lays out the axes, which gives the points their positions
    frame = axes.get_window_extent()
    radius = figure.dpi * _MARKER_SIZE / 72 / 2
    error_bars = [path for bars in axes.collections for path in bars.get_paths()]
    lines = [line.get_path() for line in axes.lines] + error_bars
    lines = [axes.transData.transform_path(path) for path in lines]
    occupied = [
        Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
        for x, y in axes.transData.transform([label.point for label in labels])
    ]
    annotations = []
    for label in labels:
        annotation = axes.annotate(
            printable(label.name),
            label.point,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_FONT_SIZE,
            bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 1},
        )
        annotations.append(annotation)
        lines_covered: dict[int, int] = {}
        for i, position in enumerate(_LABEL_POSITIONS):
            box = _move_label(annotation, position)
            is_inside = all(frame.contains(x, y) for x, y in box.corners())
            if is_inside and not box.count_overlaps(occupied):
                lines_covered[i] = sum(line.intersects_bbox(box, filled=False) for line in lines)
        if not lines_covered:
            for earlier in annotations:
                earlier.remove()
            return False
        best = min(lines_covered, key=lines_covered.__getitem__)
        occupied.append(_move_label(annotation, _LABEL_POSITIONS[best]))
    return True


def _move_label(annotation: Any, position: tuple[tuple[int, int], str, str]) -> Any:
    """Moves a label relative to its point, and returns its box in pixels."""
    annotation.xyann, horizontal, vertical = position
    annotation.set(ha=horizontal, va=vertical)
    return annotation.get_window_extent()


_LABEL_POSITIONS = [
    *(((7, 0), "left", "center"), ((-7, 0), "right", "center")),
    *(((0, 6), "center", "bottom"), ((0, -6), "center", "top")),
    *(((5, 4), "left", "bottom"), ((5, -4), "left", "top")),
    *(((-5, 4), "right", "bottom"), ((-5, -4), "right", "top")),
    *(((0, 18), "center", "bottom"), ((0, -18), "center", "top")),
]
"""Offsets in points and alignments of a label relative to its point, in order of preference."""
