"""Draws schedules as a picture, and writes them down as numbers."""

from __future__ import annotations

import csv
import json
import math
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from rewarm import recipe, ruler
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
    drawn = ruler.Range.of(curves)
    explained = _draw_rates(axes, curves, looks, drawn)
    for panel in below:
        explained += _draw_shares(panel, curves, looks)
    for panel in (axes, *below):
        _style(panel)
    for panel in (axes, *below)[:-1]:
        panel.set_xlabel("")
    margin = 0.02 * (drawn.last - drawn.first)
    axes.set_xlim(drawn.first - margin, drawn.last + margin)
    ticks = ruler.ticks(drawn.first, drawn.last, 8)
    axes.set_xticks(ticks, ruler.tokens(ticks))
    rows = _add_legend(figure, explained)
    figure.set_size_inches(6.4, (4.6 if mixed else 3.2) + 0.18 * rows)
    return figure


_Explained = list[tuple[str, dict[str, Any]]]
"""What the legend says: labels, and the looks that they are about."""


def _draw_rates(
    axes: Any, curves: list[Curve], looks: list[dict[str, Any]], drawn: ruler.Range
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
    tails, shared = ruler.tails(curves)
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
    ticks = ruler.ticks(0, drawn.top, 5)
    axes.set_yticks(ticks, [ruler.rate_in_words(tick) for tick in ticks])
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


def save_losses(arms: dict[str, list[Path]], out: Path) -> None:
    """Writes one picture of several arms: the loss of every validation set, and the rate.

    Of an arm with several runs, each is a pale line, and their mean, as far as all of them are, a
    strong one.

    Raises:
        RewarmError: metrics cannot be read, or the file cannot be written.
    """
    import matplotlib as mpl

    metadata = {"Date": None} if out.suffix == ".svg" else {}
    try:
        with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "rewarm"}):
            _losses(arms).savefig(out, dpi=200, metadata=metadata)
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def _losses(arms: dict[str, list[Path]]) -> Any:
    from matplotlib.figure import Figure

    measured = {
        name: [
            [x for x in read_metrics(run / "metrics.jsonl") if x["kind"] == "evaluate"]
            for run in runs
        ]
        for name, runs in arms.items()
    }
    every = [x for runs in measured.values() for lines in runs for x in lines]
    keys = dict.fromkeys(key for x in every for key in x if key.endswith("/loss"))
    looks = {
        name: {"color": _INKS[i % len(_INKS)], "ls": _DASHES[i % len(_DASHES)], "lw": 1.6}
        for i, name in enumerate(arms)
    }
    figure = Figure(layout="constrained")
    *panels, rates = figure.subplots(1, len(keys) + 1, squeeze=False).flat
    for axes, key in zip(panels, keys, strict=True):
        axes.set_title(f"{key.removesuffix('/loss')} loss (nats)", fontsize=10, loc="left")
        for name, runs in measured.items():
            losses = [{x["tokens"]: x[key] for x in lines if x.get(key)} for lines in runs]
            for one in losses if len(losses) > 1 else []:
                axes.plot([*one], [*one.values()], color=looks[name]["color"], lw=0.8, alpha=0.35)
            shared = [tokens for tokens in losses[0] if all(tokens in one for one in losses)]
            axes.plot(shared, [fmean(one[x] for one in losses) for x in shared], **looks[name])
    rates.set_title("learning rate", fontsize=10, loc="left")
    for name, [run, *_] in arms.items():
        rates.plot(*_applied(run), **looks[name])
    rates.set_ylim(bottom=0)
    rates.yaxis.set_major_formatter(lambda y, _: ruler.rate_in_words(y))
    for axes in (*panels, rates):
        _style(axes)
    rows = _add_legend(figure, list(looks.items()))
    figure.set_size_inches(3.4 * len(keys) + 3.4, 3.2 + 0.18 * rows)
    return figure


def _applied(run: Path) -> tuple[list[int], list[float]]:
    """Returns a run's rates over tokens: of every step, or as logged if its recipe is not here."""
    try:
        points = [
            (x.tokens, x.lr) for x in curve("", recipe.load(run / "recipe.yaml"), 1000).points
        ]
    except RewarmError:
        lines = read_metrics(run / "metrics.jsonl")
        points = [(x["tokens"], x["lr"]) for x in lines if x["kind"] == "train"]
    return [x for x, _ in points], [y for _, y in points]


def _style(axes: Any) -> None:
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(lambda x, _: in_words(x))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.6)
