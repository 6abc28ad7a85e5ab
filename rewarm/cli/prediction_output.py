"""The output of `rewarm predict`: tables, notes and JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewarm.plots.axes import format_rate
from rewarm.predict.accuracy import summarize
from rewarm.predict.prediction import LEVELS, FittedArms, Prediction
from rewarm.quantities import format_count
from rewarm.table_cells import (
    EMPTY,
    Cell,
    Table,
    interval_cell,
    number_cell,
    plural,
    tokens_cell,
)

_CURVE_ROWS = 8
_LEVEL = LEVELS[0]


def final_table(predictions: list[Prediction]) -> Table:
    """Returns the last losses of runs that were never made."""
    rows = [
        [
            Cell(prediction.name if index == 0 else ""),
            Cell(loss.name if loss.name == loss.role else f"{loss.name} ({loss.role})"),
            number_cell(float(loss.loss[0]), ".3f"),
            number_cell(float(loss.loss[-1]), ".3f"),
            interval_cell(*loss.final_interval(_LEVEL), ".3f"),
            number_cell(loss.nearest_final, ".3f"),
        ]
        for prediction in predictions
        for index, loss in enumerate(prediction.losses)
    ]
    columns = ["run", "loss on", "start", "end", f"{_LEVEL:.0%} interval", "nearest arm"]
    return Table("Predicted losses in nats", "", columns, rows)


def curve_table(prediction: Prediction) -> Table:
    """Returns the losses of a run along its training."""
    curve = prediction.curve
    rows = []
    for wanted in np.linspace(0, curve.run_steps, _CURVE_ROWS + 1):
        index = int(np.abs(curve.steps - wanted).argmin())
        step = int(curve.steps[index])
        rate = prediction.recipe.lr(step) if step else None
        cells = [
            cell
            for loss in prediction.losses
            for low, high in [loss.intervals[_LEVEL]]
            for cell in (
                number_cell(float(loss.loss[index]), ".3f"),
                interval_cell(float(low[index]), float(high[index]), ".3f"),
            )
        ]
        rate_cell = EMPTY if rate is None else Cell(format_rate(rate, 3), rate)
        rows.append([tokens_cell(step * prediction.recipe.batch.tokens), rate_cell, *cells])
    columns = ["tokens", "rate"]
    columns += [
        column for loss in prediction.losses for column in (loss.name, f"{loss.name} {_LEVEL:.0%}")
    ]
    return Table(f"Losses of {prediction.name}", "", columns, rows)


def accuracy_table(fitted: FittedArms) -> Table:
    """Returns the errors of the law and of the baselines on arms that were left out."""
    sets = fitted.law.model.sets
    rows = []
    for name, errors in fitted.left_out_errors().items():
        row = [Cell(name)]
        for validation_set in sets:
            summary = summarize(errors[validation_set])
            nats = f"{summary.mean_nats:.3f}/{summary.worst_nats:.3f}"
            percent = f"{summary.mean_relative:.1%}/{summary.worst_relative:.1%}"
            row += [Cell(nats, summary.mean_nats), Cell(percent, summary.mean_relative)]
        rows.append(row)
    columns = [column for name in sets for column in (f"{name} nats", f"{name} %")]
    return Table("Leave one arm out", "", ["predicted by", *columns], rows)


def fit_notes(fitted: FittedArms) -> list[str]:
    """Returns what the law was fitted to, a sentence each."""
    arms = fitted.arms
    probes = arms.probes
    lengths = [probe.curve.run_steps * arms.recipe.batch.tokens for probe in probes]
    peaks = [probe.curve.peak * arms.unit for probe in probes]
    shares = sorted({probe.replay for probe in probes})
    notes = [
        f"fitted to {plural(len(probes), 'arm')}: peaks {_span(peaks, format_rate)}, replay "
        f"{', '.join(f'{share:.3g}' for share in shares)}, "
        f"{_span(lengths, format_count)} tokens"
    ]
    notes += [
        f"{name} has the schedule, length and replay of {other}: both are one arm"
        for name, other in arms.merged.items()
    ]
    if not arms.base_is_known:
        notes.append(
            "the base's rates are not on record: rates count in units of the arms' highest, from a "
            f"last rate of {format_rate(arms.start * arms.unit)} (model.base_lr)"
        )
    notes += [
        f"{name}: not predicted, as it is neither upstream nor downstream"
        for name in arms.not_described
    ]
    return notes


def _span(values: list[float], text: Any) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def reach_notes(predictions: list[Prediction]) -> list[str]:
    """Returns how far predictions are outside of the arms, and which arm is nearest."""
    return [
        f"{prediction.name}: {note}"
        for prediction in predictions
        for note in (*prediction.reach.outside, f"the nearest arm is {prediction.nearest}")
    ]


ERRORS_NOTE = (
    "Errors of the last loss of each arm, predicted from all others: mean/worst, in nats and in "
    "percent of its change. Trust the law no further than its errors here, and no more than a "
    "baseline that has smaller ones."
)


def predictions_as_json(fitted: FittedArms, predictions: list[Prediction]) -> dict[str, Any]:
    """Returns everything that `rewarm predict` computes, as JSON."""
    return {
        "fit": {
            fit.model.form: {
                name: {"value": value, "factor": factor}
                for name, (value, factor) in fit.parameters.items()
            }
            for fit in (fitted.law, fitted.logarithmic)
        },
        "base": {"peak": fitted.arms.unit, "last": fitted.arms.start * fitted.arms.unit},
        "arms": [
            {
                "arm": probe.arm,
                "replay": probe.replay,
                "steps": int(probe.curve.run_steps),
                "peak": probe.curve.peak * fitted.arms.unit,
            }
            for probe in fitted.arms.probes
        ],
        "left out": {
            name: {
                validation_set: [error._asdict() for error in one]
                for validation_set, one in errors.items()
            }
            for name, errors in fitted.left_out_errors().items()
        },
        "predictions": [_prediction_json(prediction) for prediction in predictions],
        "notes": fit_notes(fitted),
    }


def _prediction_json(prediction: Prediction) -> dict[str, Any]:
    batch = prediction.recipe.batch.tokens
    return {
        "run": prediction.name,
        "replay": prediction.replay,
        "nearest arm": prediction.nearest,
        "outside": [*prediction.reach.notes, *prediction.reach.refusals],
        "steps": [int(step) for step in prediction.curve.steps],
        "tokens": [int(step) * batch for step in prediction.curve.steps],
        "losses": {
            loss.name: {
                "role": loss.role,
                "loss": loss.loss.tolist(),
                "nearest arm": loss.nearest_final,
                "intervals": {
                    f"{level:.0%}": [bound.tolist() for bound in loss.intervals[level]]
                    for level in LEVELS
                },
            }
            for loss in prediction.losses
        },
    }
