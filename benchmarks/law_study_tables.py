"""The tables and the figure of the law study: what was predicted, and what was measured.

    python benchmarks/law_study_tables.py [--figure docs/law-study.png]

Reads docs/law-study/predictions-*.json, which were committed before the test arms were trained, and
docs/law-study/curves.json, the losses that all arms then had. Prints the tables of docs/predict.md.
Trains and fits nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from law_accuracy import LEVELS, group_cells

from rewarm.predict.accuracy import FinalError

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "law-study"
SHIFTS = ("downstream", "german")
PROBES = (3, 4)
SETS = {"upstream": "upstream", "new": "new data"}
"""The validation sets, and their names in the tables."""
METHODS = {
    "nearest arm": "nearest arm",
    "power law in tokens": "power law in tokens",
    "published form": "published form, λ free, with g(r)",
    "logarithmic form": "the law, logarithmic",
    "law": "**the law, saturating**",
}
"""What the predictions are by, and its name in the tables."""


class Measured(NamedTuple):
    """The change of a loss at the end of an arm, in nats."""

    mean: float
    """Over seeds."""
    standard_error: float
    seeds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    print("\n\n".join(tables()))
    if options.figure:
        save_scatter(options.figure)


def tables() -> Iterator[str]:
    """Yields the tables in Markdown."""
    curves = json.loads((RESULTS / "curves.json").read_text(encoding="utf-8"))
    for shift in SHIFTS:
        measured = measured_changes(curves[shift])
        predictions = {count: read_predictions(shift, count, curves[shift]) for count in PROBES}
        for count, arms in predictions.items():
            later = read_predictions(shift, count, curves[shift], when="later")
            yield error_table(f"{shift}, from {count} probes", arms, later, measured)
        yield arm_table(shift, predictions, measured)
    yield coverage_table(curves)


def read_predictions(
    shift: str, count: int, arms: Iterable[str] = (), *, when: str = "predictions"
) -> dict[str, Any]:
    """Returns what was predicted from some number of probes: of all arms, or of some.

    Args:
        shift: the shift.
        count: the number of probes.
        arms: the test arms; by default all.
        when: `predictions`, before the test arms were trained, or `later`, by a later law.
    """
    path = RESULTS / f"{when}-{shift}-{count}.json"
    predictions: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["arms"]
    return {arm: one for arm, one in predictions.items() if not arms or arm in arms}


def measured_changes(arms: dict[str, Any]) -> dict[str, dict[str, Measured]]:
    """Returns the changes by validation set and arm.

    An arm with a single seed has the standard error of the others: the root of their mean variance.
    """
    measured = {}
    for key in SETS:
        finals = {
            arm: [run[key][-1] - run[key][0] for run in content["losses"].values()]
            for arm, content in arms.items()
        }
        variances = [np.var(values, ddof=1) for values in finals.values() if len(values) > 1]
        common = float(np.mean(variances)) if variances else float("nan")
        measured[key] = {
            arm: Measured(
                float(np.mean(values)),
                float(
                    np.sqrt((np.var(values, ddof=1) if len(values) > 1 else common) / len(values))
                ),
                len(values),
            )
            for arm, values in finals.items()
        }
    return measured


def final_errors(
    arms: dict[str, Any], method: str, key: str, measured: dict[str, Measured]
) -> list[FinalError]:
    """Returns the errors of one way to predict on a validation set."""
    return [
        FinalError(
            arm,
            prediction[key]["change"] if method == "law" else prediction[key],
            measured[arm].mean,
        )
        for arm, content in arms.items()
        for prediction in [content[method]]
    ]


def error_table(
    title: str,
    arms: dict[str, Any],
    later: dict[str, Any],
    measured: dict[str, dict[str, Measured]],
) -> str:
    heads = " | ".join(f"{name} | rank | pairs" for name in SETS.values())
    lines = [f"| {title} | {heads} |", f"|---|{'--:|' * 3 * len(SETS)}"]
    rows = [(name, method, arms) for method, name in METHODS.items()]
    rows.append(("a later fit: today's priors", "law", later))
    for name, method, some in rows:
        lines.append(f"| {name} | {error_cells(some, method, measured)} |")
        if method == "law":
            within = {arm: content for arm, content in some.items() if not content["refused"]}
            lines.append(f"| … within its limits | {error_cells(within, method, measured)} |")
    return "\n".join(lines)


def error_cells(arms: dict[str, Any], method: str, measured: dict[str, dict[str, Measured]]) -> str:
    cells = [
        group_cells(
            [final_errors(arms, method, key, measured[key])],
            {arm: one.standard_error for arm, one in measured[key].items()},
        )
        for key in SETS
    ]
    return " | ".join(cells)


def arm_table(
    shift: str, predictions: dict[int, dict[str, Any]], measured: dict[str, dict[str, Measured]]
) -> str:
    heads = [f"{name} | {' | '.join(f'from {n}' for n in PROBES)}" for name in SETS.values()]
    lines = [f"| {shift} | seeds | {' | '.join(heads)} |", f"|---|{'--:|' * 7}"]
    for arm in predictions[PROBES[0]]:
        cells = [arm, str(measured["upstream"][arm].seeds)]
        for key in SETS:
            change = measured[key][arm]
            cells.append(f"{change.mean:+.3f} ± {change.standard_error:.3f}")
            for count in PROBES:
                prediction = predictions[count][arm]["law"][key]
                missed = "" if contains(prediction, LEVELS[1], change.mean) else " !"
                cells.append(f"{prediction['change']:+.3f}{missed}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def coverage_table(curves: dict[str, Any]) -> str:
    columns = [f"{name} {level:.0%}" for name in SETS.values() for level in LEVELS]
    lines = [f"| intervals | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for shift in SHIFTS:
        measured = measured_changes(curves[shift])
        for count in PROBES:
            for when, label in (("predictions", ""), ("later", ", a later fit")):
                arms = read_predictions(shift, count, curves[shift], when=when)
                cells = coverage_cells(arms, measured)
                lines.append(f"| {shift}, from {count} probes{label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def coverage_cells(arms: dict[str, Any], measured: dict[str, dict[str, Measured]]) -> Iterator[str]:
    """Yields how many arms are inside of their intervals, by validation set and level."""
    for key in SETS:
        for level in LEVELS:
            inside = [
                contains(content["law"][key], level, measured[key][arm].mean)
                for arm, content in arms.items()
            ]
            yield f"{sum(inside)} of {len(inside)}"


def contains(prediction: dict[str, Any], level: float, change: float) -> bool:
    """Returns whether an interval of a prediction contains a change."""
    low, high = prediction[f"{level:.0%}"]
    return bool(low <= change <= high)


def save_scatter(out: Path) -> None:
    """Saves a figure: the changes that were predicted from four probes, against those measured."""
    from rewarm.plots.figure_style import save_figure

    save_figure(scatter, out, file_format=out.suffix.removeprefix("."))


def scatter() -> Any:
    from matplotlib.figure import Figure

    from rewarm.plots.figure_style import COLORS, add_legend, style_axes

    curves = json.loads((RESULTS / "curves.json").read_text(encoding="utf-8"))
    figure = Figure(layout="constrained", figsize=(8, 4.4))
    styles = {
        shift: {"color": color, "marker": marker, "ms": 4, "ls": ""}
        for shift, color, marker in zip(SHIFTS, COLORS, "os", strict=False)
    }
    for axes, (key, name) in zip(figure.subplots(1, len(SETS)), SETS.items(), strict=True):
        axes.set_title(f"change of the loss on {name} (nats)", fontsize=10, loc="left")
        axes.axline((0, 0), slope=1, color="0.7", lw=0.8)
        for shift in SHIFTS:
            measured = measured_changes(curves[shift])[key]
            for arm, content in read_predictions(shift, PROBES[-1], measured).items():
                prediction = content["law"][key]
                x, y = measured[arm].mean, prediction["change"]
                axes.plot([x], [y], **styles[shift])
                axes.plot([x, x], prediction["80%"], color=styles[shift]["color"], lw=1)
        axes.set_xlabel("measured")
        axes.set_ylabel("predicted, 80% interval")
        style_axes(axes)
    add_legend(figure, list(styles.items()))
    return figure


if __name__ == "__main__":
    main()
