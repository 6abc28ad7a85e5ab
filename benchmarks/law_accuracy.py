"""The errors of the law of `rewarm predict`, and of what it is compared with, on a study's arms.

    python benchmarks/law_accuracy.py [docs/cpu-mini.html | runs/cpu-mini] [--halves 20]

Reads the curves of all arms and seeds from a page that `rewarm report` wrote, or from the run
directories. Prints three tables in Markdown, which docs/predict.md has: errors of the last loss for
each arm, predicted from all others; the same for one half of the arms, predicted from the other
half; and how many measured changes the intervals contain. Pairs of arms count that differ by more
than two standard errors of their seeds: how many of them are ranked right. The arms are those of
cpu-mini that train on the downstream or on the upstream corpus from the last checkpoint of the
base, but for no-shift-double, whose rise the law does not describe.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewarm.predict.accuracy import (
    ErrorSummary,
    FinalError,
    Predictor,
    error_scales,
    final_errors,
    leave_one_out,
    left_out_errors,
    nearest_change,
    predict_change,
    ranked_pairs,
    summarize,
)
from rewarm.predict.fit import Probe, fit_model
from rewarm.predict.law import Array, rate_curve
from rewarm.predict.loss_models import LawModel, LossModel, PublishedModel, TokensModel

REPLAY = {
    **dict.fromkeys(["rewarm", "no-warmup", "warmup-1", "warmup-10"], 0.0),
    **{"half": 0.0, "double": 0.0, "constant": 0.0, "replay-5": 0.05, "replay-25": 0.25},
    **{"no-shift": 1.0, "no-shift-constant": 1.0},
}
"""The share of upstream text in each arm, as recipes/cpu-mini.yaml states it."""
BASE_PEAK, BASE_LAST = 2e-3, 2e-4  # of recipes/cpu-mini-base.yaml
SETS = {"upstream": "0", "downstream": "1"}
"""The validation sets, and their indices in the page."""
LEVELS = (0.8, 0.95)

Spreads = Mapping[str, Mapping[str, float]]
"""The standard errors of the arms' last losses, in nats, by validation set and arm."""
Fitter = Callable[[Sequence[Probe]], Predictor]


class MeasuredRun(NamedTuple):
    """The learning rates and losses of a run."""

    rates: Array
    """Of each step."""
    steps: list[int]
    losses: dict[str, Array]
    """By validation set, at these steps; the first is step 0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=Path("docs/cpu-mini.html"))
    parser.add_argument("--halves", type=int, default=20, help="random halves of the arms")
    parser.add_argument("--coverage", action="store_true", help="print the last table only")
    options = parser.parse_args()
    read = runs_of_page if options.source.is_file() else runs_of_study
    runs_of = {arm: runs for arm, runs in read(options.source) if arm in REPLAY}
    probes = [probe_of(arm, runs) for arm, runs in runs_of.items()]
    spreads = seed_errors(runs_of)
    halves = list(random_halves(probes, options.halves))
    if not options.coverage:
        print_parameters(probes)
        print_left_out(probes, spreads)
        print_halves(halves, spreads)
    print_coverage(probes, halves)


def runs_of_page(page: Path) -> Iterator[tuple[str, list[MeasuredRun]]]:
    """Yields each arm's runs in a page of `rewarm report`: see rewarm/report/chart_data.py."""
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    data = json.loads(re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL)[0])

    def column(index: int) -> Array:
        factor, divisor, differences = data["columns"][index]
        return np.array(list(accumulate(differences)), dtype=np.float64) * factor / divisor

    for arm in data["arms"]:
        yield (
            arm["name"],
            [
                MeasuredRun(
                    column(run["schedule"]["lr"]),
                    [int(step) for step in column(run["evaluate"]["step"])],
                    {name: column(run["evaluate"]["sets"][key]) for name, key in SETS.items()},
                )
                for run in arm["runs"]
            ],
        )


def runs_of_study(folder: Path) -> Iterator[tuple[str, list[MeasuredRun]]]:
    """Yields each arm's runs in a study's folder."""
    from rewarm.report.collect_runs import RunRecord, collect_runs

    def measured(record: RunRecord) -> MeasuredRun:
        assert record.recipe
        lines = record.evaluations
        return MeasuredRun(
            np.array([record.recipe.lr(step) for step in range(1, record.recipe.steps + 1)]),
            [line["step"] for line in lines],
            {name: np.array([line[f"{name}/loss"] for line in lines]) for name in SETS},
        )

    collected = collect_runs([folder])
    for arm in collected.arms:
        if arm in REPLAY:
            yield arm, [measured(record) for record in collected.records_of(arm)]


def probe_of(arm: str, runs: list[MeasuredRun]) -> Probe:
    """Returns the mean over an arm's seeds, counted from before step 1."""
    means = {name: np.mean([run.losses[name] for run in runs], axis=0) for name in SETS}
    curve = rate_curve(runs[0].rates / BASE_PEAK, runs[0].steps[1:])
    changes = {name: losses[1:] - losses[0] for name, losses in means.items()}
    return Probe(arm, curve, REPLAY[arm], changes)


def seed_errors(runs_of: Mapping[str, list[MeasuredRun]]) -> Spreads:
    """Returns the standard errors of the last losses over seeds, in nats."""
    return {
        name: {
            arm: float(np.std([run.losses[name][-1] for run in runs], ddof=1) / np.sqrt(len(runs)))
            for arm, runs in runs_of.items()
        }
        for name in SETS
    }


def law(form: Any) -> LawModel:
    return LawModel(("upstream",), ("downstream",), BASE_LAST / BASE_PEAK, form)


def fitter(model: LossModel) -> Fitter:
    return lambda probes: fit_model(model, probes).change


def fitters() -> dict[str, Fitter]:
    published = partial(PublishedModel, ("upstream",), ("downstream",), BASE_LAST / BASE_PEAK)
    return {
        "nearest arm": lambda probes: partial(nearest_change, law("saturating"), probes),
        "power law in tokens": fitter(TokensModel(("upstream",), ("downstream",))),
        "published form (2505.07796), λ free, e^(−qr)": fitter(published(exponential_replay=True)),
        "published form, λ free, with g(r)": fitter(published()),
        "published form, λ = 0.99, with g(r)": fitter(published(0.01)),
        "the law, logarithmic": fitter(law("logarithmic")),
        "**the law, saturating**": fitter(law("saturating")),
    }


def random_halves(probes: list[Probe], count: int) -> Iterator[tuple[list[Probe], list[Probe]]]:
    """Yields halves of the arms to fit and to predict; both have some with replay."""
    if sum(0 < probe.replay < 1 for probe in probes) < 2:
        raise SystemExit("two arms with replay are needed, one for each half")
    random = np.random.default_rng(0)
    while count:
        order = random.permutation(len(probes))
        half = [probes[i] for i in order[: (len(probes) + 1) // 2]]
        rest = [probes[i] for i in order[len(half) :]]
        if all(any(0 < probe.replay < 1 for probe in part) for part in (half, rest)):
            count -= 1
            yield half, rest


def print_parameters(probes: list[Probe]) -> None:
    print("| parameter | saturating | × or ÷ | logarithmic | × or ÷ |\n|---|--:|--:|--:|--:|")
    fits = [fit_model(law(form), probes).parameters for form in ("saturating", "logarithmic")]
    for (name, first), (other, second) in zip(*(fit.items() for fit in fits), strict=True):
        label = name if name == other else f"{name}, {other.split()[-1]}"
        print(f"| {label} | {first[0]:.3g} | {first[1]:.2f} | {second[0]:.3g} | {second[1]:.2f} |")
    print()


def print_left_out(probes: list[Probe], spreads: Spreads) -> None:
    rows = {name: left_out_errors(fit, probes, list(SETS)) for name, fit in fitters().items()}
    groups = {name: {key: [errors] for key, errors in row.items()} for name, row in rows.items()}
    print_errors("leave one arm out", groups, spreads)
    print("| arm | upstream | predicted | downstream | predicted |\n|---|--:|--:|--:|--:|")
    for old, new in zip(*(rows["**the law, saturating**"][name] for name in SETS), strict=True):
        cells = [f"{number:+.3f}" for number in (*old[:0:-1], *new[:0:-1])]
        print(f"| {' | '.join([old.arm, *cells])} |")
    print()


def print_halves(halves: list[tuple[list[Probe], list[Probe]]], spreads: Spreads) -> None:
    rows = {}
    for name, fit in fitters().items():
        predicted = [(fit(half), rest) for half, rest in halves]
        rows[name] = {
            key: [final_errors(predict, rest, key) for predict, rest in predicted] for key in SETS
        }
    print_errors(f"fit half, predict half ({len(halves)} random halves)", rows, spreads)


def print_errors(
    title: str, rows: dict[str, dict[str, list[list[FinalError]]]], spreads: Spreads
) -> None:
    """Prints a table of errors, of groups of arms that are ranked among themselves."""
    heads = " | ".join(f"{name} | rank | pairs" for name in SETS)
    print(f"| {title} | {heads} |\n|---|{'--:|' * 3 * len(SETS)}")
    for name, groups in rows.items():
        print(f"| {name} | {' | '.join(group_cells(groups[key], spreads[key]) for key in SETS)} |")
    print()


def group_cells(groups: list[list[FinalError]], spreads: Mapping[str, float]) -> str:
    """Returns the errors, the rank correlation, and the pairs of arms that are ranked right."""
    pairs = np.sum([ranked_pairs(errors, spreads) for errors in groups], axis=0)
    cells = summary_cells(summarize([error for errors in groups for error in errors]))
    return f"{cells} | {pairs[0]} of {pairs[1]}"


def summary_cells(summary: ErrorSummary) -> str:
    nats = f"{summary.mean_nats:.3f}/{summary.worst_nats:.3f}"
    percent = f"{summary.mean_relative:.1%}/{summary.worst_relative:.1%}"
    return f"{nats}, {percent} | {summary.rank_correlation:.3f}"


def print_coverage(probes: list[Probe], halves: list[tuple[list[Probe], list[Probe]]]) -> None:
    """Prints how many of the last losses are inside of their intervals.

    These are from the errors of arms left out of the fitted ones, and know nothing of the arm.
    """
    one_left_out = [
        ([other for other in probes if other is not probe], [probe])
        for probe in probes
        if probe.replay < 1
    ]
    columns = [f"{name} {level:.0%}" for name in SETS for level in LEVELS]
    print(f"| intervals | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for title, splits in {"leave one arm out": one_left_out, "fit half": halves}.items():
        hits: dict[tuple[str, float], list[bool]] = {}
        for fitted, rest in splits:
            fit = fit_model(law("saturating"), fitted)
            scales = error_scales(fit.model, leave_one_out(fit, fitted))
            for probe in (probe for probe in rest if probe.replay < 1):
                for name in SETS:
                    change = predict_change(fit, scales[name], name, probe.curve, probe.replay)
                    for level in LEVELS:
                        low, high = (bound[-1] for bound in change.interval(level))
                        inside = low <= probe.changes[name][-1] <= high
                        hits.setdefault((name, level), []).append(bool(inside))
        cells = [f"{np.mean(hits[name, level]):.0%}" for name in SETS for level in LEVELS]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
