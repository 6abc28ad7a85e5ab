"""Losses on two validation sets against each other, as images of the page."""

from __future__ import annotations

from collections.abc import Iterator

from rewarm.plots.loss_scatter import ArmLosses, final_losses_svg, loss_trajectories_svg
from rewarm.report.collect_runs import CollectedRuns
from rewarm.report.html_tables import html_tables
from rewarm.report.html_writer import Markup, join, svg_image, tag
from rewarm.report.loss_tables import final_losses, fitted_lines_table, pareto_arms, set_pairs

_MAX_POINTS = 200  # of a trajectory; more would not be visible


def loss_scatter_section(collected: CollectedRuns) -> Markup:
    """Returns the images of all pairs of validation sets, and the table of fitted lines."""
    figures = [figure for pair in set_pairs(collected) for figure in _figures(collected, pair)]
    if not figures:
        return Markup()
    return join(tag("div", *figures, class_="charts"), html_tables(fitted_lines_table(collected)))


def _figures(collected: CollectedRuns, pair: tuple[str, str]) -> Iterator[Markup]:
    """Yields the images of a pair: final losses, if there are several arms, and trajectories."""
    x_set, y_set = pair
    x_label, y_label = f"{x_set} loss", f"{y_set} loss"
    losses = final_losses(collected, pair)
    arms = [
        ArmLosses(arm, index, losses[arm], _trajectory(collected, arm, pair))
        for index, arm in enumerate(collected.arms)
        if arm in losses
    ]
    if len(arms) > 1:
        front = pareto_arms(collected, pair)
        losses_text = "; ".join(
            f"{arm} {x.mean:.3f} and {y.mean:.3f}" for arm, (x, y) in losses.items()
        )
        yield _figure(
            f"Final losses on {y_set}",
            "Lower left is better. Filled: the Pareto front. Bars: standard error over seeds.",
            f"Final {x_set} and {y_set} loss: {losses_text}. Pareto front: {', '.join(front)}.",
            final_losses_svg(arms, front, x_label, y_label),
        )
    if any(len(arm.trajectory) > 1 for arm in arms):
        yield _figure(
            f"Loss trajectories on {y_set}",
            "The first seed of each arm, from its first evaluation to its last, the dot.",
            f"The {y_set} loss against the {x_set} loss; a table lists straight lines fitted to "
            "them.",
            loss_trajectories_svg(arms, x_label, y_label),
        )


def _figure(title: str, caption: str, alternative: str, svg: str) -> Markup:
    return tag(
        "figure",
        tag("figcaption", tag("h3", title), tag("p", caption)),
        svg_image(svg, f"{title}. {alternative}", "scatter"),
    )


def _trajectory(
    collected: CollectedRuns, arm: str, pair: tuple[str, str]
) -> list[tuple[float, float]]:
    """Returns the losses of an arm's first seed at the steps where both sets were evaluated."""
    [seed, *_] = collected.results.seeds(arm)
    x, y = (collected.results.history(arm, seed, name) for name in pair)
    if not (x and y):
        return []
    x_losses = {point.step: point.loss for point in x.points}
    losses = [(x_losses[point.step], point.loss) for point in y.points if point.step in x_losses]
    return losses[:: len(losses) // _MAX_POINTS + 1] + losses[-1:]
