"""A figure of predicted runs: the loss on every validation set with intervals, and the rate."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewarm.plots.axes import format_rate
from rewarm.plots.figure_style import add_legend, line_style, style_token_axes
from rewarm.predict.arms import StudiedArms
from rewarm.predict.prediction import LEVELS, Prediction


def draw_predictions(arms: StudiedArms, predictions: list[Prediction]) -> Any:
    """Returns a figure: predicted losses as lines with their intervals, measured ones as points.

    Args:
        arms: the arms that the law was fitted to.
        predictions: the runs to draw.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    *panels, rate_axes = figure.subplots(1, len(arms.roles) + 1, squeeze=False).flat
    batch = arms.recipe.batch.tokens
    measured_style = {"color": "0.6", "marker": ".", "ms": 3, "ls": ""}
    for axes, (name, role) in zip(panels, arms.roles.items(), strict=True):
        label = name if name == role else f"{name} ({role})"
        axes.set_title(f"{label} loss (nats)", fontsize=10, loc="left")
        for probe in arms.probes:
            if role == "upstream" or probe.replay < 1:
                losses = arms.starts[name] + probe.changes[name]
                axes.plot(probe.curve.steps * batch, losses, **measured_style)
        for index, prediction in enumerate(predictions):
            style, tokens = line_style(index), prediction.curve.steps * batch
            for loss in prediction.losses:
                if loss.name == name:
                    axes.plot(tokens, loss.loss, **style)
                    for level in LEVELS:
                        bounds = loss.intervals[level]
                        axes.fill_between(tokens, *bounds, color=style["color"], alpha=0.12, lw=0)
    rate_axes.set_title("learning rate", fontsize=10, loc="left")
    for index, prediction in enumerate(predictions):
        recipe = prediction.recipe
        steps = [max(1, int(step)) for step in prediction.curve.steps]
        rates = [recipe.lr(step) for step in steps]
        rate_axes.plot(np.array(steps) * batch, rates, **line_style(index))
    rate_axes.set_ylim(bottom=0)
    rate_axes.yaxis.set_major_formatter(lambda y, _: format_rate(y))
    for axes in (*panels, rate_axes):
        style_token_axes(axes)
    lines = add_legend(
        figure,
        [
            *((one.name, line_style(index)) for index, one in enumerate(predictions)),
            ("measured arms", measured_style),
        ],
    )
    figure.set_size_inches(3.4 * len(arms.roles) + 3.4, 3.2 + 0.18 * lines)
    return figure
