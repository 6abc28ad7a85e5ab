"""A figure of a search: the Pareto front of forgetting against adaptation, and the arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewarm.plots.figure_style import (
    COLORS,
    LegendEntry,
    LineStyle,
    add_legend,
    style_axes,
)
from rewarm.predict.arms import StudiedArms
from rewarm.predict.constraints import Constraint, mean_loss
from rewarm.predict.prediction import LEVELS, Prediction
from rewarm.predict.search import SearchResult

_LEVEL = LEVELS[0]
_MARKERS = "sD^vP*Xph<>"
_FRONT: LineStyle = {"color": "0.25", "marker": "o", "ls": ":", "lw": 1, "ms": 4}
_RECOMMENDED: LineStyle = {"color": COLORS[1], "marker": "o", "ls": "", "ms": 9}
_START: LineStyle = {
    "color": COLORS[0],
    "marker": "o",
    "ls": "",
    "ms": 7,
    "mfc": "white",
    "mew": 1.5,
}
_LIMIT: LineStyle = {"color": COLORS[2], "ls": (0, (6, 2)), "lw": 1.2}


def draw_search(
    arms: StudiedArms, result: SearchResult, start: Prediction, constraints: Sequence[Constraint]
) -> Any:
    """Returns a figure: predicted losses on old and new data with intervals, and measured ones.

    Args:
        arms: the arms that the law was fitted to.
        result: the search.
        start: the recipe that it started from.
        constraints: upper limits, which are drawn as lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    sets = [arms.sets("upstream"), arms.sets("downstream")]
    axes.set_xlabel(f"{' + '.join(sets[0])} loss at the end (nats): forgetting")
    axes.set_ylabel(f"{' + '.join(sets[1])} loss at the end (nats): adaptation")
    front = [_point(candidate.prediction, sets) for candidate in result.front]
    axes.plot(*np.array([middle for middle, _ in front]).T, zorder=2, **_FRONT)
    for candidate, (middle, errors) in zip(result.front, front, strict=True):
        axes.errorbar(*middle, *errors[::-1], color="0.6", elinewidth=0.8, zorder=1)
        axes.annotate(
            candidate.prediction.name,
            middle,
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    entries: list[LegendEntry] = [(f"Pareto front, {_LEVEL:.0%} intervals", _FRONT)]
    named = [("starting recipe", start, _START)]
    if result.recommended is not None:
        named.append(("recommended", result.recommended.prediction, _RECOMMENDED))
    for name, prediction, style in named:
        middle, errors = _point(prediction, sets)
        axes.errorbar(*middle, *errors[::-1], elinewidth=1, zorder=3, **style)
        entries.append((name, style))
    for limit in constraints:
        line = axes.axvline if limit.role == "upstream" else axes.axhline
        line(limit.highest_loss, zorder=0, **_LIMIT)
    entries += [(limit.text, _LIMIT) for limit in constraints]
    entries += _draw_arms(axes, arms, sets)
    lines = add_legend(figure, entries, 76)
    figure.set_size_inches(6, 4.4 + 0.18 * lines)
    return figure


def _draw_arms(axes: Any, arms: StudiedArms, sets: list[tuple[str, ...]]) -> list[LegendEntry]:
    """Draws the last losses of the arms with a shift, and returns their entries in the legend."""
    entries = []
    for index, probe in enumerate(probe for probe in arms.probes if probe.replay < 1):
        last = {name: arms.starts[name] + float(probe.changes[name][-1]) for name in arms.starts}
        style = {
            "color": COLORS[3 + index % 4],
            "marker": _MARKERS[index % len(_MARKERS)],
            "ls": "",
            "ms": 6,
            "mfc": "white",
        }
        axes.plot(*(mean_loss(last, names) for names in sets), zorder=4, **style)
        entries.append((f"arm {probe.arm}", style))
    return entries


def _point(
    prediction: Prediction, sets: list[tuple[str, ...]]
) -> tuple[tuple[float, float], list[Any]]:
    """Returns the last losses on old and new data, and their errors down and up, both x first."""
    middle, errors = [], []
    for names in sets:
        losses = [loss for loss in prediction.losses if loss.name in names]
        value = np.mean([loss.loss[-1] for loss in losses])
        low, high = (
            np.mean([loss.intervals[_LEVEL][side][-1] for loss in losses]) for side in (0, 1)
        )
        middle.append(float(value))
        errors.append([[max(0.0, float(value - low))], [max(0.0, float(high - value))]])
    return (middle[0], middle[1]), errors
