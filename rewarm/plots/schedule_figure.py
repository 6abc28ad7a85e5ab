"""Schedules as a figure, and their curves as CSV and JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from rewarm import exit_codes
from rewarm.errors import RewarmError
from rewarm.files import create_folder_of
from rewarm.plots.axes import AxisRange, base_curves, format_rate, round_ticks, token_labels
from rewarm.plots.figure_style import (
    DASHES,
    FIGURE_FORMATS,
    LegendEntry,
    LineStyle,
    add_legend,
    line_style,
    save_figure,
    style_token_axes,
)
from rewarm.plots.schedule_preview import Curve, CurvePoint

_MARKERS = ("^", "v", "s", "D", "o", "P", "X")


def save_schedules(curves: list[Curve], out: Path) -> None:
    """Saves curves to a .png, .svg, .pdf, .csv or .json file, whose folder is created.

    Raises:
        RewarmError: the suffix is another one, or the file cannot be written.
    """
    file_format = out.suffix.removeprefix(".").lower()
    if file_format not in (*FIGURE_FORMATS, "csv", "json"):
        error = RewarmError(f"{out}: should end in .png, .svg, .pdf, .csv or .json")
        error.exit_code = exit_codes.BAD_RECIPE
        raise error
    try:
        create_folder_of(out)
        if file_format == "csv":
            rows = ([curve.name, *point] for curve in curves for point in curve.points)
            with out.open("w", newline="", encoding="utf-8") as file:
                write_csv(["recipe", *CurvePoint._fields], rows, file)
        elif file_format == "json":
            documents = ",\n".join(json.dumps(_curve_json(curve)) for curve in curves)
            out.write_text(f"[{documents}]\n", encoding="utf-8")
        else:
            save_figure(lambda: _schedule_figure(curves), out, file_format=file_format)
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def write_csv(header: Iterable[str], rows: Iterable[Iterable[Any]], file: IO[str]) -> None:
    """Writes a table as CSV; numbers keep all digits, so that reading them gives equal values."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def _curve_json(curve: Curve) -> dict[str, Any]:
    totals = curve.totals
    return {
        "recipe": curve.name,
        "steps": curve.recipe.steps,
        "tokens": curve.recipe.steps * curve.recipe.batch.tokens,
        "area": totals.area,
        "floor": totals.floor._asdict(),
        "exact": totals.exact,
        "marks": {label: mark._asdict() for label, mark in curve.marks.items()},
        "shares": {
            corpus: [{"tokens": tokens, "share": share} for tokens, share in pieces]
            for corpus, pieces in curve.corpus_shares.items()
        },
        "base": [point._asdict() for point in curve.base_points],
        "points": [point._asdict() for point in curve.points],
    }


def _schedule_figure(curves: list[Curve]) -> Any:
    from matplotlib.figure import Figure

    has_shares = any(curve.corpus_shares for curve in curves)
    styles = [line_style(i) for i in range(len(curves))]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    heights = [2, 1] if has_shares else [2]
    panels = list(
        figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights).flat
    )
    axis_range = AxisRange.covering(curves)
    legend = _draw_rates(panels[0], curves, styles, axis_range)
    if has_shares:
        legend += _draw_shares(panels[1], curves, styles)
    for panel in panels:
        style_token_axes(panel)
    for panel in panels[:-1]:
        panel.set_xlabel("")
    first, last = axis_range.first_tokens, axis_range.last_tokens
    margin = 0.02 * (last - first)
    panels[0].set_xlim(first - margin, last + margin)
    ticks = round_ticks(first, last, 8)
    panels[0].set_xticks(ticks, token_labels(ticks))
    legend_lines = add_legend(figure, legend)
    figure.set_size_inches(6.4, (4.6 if has_shares else 3.2) + 0.18 * legend_lines)
    return figure


def _draw_rates(
    axes: Any, curves: list[Curve], styles: list[LineStyle], axis_range: AxisRange
) -> list[LegendEntry]:
    """Draws the curves, their marks and the ends of their bases; returns the legend entries."""
    kinds = list(dict.fromkeys(_mark_kind(label) for curve in curves for label in curve.marks))
    kinds.sort(key=lambda kind: "warm" not in kind)  # the end of a rise gets the upward triangle
    markers = {kind: _MARKERS[i % len(_MARKERS)] for i, kind in enumerate(kinds)}
    for curve, style in zip(curves, styles, strict=True):
        axes.plot([p.tokens for p in curve.points], [p.lr for p in curve.points], **style)
        for label, mark in curve.marks.items():
            # Marks have the color of their curve, so that those of several recipes stay distinct.
            marker_style = {"color": style["color"], "ms": 6, "mec": "white", "mew": 0.8}
            axes.plot(mark.tokens, mark.lr, markers[_mark_kind(label)], **marker_style)
    _draw_bases(axes, curves, styles)
    axes.set_ylim(0, axis_range.max_lr * 1.05)
    ticks = round_ticks(0, axis_range.max_lr, 5)
    axes.set_yticks(ticks, [format_rate(tick) for tick in ticks])
    axes.set_ylabel("learning rate")
    curve_entries = [(curve.name, style) for curve, style in zip(curves, styles, strict=True)]
    return curve_entries + [
        (kind, {"marker": marker, "color": "0.35", "ls": "", "ms": 6})
        for kind, marker in markers.items()
    ]


def _draw_bases(axes: Any, curves: list[Curve], styles: list[LineStyle]) -> None:
    """Draws the end of each base's curve, and a vertical line where the runs start."""
    bases, shared = base_curves(curves)
    for index, points in bases.items():
        color = "0.35" if shared else styles[index]["color"]
        axes.plot([p.tokens for p in points], [p.lr for p in points], color=color, lw=1.2)
    if bases:
        axes.axvline(0, color="0.6", lw=0.8)
        # Above the axes, where no curve is.
        position = {"xycoords": ("data", "axes fraction"), "annotation_clip": False}
        axes.annotate("base ", (0, 1.02), ha="right", color="0.35", size=8, **position)
        axes.annotate(" run", (0, 1.02), ha="left", color="0.35", size=8, **position)


def _mark_kind(label: str) -> str:
    """Returns the label of a mark without numbers: `end of warm-up` for every cycle's."""
    return re.sub(r",?( cycle)? \d+$", "", re.sub(r" \d+,", "", label.rpartition(": ")[2]))


def _draw_shares(axes: Any, curves: list[Curve], styles: list[LineStyle]) -> list[LegendEntry]:
    """Draws the shares of the corpora up to each curve's end; returns the legend entries."""
    corpora = list(dict.fromkeys(name for curve in curves for name in curve.corpus_shares))
    dashes = {name: DASHES[i % len(DASHES)] for i, name in enumerate(corpora)}
    for curve, style in zip(curves, styles, strict=True):
        end = curve.points[-1].tokens
        for name, pieces in curve.corpus_shares.items():
            visible = [(tokens, share) for tokens, share in pieces if tokens < end]
            tokens, shares = zip(*visible, (end, visible[-1][1]), strict=True)
            axes.step(tokens, shares, where="post", color=style["color"], ls=dashes[name], lw=1.2)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of batch")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    return [
        (f"share of {name}", {"color": "0.35", "ls": dash, "lw": 1.2})
        for name, dash in dashes.items()
    ]
