"""Schedules in the terminal: curves of Braille dots or characters, with a table below them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise

from rewarm.errors import printable
from rewarm.plots.axes import AxisRange, base_curves, format_rate, round_ticks, token_labels
from rewarm.plots.schedule_preview import Curve
from rewarm.quantities import format_count

# Those of the 256 terminal colors that are legible on both a black and a white background.
_TERMINAL_COLORS = (33, 166, 29, 163, 136, 99, 244)
_BRAILLE = "braille"
_SYMBOLS = (_BRAILLE, *"+xo*#@%&=")
_DOT_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column and row of a character

_Pen = tuple[str, int | None]
"""The character that draws a curve, and its color."""


def draw_schedules(curves: list[Curve], *, color: bool, width: int | None = None) -> str:
    """Returns a plot of the curves as text, followed by their table.

    Args:
        curves: the curves to draw.
        color: whether to distinguish curves by color instead of by character.
        width: the number of columns, at least 40; by default the terminal's.
    """
    columns = max(40, width or shutil.get_terminal_size((80, 24)).columns)
    pens = [_pen(i, color=color) for i in range(len(curves))]
    lines = [*_plot_lines(curves, pens, columns), *_table_lines(curves, pens, columns)]
    return "\n".join(line.rstrip() for line in lines)


def _pen(index: int, *, color: bool) -> _Pen:
    """Returns the pen of a curve; with colors, characters differ only when colors run out."""
    if not color:
        return _SYMBOLS[index % len(_SYMBOLS)], None
    symbol = _SYMBOLS[index // len(_TERMINAL_COLORS) % len(_SYMBOLS)]
    return symbol, _TERMINAL_COLORS[index % len(_TERMINAL_COLORS)]


def _colored(text: str, color: int | None) -> str:
    return text if color is None else f"\x1b[38;5;{color}m{text}\x1b[0m"


class _Canvas:
    """A grid of characters of 2 × 4 dots each; a character has the dots of each curve in it."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._characters: dict[tuple[int, int], dict[_Pen, int]] = {}

    def draw_line(self, dots: list[tuple[int, int]], pen: _Pen) -> None:
        """Draws a line through dots, given as (x, y) from the upper left corner."""
        for (x, y), (x_next, y_next) in pairwise([dots[0], *dots]):
            length = max(abs(x_next - x), abs(y_next - y), 1)
            for i in range(length + 1):
                x_dot = x + round((x_next - x) * i / length)
                y_dot = y + round((y_next - y) * i / length)
                character = self._characters.setdefault((y_dot // 4, x_dot // 2), {})
                character[pen] = character.get(pen, 0) | _DOT_BITS[x_dot % 2][y_dot % 4]

    def row(self, number: int, background: str) -> Iterator[str]:
        """Yields the characters of a row; `background` is the row without curves."""
        for column in range(self.columns):
            if character := self._characters.get((number, column)):
                # Curves that coincide alternate from column to column.
                (symbol, color), dots = [*character.items()][column % len(character)]
                yield _colored(chr(0x2800 + dots) if symbol == _BRAILLE else symbol, color)
            else:
                yield background[column]


def _plot_lines(curves: list[Curve], pens: list[_Pen], columns: int) -> Iterator[str]:
    """Yields the lines of the plot: axes, ticks and curves."""
    axis_range = AxisRange.covering(curves)
    ticks = round_ticks(0, axis_range.max_lr, 5)
    labels = [format_rate(tick) for tick in ticks]
    margin = max(map(len, labels))
    # A number of rows that spaces the ticks evenly.
    rows_per_tick = max(2, min(24, max(12, columns // 5)) // (len(ticks) - 1))
    canvas = _Canvas(columns - margin - 2, rows_per_tick * (len(ticks) - 1) + 1)

    def x_dot(tokens: float) -> int:
        first, last = axis_range.first_tokens, axis_range.last_tokens
        return round((tokens - first) / (last - first) * (2 * canvas.columns - 1))

    def y_dot(lr: float) -> int:
        return 1 + round((1 - lr / axis_range.max_lr) * 4 * (canvas.rows - 1))

    bases, shared = base_curves(curves)
    lines = [((_BRAILLE, None) if shared else pens[i], points) for i, points in bases.items()]
    lines += [(pen, curve.points) for pen, curve in zip(pens, curves, strict=True)]
    for pen, points in lines:
        canvas.draw_line([(x_dot(p.tokens), y_dot(p.lr)) for p in points], pen)
    row_labels = {y_dot(tick) // 4: label for tick, label in zip(ticks, labels, strict=True)}
    start_column = x_dot(0) // 2 if bases else -1
    background = "".join("┊" if column == start_column else " " for column in range(canvas.columns))
    yield "learning rate"
    for row in range(canvas.rows):
        label = row_labels.get(row, "")
        axis = f"{label:>{margin}} {'┤' if label else '│'}"
        yield axis + "".join(canvas.row(row, background))
    rule, tick_labels = _x_axis(axis_range, canvas.columns, x_dot)
    yield " " * (margin + 1) + "└" + rule
    yield " " * (margin + 2) + tick_labels
    yield f"{'tokens' + ' (left of 0: the base)' * bool(bases):>{columns}}"


def _x_axis(axis_range: AxisRange, columns: int, x_dot: Callable[[float], int]) -> tuple[str, str]:
    """Returns the x axis and its labels: the maximum number that fits with spaces between."""
    for max_ticks in range(12, 0, -1):
        ticks = round_ticks(axis_range.first_tokens, axis_range.last_tokens, max_ticks)
        rule, labels, free_from = ["─"] * columns, [" "] * columns, 0
        for tick, label in zip(ticks, token_labels(ticks), strict=True):
            column = x_dot(tick) // 2
            start = min(max(0, column - len(label) // 2), columns - len(label))
            if start < free_from:
                break
            rule[column] = "┬"
            labels[start : start + len(label)] = label
            free_from = start + len(label) + 3
        else:
            break
    return "".join(rule), "".join(labels)


class _Columns:
    """The widths of the table's columns: label, learning rate, step, tokens."""

    def __init__(self, rows: list[tuple[str, str, str, str]], width: int) -> None:
        header = ("at the floor", "0.000001%", "step", "tokens")
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        self.label, self.rate, self.step, self.tokens = widths
        self.label = max(8, min(self.label, width - self.rate - self.step - self.tokens - 9))
        self.right_width = width - self.label - self.rate - 7

    def step_and_tokens(self, step: str, tokens: str) -> str:
        return f"{step:>{self.step}}  {tokens:>{self.tokens}}"

    def row(self, label: str, rate: str, right_lines: list[str]) -> Iterator[str]:
        """Yields the lines of a row: the wrapped label, the rate, and the lines to their right."""
        *above, label = textwrap.wrap(label, self.label) or [""]
        yield from (f"   {line}" for line in above)
        start = f"   {label:<{self.label}}  {rate:>{self.rate}}  "
        yield start + right_lines[0]
        yield from (" " * len(start) + line for line in right_lines[1:])


def _table_lines(curves: list[Curve], pens: list[_Pen], width: int) -> Iterator[str]:
    """Yields the table: rates at the marks, sums and corpus shares of each curve."""
    rows_by_curve = [
        [
            (printable(label), format_rate(p.lr), f"{p.step:,}", format_count(p.tokens))
            for label, p in [
                ("first", curve.points[0]),
                *curve.marks.items(),
                ("last", curve.points[-1]),
            ]
        ]
        for curve in curves
    ]
    columns = _Columns([row for rows in rows_by_curve for row in rows], width)
    yield from columns.row("", "rate", [columns.step_and_tokens("step", "tokens")])
    for curve, (symbol, color), rows in zip(curves, pens, rows_by_curve, strict=True):
        sign = "──" if symbol == _BRAILLE else symbol * 2
        for i, line in enumerate(textwrap.wrap(printable(curve.name), width - 3) or [""]):
            yield _colored(f"{'  ' if i else sign} {line}", color)
        for label, rate, step, tokens in rows:
            yield from columns.row(label, rate, [columns.step_and_tokens(step, tokens)])
        for label, value, meaning in _total_rows(curve):
            yield from columns.row(label, value, textwrap.wrap(meaning, columns.right_width))
        for line in _share_lines(curve):
            yield from textwrap.wrap(line, width, initial_indent="   ", subsequent_indent="      ")


def _total_rows(curve: Curve) -> list[tuple[str, str, str]]:
    area, floor, exact = curve.totals
    prefix = "" if exact else "about "
    floor_meaning = f"{prefix}{format_count(floor.tokens)} tokens at {format_rate(floor.lr)}"
    return [
        ("area", f"{area:.5g}", f"{prefix}the sum of all steps' rates"),
        ("at the floor", f"{100 * floor.share:.4g}%", floor_meaning),
    ]


def _share_lines(curve: Curve) -> Iterator[str]:
    for corpus, ((_, share), *changes) in curve.corpus_shares.items():
        later = "".join(
            f", {share:.1%} from {format_count(tokens)} tokens" for tokens, share in changes
        )
        yield f"{corpus}: {share:.1%} of every batch{later}"
