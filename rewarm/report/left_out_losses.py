"""The law of `rewarm.predict`, fitted to the arms of a report: each predicted from all others."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

from rewarm.errors import CheckpointError
from rewarm.predict.accuracy import summarize
from rewarm.predict.arms import MeasuredRun, StudiedArms, comparable_runs, study_arms
from rewarm.predict.left_out import LeftOutArm, predict_left_out
from rewarm.predict.prediction import LEVELS, fit_form
from rewarm.report.collect_runs import CollectedRuns
from rewarm.study.run_outcomes import outcome_from_metrics
from rewarm.table_cells import Cell, Table, interval_cell, number_cell

_LEVEL = LEVELS[0]


class LeftOutLosses(NamedTuple):
    """The losses of arms, each predicted from all others."""

    arms: StudiedArms
    predicted: dict[str, LeftOutArm]
    """By arm; those that train on new data."""
    not_compared: list[str]
    """The arms that the same law cannot describe, or that are not finished."""


def measured_runs(collected: CollectedRuns) -> list[MeasuredRun]:
    """Returns the runs that have losses, as `study_arms` needs them."""
    runs = []
    for record in collected.records:
        outcome = outcome_from_metrics(record.lines, record.state, record.settings)
        lineage = record.state.lineage if record.state else []
        if outcome:
            runs.append(MeasuredRun(record.arm, record.directory, record.recipe, outcome, lineage))
    return runs


def predict_left_out_losses(collected: CollectedRuns) -> LeftOutLosses | None:
    """Returns the losses of the arms that compare with the reference, each predicted from the rest.

    None if the law cannot be fitted to them: see `study_arms`.
    """
    runs = comparable_runs(collected.reference, measured_runs(collected))
    if not runs:
        return None
    try:
        arms = study_arms(runs)
    except CheckpointError:
        return None
    compared = {run.arm for run in runs}
    return LeftOutLosses(
        arms,
        {arm.probe.arm: arm for arm in predict_left_out(arms, cache(partial(fit_form, arms)))},
        [arm for arm in collected.arms if arm not in compared],
    )


def left_out_note(losses: LeftOutLosses) -> str:
    """Returns sentences that say how the predictions were made."""
    note = (
        "Each arm is predicted without its own losses: the law of docs/predict.md is fitted to all "
        "other arms, and computes this arm's losses from its learning rates and share of replay."
    )
    for name, other in losses.arms.merged.items():
        note += f" {name} has the schedule, length and replay of {other}: both are one arm."
    if losses.not_compared:
        note += (
            f" Not among them: {', '.join(losses.not_compared)}. One law is for finished arms that "
            "have the base, the new data and the batch in common."
        )
    return note


def left_out_tables(losses: LeftOutLosses) -> list[Table]:
    """Returns a table of the predicted and the measured last losses for each validation set."""
    return [_table(losses, name) for name in losses.arms.roles]


def _table(losses: LeftOutLosses, name: str) -> Table:
    """Returns a table of the predicted and the measured last losses on a validation set."""
    rows, errors = [], []
    for arm, predicted in losses.predicted.items():
        loss, error = predicted.losses[name], predicted.losses[name].final_error(arm)
        errors.append(error)
        rows.append(
            [
                Cell(arm),
                number_cell(float(loss.predicted.loss[-1]), ".4f"),
                interval_cell(*loss.predicted.final_interval(_LEVEL), ".4f"),
                number_cell(float(loss.measured[-1]), ".4f"),
                number_cell(error.nats, "+.4f"),
                number_cell(error.relative, ".1%"),
                Cell("; ".join(predicted.reach.notes)),
            ]
        )
    summary = summarize(errors)
    inside = sum(arm.losses[name].is_inside(_LEVEL) for arm in losses.predicted.values())
    caption = (
        f"The last {name} loss in nats per token. Difference: predicted less measured, and its "
        f"size in percent of the measured change since before step 1: {summary.mean_nats:.4f} nats "
        f"and {summary.mean_relative:.1%} on average, {summary.worst_nats:.4f} nats and "
        f"{summary.worst_relative:.1%} at most. {inside} of {len(rows)} measured losses are within "
        "their interval."
    )
    columns = ["arm", "predicted", f"{_LEVEL:.0%} interval", "measured", "difference", "of change"]
    outside = "outside of the other arms"
    return Table(f"Predicted {name} loss", caption, [*columns, outside], rows)
