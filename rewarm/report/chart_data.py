"""The curves of a report as data for its script: JSON in few characters, and nothing but text.

Numbers are rounded, stored as differences, and a column that runs share, such as their tokens, is
there once.
"""

from __future__ import annotations

import json
import math
from typing import Any

from rewarm.report.collect_runs import CollectedRuns, MetricsLine, RunRecord

_LOSS = 1e-4  # nats: more digits of a loss than a curve shows


def chart_data_json(found: CollectedRuns) -> str:
    """Returns the curves' data as JSON that no name in it can break out of."""
    columns = PackedColumns()
    arms = [
        {"name": arm, "runs": [_run(one, found.sets, columns) for one in found.of(arm)]}
        for arm in found.arms
    ]
    said = f'{{"columns":{columns},"arms":{json.dumps(arms, separators=(",", ":"))}}}'
    for sign in "<>&\u2028\u2029":
        said = said.replace(sign, f"\\u{ord(sign):04x}")
    return said


class PackedColumns:
    """Numbers in few characters: the differences of rounded values; the same column is kept once.

    As [factor, divisor, differences]: a value is the sum up to it, times factor, over divisor.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def add(self, values: list[float | None], factor: int, divisor: int) -> int:
        """Keeps a column and returns its place."""
        before, differences = 0, []
        for value in values:
            if value is None:
                differences.append("null")
            else:
                rounded = round(value * divisor / factor)
                differences.append(str(rounded - before))
                before = rounded
        written = f"[{factor},{divisor},[{','.join(differences)}]]"
        return self._places.setdefault(written, len(self._places))

    def counts(self, values: list[int]) -> int:
        """Keeps whole numbers."""
        return self.add([*values], math.gcd(*values) or 1, 1)

    def losses(self, values: list[float | None]) -> int:
        """Keeps losses in nats."""
        return self.add(values, 1, round(1 / _LOSS))

    def rates(self, values: list[float | None]) -> int:
        """Keeps rates, to a ten thousandth of the highest."""
        top = max((one for one in values if one), default=1.0)
        return self.add(values, 1, 10 ** max(0, 4 - math.floor(math.log10(top))))

    def __str__(self) -> str:
        return f"[{','.join(self._places)}]"


def _run(one: RunRecord, sets: list[str], columns: PackedColumns) -> dict[str, Any]:
    trained, measured = one.of("train"), one.of("evaluate")
    losses = {
        index: columns.losses([line.get(f"{on}/loss") for line in measured])
        for index, on in enumerate(sets)
        if any(f"{on}/loss" in line for line in measured)
    }
    return {
        "evaluate": _places(measured, columns) | {"sets": losses},
        "train": _places(trained, columns)
        | {
            "loss": columns.losses([line.get("loss") for line in trained]),
            "lr": columns.rates([line.get("lr") for line in trained]),
        },
    }


def _places(lines: list[MetricsLine], columns: PackedColumns) -> dict[str, int]:
    return {
        "step": columns.counts([line["step"] for line in lines]),
        "tokens": columns.counts([line["tokens"] for line in lines]),
    }
