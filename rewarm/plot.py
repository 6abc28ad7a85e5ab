"""Draws schedules in the terminal or as a picture, and writes them down as numbers."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

from rewarm import recipe
from rewarm.curve import Curve, Point, curve
from rewarm.errors import RewarmError, printable
from rewarm.quantities import in_words
from rewarm.run import read_metrics


def save(curves: list[Curve], out: Path) -> None:
    """Writes the curves to a .png, .svg, .csv or .json file.

    Raises:
        RewarmError: the ending is none of these, or the file cannot be written.
    """
    try:
        if out.suffix == ".csv":
            rows = ([one.name, *point] for one in curves for point in one.points)
            with out.open("w", newline="", encoding="utf-8") as file:
                write_csv(["recipe", *Point._fields], rows, file)
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


class _Range(NamedTuple):
    """What of tokens and rates is drawn."""

    first: int
    last: int
    top: float

    @classmethod
    def of(cls, curves: list[Curve]) -> _Range:
        """Returns a range with room for all points, from where their first steps begin."""
        every = [point for one in curves for point in [*one.tail, *one.points]]
        begins = [point.tokens for one in curves for point in one.tail]
        begins += [(one.points[0].step - 1) * one.run.batch.tokens for one in curves]
        top = max(point.lr for point in every) or 1.0
        # A peak that falls between two steps comes just short of its round number.
        top = max(top, _ticks(0, 1.03 * top, 5)[-1])
        return cls(min(begins), max(point.tokens for point in every), top)


def _tails(curves: list[Curve]) -> tuple[dict[int, list[Point]], bool]:
    """Returns the tails to draw, by the place of their curve, and whether it is one for all."""
    tails = {index: one.tail for index, one in enumerate(curves) if one.tail}
    shared = len(tails) > 1 and all(tail == min(tails.items())[1] for tail in tails.values())
    return dict([min(tails.items())]) if shared else tails, shared


def _ticks(first: float, last: float, most: int) -> list[float]:
    """Returns at most about so many round numbers, evenly spaced, from first to last."""
    rough = (last - first) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= rough * (1 - 1e-9))
    low, high = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(low, high + 1)]


def _tokens(ticks: list[float]) -> list[str]:
    """Returns the ticks' labels, in the greatest's unit, in as many digits as they need."""
    most = max(map(abs, ticks), default=0)
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
    unit, suffix = next((one for one in units if most >= one[0]), units[-1])
    return [f"{tick / unit:.12g}{suffix}" if tick else "0" for tick in ticks]


def rate_in_words(lr: float, digits: int = 3) -> str:
    """Returns a rate as it is written in recipes, to so many digits: 3e-4."""
    if lr == 0:
        return "0"
    mantissa, exponent = f"{lr:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


# Pictures.

# Okabe and Ito's colours, which the colour-blind can tell apart, without those too light for paper;
# and dashes, for who prints in grey, and for curves that lie on each other.
_INKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.2)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))
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
    drawn = _Range.of(curves)
    explained = _draw_rates(axes, curves, looks, drawn)
    for panel in below:
        explained += _draw_shares(panel, curves, looks)
    for panel in (axes, *below):
        _style(panel)
    for panel in (axes, *below)[:-1]:
        panel.set_xlabel("")
    margin = 0.02 * (drawn.last - drawn.first)
    axes.set_xlim(drawn.first - margin, drawn.last + margin)
    ticks = _ticks(drawn.first, drawn.last, 8)
    axes.set_xticks(ticks, _tokens(ticks))
    rows = _add_legend(figure, explained)
    figure.set_size_inches(6.4, (4.6 if mixed else 3.2) + 0.18 * rows)
    return figure


_Explained = list[tuple[str, dict[str, Any]]]
"""What the legend says: labels, and the looks that they are about."""


def _draw_rates(
    axes: Any, curves: list[Curve], looks: list[dict[str, Any]], drawn: _Range
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
    tails, shared = _tails(curves)
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
    ticks = _ticks(0, drawn.top, 5)
    axes.set_yticks(ticks, [rate_in_words(tick) for tick in ticks])
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


def _add_legend(figure: Any, explained: _Explained) -> int:
    """Returns the legend's lines. It stands below the axes, where no curve is."""
    from matplotlib.lines import Line2D

    # The space, because a label that begins with an underscore is left out.
    labels = [" " + textwrap.fill(printable(label), 84) for label, _ in explained]
    columns = max(1, 90 // (max(map(len, labels)) + 8))
    figure.legend(
        handles=[
            Line2D([], [], label=label, **look)
            for label, (_, look) in zip(labels, explained, strict=True)
        ],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=3.2,
    )
    return math.ceil(sum(1 + label.count("\n") for label in labels) / columns)


def save_losses(runs: dict[str, Path], out: Path) -> None:
    """Writes one picture of several runs: the loss of every validation set, and the rate.

    Raises:
        RewarmError: metrics cannot be read, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    measured = {
        name: [x for x in read_metrics(run / "metrics.jsonl") if x["kind"] == "evaluate"]
        for name, run in runs.items()
    }
    keys = dict.fromkeys(k for xs in measured.values() for x in xs for k in x if "/loss" in k)
    figure = Figure(figsize=(3.4 * len(keys) + 3.4, 3.2), layout="constrained")
    *panels, rates = figure.subplots(1, len(keys) + 1)
    for axes, key in zip(panels, keys, strict=True):
        axes.set_title(f"{key.removesuffix('/loss')} loss (nats)", fontsize=10, loc="left")
        for name, lines in measured.items():
            there = [x for x in lines if key in x]
            axes.plot([x["tokens"] for x in there], [x[key] for x in there], lw=1.6, label=name)
    rates.set_title("learning rate", fontsize=10, loc="left")
    for name, run in runs.items():
        points = curve(name, recipe.load(run / "recipe.yaml"), 1000).points
        rates.plot([p.tokens for p in points], [p.lr for p in points], lw=1.6, label=name)
    rates.set_ylim(bottom=0)
    rates.yaxis.set_major_formatter(lambda y, _: rate_in_words(y))
    rates.legend(frameon=False, fontsize=8)
    for axes in (*panels, rates):
        _style(axes)
    try:
        figure.savefig(out, dpi=200)
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def _style(axes: Any) -> None:
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(lambda x, _: in_words(x))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.6)


# The terminal.

# Of the 256, colours neither so light nor so dark that black or white paper would swallow them.
_COLORS = (33, 166, 29, 163, 136, 99, 244)
_BRAILLE = "braille"
_SYMBOLS = (_BRAILLE, *"+xo*#@%&=")
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def in_terminal(curves: list[Curve], *, color: bool, width: int | None = None) -> str:
    """Returns the curves drawn in characters, and what they are, with their marks, below.

    Args:
        curves: what to draw.
        color: tell curves apart by colours rather than by characters.
        width: columns, at least 40; without it, those of the terminal.
    """
    columns = max(40, width or shutil.get_terminal_size((80, 24)).columns)
    looks: list[_Look] = [
        # With colours, characters change only once the colours have been used up.
        (_SYMBOLS[i // len(_COLORS) % len(_SYMBOLS)], _COLORS[i % len(_COLORS)])
        if color
        else (_SYMBOLS[i % len(_SYMBOLS)], None)
        for i in range(len(curves))
    ]
    lines = [*_drawing(curves, looks, columns), *_table(curves, looks, columns)]
    return "\n".join(line.rstrip() for line in lines)


_Look = tuple[str, int | None]
"""The character that a curve is drawn with, and its colour."""


def _inked(text: str, color: int | None) -> str:
    return text if color is None else f"\x1b[38;5;{color}m{text}\x1b[0m"


class _Canvas:
    """Characters of 2 × 4 dots each, which remember whose curves go through them."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._cells: dict[tuple[int, int], dict[_Look, int]] = {}

    def line(self, dots: list[tuple[int, int]], look: _Look) -> None:
        """Joins dots, which are counted from the upper left."""
        for (x, y), (x_next, y_next) in pairwise([dots[0], *dots]):
            length = max(abs(x_next - x), abs(y_next - y), 1)
            for i in range(length + 1):
                at_x = x + round((x_next - x) * i / length)
                at_y = y + round((y_next - y) * i / length)
                cell = self._cells.setdefault((at_y // 4, at_x // 2), {})
                cell[look] = cell.get(look, 0) | _DOTS[at_x % 2][at_y % 4]

    def row(self, number: int, empty: str) -> Iterator[str]:
        """Yields the characters of a row; `empty` is what it looks like where no curve is."""
        for column in range(self.columns):
            if cell := self._cells.get((number, column)):
                # Where curves lie on each other, each shows in some of the columns.
                (symbol, color), dots = [*cell.items()][column % len(cell)]
                yield _inked(chr(0x2800 + dots) if symbol == _BRAILLE else symbol, color)
            else:
                yield empty[column]


def _drawing(curves: list[Curve], looks: list[_Look], columns: int) -> Iterator[str]:
    """Yields the lines of the plot: axes, ticks and curves."""
    drawn = _Range.of(curves)
    ticks = _ticks(0, drawn.top, 5)
    labels = [rate_in_words(tick) for tick in ticks]
    margin = max(map(len, labels))
    # So many rows that the ticks stand evenly.
    apart = max(2, min(24, max(12, columns // 5)) // (len(ticks) - 1))
    canvas = _Canvas(columns - margin - 2, apart * (len(ticks) - 1) + 1)

    def across(tokens: float) -> int:
        return round((tokens - drawn.first) / (drawn.last - drawn.first) * (2 * canvas.columns - 1))

    def down(lr: float) -> int:
        return 1 + round((1 - lr / drawn.top) * 4 * (canvas.rows - 1))

    tails, shared = _tails(curves)
    lines = [((_BRAILLE, None) if shared else looks[i], tail) for i, tail in tails.items()]
    lines += [(look, one.points) for look, one in zip(looks, curves, strict=True)]
    for look, points in lines:
        canvas.line([(across(p.tokens), down(p.lr)) for p in points], look)
    at_rows = {down(tick) // 4: label for tick, label in zip(ticks, labels, strict=True)}
    begin = across(0) // 2 if tails else -1
    empty = "".join("┊" if column == begin else " " for column in range(canvas.columns))
    yield "learning rate"
    for row in range(canvas.rows):
        label = at_rows.get(row, "")
        yield f"{label:>{margin}} {'┤' if label else '│'}" + "".join(canvas.row(row, empty))
    rule, said = _x_axis(drawn, canvas.columns, across)
    yield " " * (margin + 1) + "└" + rule
    yield " " * (margin + 2) + said
    yield f"{'tokens' + ' (left of 0: the base)' * bool(tails):>{columns}}"


def _x_axis(drawn: _Range, columns: int, across: Any) -> tuple[str, str]:
    """Returns the axis and its labels: as many as stand apart."""
    for most in range(12, 0, -1):
        ticks = _ticks(drawn.first, drawn.last, most)
        rule, said, free = ["─"] * columns, [" "] * columns, 0
        for tick, label in zip(ticks, _tokens(ticks), strict=True):
            column = across(tick) // 2
            start = min(max(0, column - len(label) // 2), columns - len(label))
            if start < free:
                break
            rule[column] = "┬"
            said[start : start + len(label)] = label
            free = start + len(label) + 3
        else:
            break
    return "".join(rule), "".join(said)


def _table(curves: list[Curve], looks: list[_Look], columns: int) -> Iterator[str]:
    """Yields what is worth knowing in numbers, the columns of all recipes below each other."""
    places = [
        [
            (printable(label), rate_in_words(p.lr), f"{p.step:,}", in_words(p.tokens))
            for label, p in [("first", one.points[0]), *one.marks.items(), ("last", one.points[-1])]
        ]
        for one in curves
    ]
    every = [
        ("at the floor", "0.000001%", "step", "tokens"),
        *(row for rows in places for row in rows),
    ]
    label_w, rate_w, step_w, tokens_w = (max(map(len, part)) for part in zip(*every, strict=True))
    label_w = max(8, min(label_w, columns - rate_w - step_w - tokens_w - 9))

    def row(label: str, rate: str, rest: list[str]) -> Iterator[str]:
        *above, label = textwrap.wrap(label, label_w) or [""]
        yield from (f"   {line}" for line in above)
        head = f"   {label:<{label_w}}  {rate:>{rate_w}}  "
        yield head + rest[0]
        yield from (" " * len(head) + line for line in rest[1:])

    yield from row("", "rate", [f"{'step':>{step_w}}  {'tokens':>{tokens_w}}"])
    for one, (symbol, color), rows in zip(curves, looks, places, strict=True):
        sign = "──" if symbol == _BRAILLE else symbol * 2
        for i, line in enumerate(textwrap.wrap(printable(one.name), columns - 3) or [""]):
            yield _inked(f"{'  ' if i else sign} {line}", color)
        for label, rate, step, tokens in rows:
            yield from row(label, rate, [f"{step:>{step_w}}  {tokens:>{tokens_w}}"])
        area, floor, exact = one.totals
        about = "" if exact else "about "
        room = columns - label_w - rate_w - 7
        for label, value, said in (
            ("area", f"{area:.5g}", f"{about}the sum of all steps' rates"),
            (
                "at the floor",
                f"{100 * floor.share:.4g}%",
                f"{about}{in_words(floor.tokens)} tokens at {rate_in_words(floor.lr)}",
            ),
        ):
            yield from row(label, value, textwrap.wrap(said, room))
        for name, ((_, share), *later) in one.shares.items():
            said = "".join(f", {s:.1%} from {in_words(tokens)} tokens" for tokens, s in later)
            text = f"{name}: {share:.1%} of every batch{said}"
            yield from textwrap.wrap(
                text, columns, initial_indent="   ", subsequent_indent="      "
            )
