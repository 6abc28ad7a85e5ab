"""Draws schedules in the terminal: curves of characters, and a table below them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from rewarm.errors import printable
from rewarm.plots.axes import AxisRange, base_tails, format_rate, round_ticks, token_labels
from rewarm.plots.schedule_preview import Curve
from rewarm.quantities import format_count

# Of the 256, colours neither so light nor so dark that black or white paper would swallow them.
_COLORS = (33, 166, 29, 163, 136, 99, 244)
_BRAILLE = "braille"
_SYMBOLS = (_BRAILLE, *"+xo*#@%&=")
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def draw_schedules(curves: list[Curve], *, color: bool, width: int | None = None) -> str:
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
    drawn = AxisRange.of(curves)
    ticks = round_ticks(0, drawn.top, 5)
    labels = [format_rate(tick) for tick in ticks]
    margin = max(map(len, labels))
    # So many rows that the ticks stand evenly.
    apart = max(2, min(24, max(12, columns // 5)) // (len(ticks) - 1))
    canvas = _Canvas(columns - margin - 2, apart * (len(ticks) - 1) + 1)

    def across(tokens: float) -> int:
        return round((tokens - drawn.first) / (drawn.last - drawn.first) * (2 * canvas.columns - 1))

    def down(lr: float) -> int:
        return 1 + round((1 - lr / drawn.top) * 4 * (canvas.rows - 1))

    tails, shared = base_tails(curves)
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


def _x_axis(drawn: AxisRange, columns: int, across: Any) -> tuple[str, str]:
    """Returns the axis and its labels: as many as stand apart."""
    for most in range(12, 0, -1):
        ticks = round_ticks(drawn.first, drawn.last, most)
        rule, said, free = ["─"] * columns, [" "] * columns, 0
        for tick, label in zip(ticks, token_labels(ticks), strict=True):
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
            (printable(label), format_rate(p.lr), f"{p.step:,}", format_count(p.tokens))
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
                f"{about}{format_count(floor.tokens)} tokens at {format_rate(floor.lr)}",
            ),
        ):
            yield from row(label, value, textwrap.wrap(said, room))
        for name, ((_, share), *later) in one.shares.items():
            said = "".join(f", {s:.1%} from {format_count(tokens)} tokens" for tokens, s in later)
            text = f"{name}: {share:.1%} of every batch{said}"
            yield from textwrap.wrap(
                text, columns, initial_indent="   ", subsequent_indent="      "
            )
