"""Draws schedules as a picture, and writes them down as numbers."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from rewarm.errors import RewarmError
from rewarm.plots.axes import AxisRange, base_tails, format_rate, round_ticks, token_labels
from rewarm.plots.figure_style import _DASHES, _INKS, _add_legend, _Explained, _style
from rewarm.plots.schedule_preview import Curve, CurvePoint


def save_schedules(curves: list[Curve], out: Path) -> None:
    """Writes the curves to a .png, .svg, .csv or .json file.

    Raises:
        RewarmError: the ending is none of these, or the file cannot be written.
    """
    try:
        if out.suffix == ".csv":
            rows = ([one.name, *point] for one in curves for point in one.points)
            with out.open("w", newline="", encoding="utf-8") as file:
                write_csv(["recipe", *CurvePoint._fields], rows, file)
        elif out.suffix == ".json":
            lines = ",\n".join(json.dumps(_as_data(one)) for one in curves)
            out.write_text(f"[{lines}]\n", encoding="utf-8")
        elif out.suffix in (".png", ".svg"):
            _save_picture(curves, out)
        else:
            error = RewarmError(f"{out}: should end in .png, .svg, .csv or .json")
            error.exit_code = 2
            raise error
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def write_csv(header: Iterable[str], rows: Iterable[Iterable[Any]], file: IO[str]) -> None:
    """Writes a table as CSV; numbers in all their digits, so that they are read back equal."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def _as_data(one: Curve) -> dict[str, Any]:
    totals = one.totals
    return {
        "recipe": one.name,
        "steps": one.run.steps,
        "tokens": one.run.steps * one.run.batch.tokens,
        "area": totals.area,
        "floor": totals.floor._asdict(),
        "exact": totals.exact,
        "marks": {label: mark._asdict() for label, mark in one.marks.items()},
        "shares": {
            name: [{"tokens": tokens, "share": share} for tokens, share in pieces]
            for name, pieces in one.shares.items()
        },
        "base": [point._asdict() for point in one.tail],
        "points": [point._asdict() for point in one.points],
    }


_SIGNS = ("^", "v", "s", "D", "o", "P", "X")


def _save_picture(curves: list[Curve], out: Path) -> None:
    import matplotlib as mpl

    # Names are shown as they are, `$` too; and the same curves are the same file.
    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "rewarm"}):
        metadata = {"Date": None} if out.suffix == ".svg" else {}
        _picture(curves).savefig(out, dpi=200, metadata=metadata)


def _picture(curves: list[Curve]) -> Any:
    from matplotlib.figure import Figure

    mixed = any(one.shares for one in curves)
    looks = [
        {"color": _INKS[i % len(_INKS)], "ls": _DASHES[i % len(_DASHES)], "lw": 1.6}
        for i in range(len(curves))
    ]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes, *below = figure.subplots(
        1 + mixed, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + mixed]
    ).flat
    drawn = AxisRange.of(curves)
    explained = _draw_rates(axes, curves, looks, drawn)
    for panel in below:
        explained += _draw_shares(panel, curves, looks)
    for panel in (axes, *below):
        _style(panel)
    for panel in (axes, *below)[:-1]:
        panel.set_xlabel("")
    margin = 0.02 * (drawn.last - drawn.first)
    axes.set_xlim(drawn.first - margin, drawn.last + margin)
    ticks = round_ticks(drawn.first, drawn.last, 8)
    axes.set_xticks(ticks, token_labels(ticks))
    rows = _add_legend(figure, explained)
    figure.set_size_inches(6.4, (4.6 if mixed else 3.2) + 0.18 * rows)
    return figure


def _draw_rates(
    axes: Any, curves: list[Curve], looks: list[dict[str, Any]], drawn: AxisRange
) -> _Explained:
    labels = list(dict.fromkeys(_kind(label) for one in curves for label in one.marks))
    labels.sort(key=lambda label: "warm" not in label)  # what goes up points up
    signs = {label: _SIGNS[i % len(_SIGNS)] for i, label in enumerate(labels)}
    for one, look in zip(curves, looks, strict=True):
        axes.plot([p.tokens for p in one.points], [p.lr for p in one.points], **look)
        for label, mark in one.marks.items():
            # Marks are drawn on the curve, so that those of several recipes stay apart.
            marked = {"color": look["color"], "ms": 6, "mec": "white", "mew": 0.8}
            axes.plot(mark.tokens, mark.lr, signs[_kind(label)], **marked)
    tails, shared = base_tails(curves)
    for index, tail in tails.items():
        color = "0.35" if shared else looks[index]["color"]
        axes.plot([p.tokens for p in tail], [p.lr for p in tail], color=color, lw=1.2)
    if tails:
        axes.axvline(0, color="0.6", lw=0.8)
        # Above the frame, where no curve is.
        above = {"xycoords": ("data", "axes fraction"), "annotation_clip": False}
        axes.annotate("base ", (0, 1.02), ha="right", color="0.35", size=8, **above)
        axes.annotate(" run", (0, 1.02), ha="left", color="0.35", size=8, **above)
    axes.set_ylim(0, drawn.top * 1.05)
    ticks = round_ticks(0, drawn.top, 5)
    axes.set_yticks(ticks, [format_rate(tick) for tick in ticks])
    axes.set_ylabel("learning rate")
    return [(one.name, look) for one, look in zip(curves, looks, strict=True)] + [
        (label, {"marker": sign, "color": "0.35", "ls": "", "ms": 6})
        for label, sign in signs.items()
    ]


def _kind(label: str) -> str:
    """Returns what marks that are counted have in common: `end of warm-up` of each cycle."""
    return re.sub(r",?( cycle)? \d+$", "", re.sub(r" \d+,", "", label.rpartition(": ")[2]))


def _draw_shares(axes: Any, curves: list[Curve], looks: list[dict[str, Any]]) -> _Explained:
    corpora = list(dict.fromkeys(name for one in curves for name in one.shares))
    dashes = {name: _DASHES[i % len(_DASHES)] for i, name in enumerate(corpora)}
    for one, look in zip(curves, looks, strict=True):
        end = one.points[-1].tokens
        for name, pieces in one.shares.items():
            seen = [(tokens, share) for tokens, share in pieces if tokens < end]
            places, shares = zip(*seen, (end, seen[-1][1]), strict=True)
            axes.step(places, shares, where="post", color=look["color"], ls=dashes[name], lw=1.2)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of batch")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    return [
        (f"share of {name}", {"color": "0.35", "ls": dash, "lw": 1.2})
        for name, dash in dashes.items()
    ]
