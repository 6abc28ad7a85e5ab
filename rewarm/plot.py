"""Draws schedules in the terminal, as a picture or as numbers, by the function that trains."""

from __future__ import annotations

import csv
import re
import shutil
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from rewarm import bases, recipe, schedules
from rewarm.errors import RewarmError
from rewarm.progress import read_progress
from rewarm.quantities import in_words
from rewarm.recipe import Recipe
from rewarm.run import read_metrics

MOST_POINTS = 10_000
_TAIL = 0.25  # of a run's length: as much of its base's curve is drawn to the left


class Point(NamedTuple):
    """The rate of one step. Steps of the base are counted down from 0 at its end."""

    step: int
    tokens: int
    progress: float
    lr: float


class Curve(NamedTuple):
    """A recipe's learning rate, step by step."""

    name: str
    points: list[Point]
    marks: dict[str, Point]
    """Named places: end of warm-up, floor."""
    tail: list[Point]
    """The last rates of the base, where it is a rewarm checkpoint; tokens count up to 0."""
    shares: dict[str, list[tuple[int, float]]]
    """Where weights change on the way: each corpus's share of a batch, from so many tokens on."""


def curve(name: str, run: Recipe, points: int = MOST_POINTS) -> Curve:
    """Returns a recipe's curve: every step, thinned to about `points` where there are more."""

    def at(step: int) -> Point:
        lr = run.lr(step)
        return Point(step, step * run.batch.tokens, run.progress(step), lr)

    marks = {
        label: at(min(run.steps, max(1, round(place * run.steps))))
        for label, place in schedules.marks(run.schedule).items()
        if 0 < place < 1
    }
    steps = sorted({*_thinned(1, run.steps, points), *(mark.step for mark in marks.values())})
    return Curve(name, [at(step) for step in steps], marks, _tail(run, points), _shares(run))


def _shares(run: Recipe) -> dict[str, list[tuple[int, float]]]:
    """Returns each corpus's share of a batch from so many tokens on, if it ever changes."""
    firsts = sorted({first for pieces in run.weights.values() for first, _ in pieces})
    shares: dict[str, list[tuple[int, float]]] = {name: [] for name in run.weights}
    for first in firsts:
        now = {
            name: [weight for start, weight in pieces if start <= first][-1]
            for name, pieces in run.weights.items()
        }
        for name, weight in now.items():
            shares[name].append((first * run.data.context, weight / sum(now.values())))
    return shares if len(firsts) > 1 else {}


def _thinned(first: int, last: int, most: int) -> set[int]:
    count = last - first + 1
    if count <= most:
        return set(range(first, last + 1))
    return {first + i * (count - 1) // (most - 1) for i in range(most)}


def _tail(run: Recipe, points: int) -> list[Point]:
    """Returns the end of the base's own curve, if it is a rewarm checkpoint."""
    if run.model.base is None or run.model.fresh or not bases.local(run.model.base):
        return []
    base = bases.locate(run.model.base, weights=False)
    if base.kind != "rewarm checkpoint":
        return []
    reached = read_progress(base.directory)
    parent = recipe.load(base.directory / "recipe.yaml")
    length = max(2, round(_TAIL * run.steps * run.batch.tokens / parent.batch.tokens))
    first = max(1, reached.step - length + 1)
    return [
        Point(
            step - reached.step,
            (step - reached.step) * parent.batch.tokens,
            parent.progress(step),
            parent.lr(step),
        )
        for step in sorted(_thinned(first, reached.step, points))
    ]


def save(curves: list[Curve], out: Path) -> None:
    """Writes the curves to a .png, .svg or .csv file.

    Raises:
        RewarmError: the ending is none of these, or the file cannot be written.
    """
    try:
        if out.suffix == ".csv":
            with out.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["recipe", *Point._fields])
                for one in curves:
                    writer.writerows([one.name, *point] for point in one.points)
        elif out.suffix in (".png", ".svg"):
            _picture(curves).savefig(out, dpi=200)
        else:
            error = RewarmError(f"{out}: should end in .png, .svg or .csv")
            error.exit_code = 2
            raise error
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def _picture(curves: list[Curve]) -> Any:
    from matplotlib.figure import Figure

    mixed = any(one.shares for one in curves)
    figure = Figure(figsize=(6.4, 5.0 if mixed else 3.6), layout="constrained")
    axes, *below = figure.subplots(
        1 + mixed, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + mixed]
    ).flat
    for index, one in enumerate(curves):
        color = f"C{index}"
        axes.plot(
            [p.tokens for p in one.points],
            [p.lr for p in one.points],
            color=color,
            label=one.name,
            lw=1.6,
        )
        if one.tail:
            axes.plot([p.tokens for p in one.tail], [p.lr for p in one.tail], color=color, ls=":")
        for label, mark in one.marks.items():
            # Marks are drawn on the curve, so that those of several recipes stay apart.
            style = "^" if "warm" in label else "v"
            axes.plot(mark.tokens, mark.lr, style, color=color, ms=6, mec="white", mew=0.8)
    if any(one.tail for one in curves):
        axes.axvline(0, color="0.6", lw=0.8)
        axes.annotate(
            "base  ", (0, 0.02), xycoords=("data", "axes fraction"), ha="right", color="0.4", size=8
        )
    labels = list(dict.fromkeys(label for one in curves for label in one.marks))
    handles, names = axes.get_legend_handles_labels()
    for label in labels:
        style = "^" if "warm" in label else "v"
        handles += axes.plot([], [], style, color="0.4", ms=6)
        names.append(label)
    axes.legend(handles, names, frameon=False, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter(lambda y, _: _rate(y))
    for panel in below:
        _draw_shares(panel, curves)
    for panel in (axes, *below):
        _style(panel)
    for panel in (axes, *below)[:-1]:
        panel.set_xlabel("")
    return figure


def _draw_shares(axes: Any, curves: list[Curve]) -> None:
    for index, one in enumerate(curves):
        for style, (name, pieces) in zip(cycle(("-", ":")), one.shares.items(), strict=False):
            places, shares = zip(*pieces, (one.points[-1].tokens, pieces[-1][1]), strict=True)
            label = name if len(curves) == 1 else f"{one.name}: {name}"
            axes.step(places, shares, style, where="post", color=f"C{index}", label=label)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of batch")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.legend(frameon=False, fontsize=8)


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
    rates.yaxis.set_major_formatter(lambda y, _: _rate(y))
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


_COLORS = (6, 5, 2, 3, 4, 1)  # of the terminal's own sixteen, so that light and dark both work
_SYMBOLS = ("braille", "+", "x", "o", "*", "#")


def in_terminal(curves: list[Curve], *, color: bool, width: int | None = None) -> str:
    """Returns the curves drawn in characters, and what they are, with their marks, below."""
    import plotext

    columns = max(40, width or shutil.get_terminal_size((80, 24)).columns)
    figure = plotext.figure.clear()
    figure.parent().limit(False, False)  # a pipe may be wider than the terminal
    figure.theme("colorless")
    figure.plot_size(columns, 18)
    every = [point for one in curves for point in [*one.tail, *one.points]]
    last, top = max(p.tokens for p in every), max(p.lr for p in every) or 1.0
    notes: list[tuple[int | None, str]] = []
    for index, one in enumerate(curves):
        symbol = "braille" if color else _SYMBOLS[index % len(_SYMBOLS)]
        pixel = plotext.pixel(_COLORS[index % len(_COLORS)]) if color else plotext.pixel()
        for points in (one.tail, one.points):
            if points:
                signal = figure.signal(
                    [p.tokens for p in points],
                    [p.lr for p in points],
                    marker=plotext.marker(symbol, pixel),
                )
                figure.draw(signal.lines())
        sign = "─" if symbol == "braille" else symbol
        marks = [("first", one.points[0]), *one.marks.items(), ("last", one.points[-1])]
        width_of_label = max(len(label) for label, _ in marks)
        notes.append((index, f"{sign * 2} {one.name}"))
        notes += [
            (
                None,
                f"   {label:<{width_of_label}}  {_rate(p.lr):>8}  step {p.step:,} "
                f"({in_words(p.tokens)} tokens)",
            )
            for label, p in marks
        ]
        for name, ((_, share), *later) in one.shares.items():
            said = "".join(f", {s:.1%} from {in_words(tokens)} tokens" for tokens, s in later)
            notes.append((None, f"   {name}: {share:.1%} of every batch{said}"))
    first = min(p.tokens for p in every if p.tokens <= 0) if any(c.tail for c in curves) else 0
    ticks = [first] * bool(first) + [last * i // 4 for i in range(5)]
    figure.ruler("x").ticks(ticks, [in_words(tick) for tick in ticks])
    figure.ruler("x").lim(first, last)
    figure.ruler("y").ticks([top * i / 4 for i in range(5)], [_rate(top * i / 4) for i in range(5)])
    figure.ruler("y").lim(0, top)
    figure.label("tokens" + (", base to the left of 0" if first else ""), "x")
    figure.label("learning rate", "y")
    lines = [*str(figure.build()).rstrip("\n").split("\n")]
    if not color:
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in lines]
    for which, text in notes:
        tinted = color and which is not None
        lines.append(
            f"\x1b[3{_COLORS[(which or 0) % len(_COLORS)]}m{text}\x1b[0m" if tinted else text
        )
    return "\n".join(lines)


def _rate(lr: float) -> str:
    """Returns a rate as it is written in recipes: 3e-4."""
    if lr == 0:
        return "0"
    mantissa, exponent = f"{lr:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
