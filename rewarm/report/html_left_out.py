"""The section of the page that compares predicted with measured losses."""

from __future__ import annotations

from rewarm.report.collect_runs import CollectedRuns
from rewarm.report.html_charts import chart_figure
from rewarm.report.html_tables import html_tables
from rewarm.report.html_writer import Markup, join, tag
from rewarm.report.left_out_losses import LeftOutLosses, left_out_note, left_out_tables


def left_out_section(collected: CollectedRuns, left_out: LeftOutLosses | None) -> Markup:
    """Returns the charts and tables of predicted losses; nothing if there are none."""
    if left_out is None:
        return Markup()
    names = list(left_out.arms.roles)
    figures = [figure for name in names for figure in _figures(collected, left_out, name)]
    return join(
        tag("p", left_out_note(left_out)),
        tag("div", *figures, class_="charts"),
        html_tables(*left_out_tables(left_out)),
    )


def _figures(collected: CollectedRuns, left_out: LeftOutLosses, name: str) -> list[Markup]:
    """Returns the charts of a validation set: both losses, and their differences."""
    index = collected.validation_sets.index(name)
    losses = {arm: predicted.losses[name] for arm, predicted in left_out.predicted.items()}
    last = "; ".join(
        f"{arm} {float(loss.predicted.loss[-1]):.3f}, measured {float(loss.measured[-1]):.3f}"
        for arm, loss in losses.items()
    )
    return [
        chart_figure(
            join(f"predicted {name} ", tag("span", "loss", class_="what")),
            join(tag("span", "nats per token; ", class_="unit"), "points: as measured"),
            f"Last losses as predicted: {last}.",
            chart="predicted",
            set_index=index,
        ),
        chart_figure(
            f"predicted − measured {name} loss",
            "nats per token",
            "Differences of the losses in the chart before it; the table below has the last ones.",
            chart="residual",
            set_index=index,
        ),
    ]
