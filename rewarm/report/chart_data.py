"""The curves of a report as JSON for its script: compact, and safe inside a page.

Numbers are rounded and stored as differences. A column that several runs share, such as their
tokens, is stored once.
"""

from __future__ import annotations

import json
import math
from typing import Any

from rewarm.report.collect_runs import CollectedRuns, JsonLine, RunRecord
from rewarm.report.left_out_losses import LeftOutLosses
from rewarm.report.rate_curves import RatePoint, applied_rates, scheduled_rates

_LOSS_RESOLUTION = 1e-6  # nats; the page averages seeds, and rounds the mean to 1e-4


def chart_data_json(collected: CollectedRuns, left_out: LeftOutLosses | None = None) -> str:
    """Returns the curves as JSON, escaped so that no name can close the script element."""
    columns = PackedColumns()
    arms = [
        {
            "name": arm,
            "runs": [
                _run_data(record, collected.validation_sets, columns)
                for record in collected.records_of(arm)
            ],
            **_predicted_data(left_out, arm, collected.validation_sets, columns),
        }
        for arm in collected.arms
    ]
    text = f'{{"columns":{columns},"arms":{json.dumps(arms, separators=(",", ":"))}}}'
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


class PackedColumns:
    """Columns of numbers as differences of rounded values; equal columns are stored once.

    Each column is [factor, divisor, differences]: value i is the sum of the first i differences,
    times factor, over divisor. A difference of null stands for a missing value.
    """

    def __init__(self) -> None:
        self._indices: dict[str, int] = {}

    def add(self, values: list[float | None], factor: int, divisor: int) -> int:
        """Stores a column and returns its index."""
        previous, differences = 0, []
        for value in values:
            if value is None:
                differences.append("null")
            else:
                rounded = round(value * divisor / factor)
                differences.append(str(rounded - previous))
                previous = rounded
        column = f"[{factor},{divisor},[{','.join(differences)}]]"
        return self._indices.setdefault(column, len(self._indices))

    def add_counts(self, values: list[int]) -> int:
        """Stores a column of whole numbers, exactly, and returns its index."""
        return self.add([*values], math.gcd(*values) or 1, 1)

    def add_losses(self, values: list[float | None]) -> int:
        """Stores a column of losses in nats, rounded to 1e-6, and returns its index."""
        return self.add(values, 1, round(1 / _LOSS_RESOLUTION))

    def add_rates(self, values: list[float | None]) -> int:
        """Stores a column of learning rates, to 1e-4 of the highest, and returns its index."""
        highest = max((value for value in values if value), default=1.0)
        return self.add(values, 1, 10 ** max(0, 4 - math.floor(math.log10(highest))))

    def __str__(self) -> str:
        return f"[{','.join(self._indices)}]"


def _run_data(
    record: RunRecord, validation_sets: list[str], columns: PackedColumns
) -> dict[str, Any]:
    train_lines, evaluations = record.lines_of("train"), record.evaluations
    losses = {
        index: columns.add_losses([line.get(f"{name}/loss") for line in evaluations])
        for index, name in enumerate(validation_sets)
        if any(f"{name}/loss" in line for line in evaluations)
    }
    return {
        "evaluate": _x_columns(evaluations, columns) | {"sets": losses},
        "train": _x_columns(train_lines, columns)
        | {
            "loss": columns.add_losses([line.get("loss") for line in train_lines]),
        },
        "schedule": _rate_columns(scheduled_rates(record), columns),
        "applied": _rate_columns(applied_rates(record), columns),
    }


def _predicted_data(
    left_out: LeftOutLosses | None, arm: str, validation_sets: list[str], columns: PackedColumns
) -> dict[str, Any]:
    """Returns the predicted and measured losses of an arm, if it was predicted."""
    if left_out is None or arm not in left_out.predicted:
        return {}
    predicted, batch = left_out.predicted[arm], left_out.arms.recipe.batch.tokens
    steps = [int(step) for step in predicted.probe.curve.steps]
    losses = {
        validation_sets.index(name): {
            "predicted": columns.add_losses(loss.predicted.loss.tolist()),
            "measured": columns.add_losses(loss.measured.tolist()),
        }
        for name, loss in predicted.losses.items()
    }
    x = {
        "step": columns.add_counts(steps),
        "tokens": columns.add_counts([step * batch for step in steps]),
    }
    return {"left_out": x | {"sets": losses}}


def _x_columns(lines: list[JsonLine], columns: PackedColumns) -> dict[str, int]:
    return {
        "step": columns.add_counts([line["step"] for line in lines]),
        "tokens": columns.add_counts([line["tokens"] for line in lines]),
    }


def _rate_columns(points: list[RatePoint], columns: PackedColumns) -> dict[str, int]:
    return {
        "step": columns.add_counts([point.step for point in points]),
        "tokens": columns.add_counts([point.tokens for point in points]),
        "lr": columns.add_rates([point.lr for point in points]),
    }
