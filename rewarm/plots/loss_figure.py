"""A figure of several arms: the loss on every validation set, and the learning rate."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from rewarm.errors import RewarmError
from rewarm.plots.axes import format_rate
from rewarm.plots.figure_style import (
    LineStyle,
    add_legend,
    line_style,
    save_figure,
    style_token_axes,
)
from rewarm.plots.schedule_preview import compute_curve
from rewarm.recipe.saved_recipe import load_saved_recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.study.run_outcomes import StudyResults, read_outcome


def save_losses(arms: dict[str, list[Path]], out: Path, file_format: str) -> None:
    """Saves a figure of several arms: the loss on every validation set, and the learning rate.

    If an arm has several runs (seeds), each run is a pale line; a strong line is their mean at the
    steps that all of them have reached.

    Args:
        arms: the run directories of each arm.
        out: the file; its folder is created.
        file_format: one of FIGURE_FORMATS.

    Raises:
        RewarmError: metrics cannot be read, or the file cannot be written.
    """
    try:
        save_figure(lambda: _loss_figure(arms), out, file_format=file_format)
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def _loss_figure(arms: dict[str, list[Path]]) -> Any:
    from matplotlib.figure import Figure

    outcomes = {
        (arm, number): outcome
        for arm, runs in arms.items()
        for number, run in enumerate(runs)
        if (outcome := read_outcome(run))
    }
    results = StudyResults(outcomes)
    names = results.validation_sets
    styles = {arm: line_style(i) for i, arm in enumerate(arms)}
    figure = Figure(layout="constrained")
    *panels, rate_axes = figure.subplots(1, len(names) + 1, squeeze=False).flat
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(f"{results.label(name)} loss (nats)", fontsize=10, loc="left")
        for arm in arms:
            histories = [outcomes[arm, seed].losses.get(name) for seed in results.seeds(arm)]
            losses = [
                {p.tokens: p.loss for p in history.points} for history in histories if history
            ]
            if losses:
                _draw_losses(axes, losses, styles[arm])
    rate_axes.set_title("learning rate", fontsize=10, loc="left")
    for arm, [run, *_] in arms.items():
        rate_axes.plot(*_applied_rates(run), **styles[arm])
    rate_axes.set_ylim(bottom=0)
    rate_axes.yaxis.set_major_formatter(lambda y, _: format_rate(y))
    for axes in (*panels, rate_axes):
        style_token_axes(axes)
    legend_lines = add_legend(figure, list(styles.items()))
    figure.set_size_inches(3.4 * len(names) + 3.4, 3.2 + 0.18 * legend_lines)
    return figure


def _draw_losses(axes: Any, runs: list[dict[int, float]], style: LineStyle) -> None:
    """Draws the mean loss of an arm's runs over tokens and, if there are several, each run's."""
    for losses in runs if len(runs) > 1 else []:
        axes.plot([*losses], [*losses.values()], color=style["color"], lw=0.8, alpha=0.35)
    shared_tokens = [tokens for tokens in runs[0] if all(tokens in losses for losses in runs)]
    means = [fmean(losses[tokens] for losses in runs) for tokens in shared_tokens]
    axes.plot(shared_tokens, means, **style)


def _applied_rates(run: Path) -> tuple[list[int], list[float]]:
    """Returns tokens and learning rates of all steps; of logged steps if the recipe is invalid."""
    try:
        curve = compute_curve("", load_saved_recipe(run / "recipe.yaml"), 1000)
    except RewarmError:
        lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]
        return [line["tokens"] for line in lines], [line["lr"] for line in lines]
    return [point.tokens for point in curve.points], [point.lr for point in curve.points]
