"""The tables of a report: what came of the arms, what was asked of them, and on what they ran."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

from rewarm.quantities import format_count, perplexity
from rewarm.report.collect_runs import CollectedRuns, JudgedClaim, RunRecord
from rewarm.study.comparison_rows import mean_cell
from rewarm.study.intervals import Estimate, estimate_mean
from rewarm.study.outcomes import Outcome, fit_line, pareto_front, same_batches
from rewarm.study.results_json import UPSTREAM
from rewarm.tables import (
    EMPTY,
    Cell,
    Table,
    count_cell,
    number_cell,
    plural,
    tokens_cell,
)


def final_loss(one: Outcome) -> float:
    """Returns the last loss."""
    return one.final


def final_losses_table(found: CollectedRuns) -> Table:
    """Returns the table that a reader wants first: the last losses, and how far they moved."""
    columns = ["arm", "runs"]
    new = [on for on in found.sets if _movement(found, on) == "adaptation"]
    for on in found.sets:
        several = "" if on == UPSTREAM or [on] == new else f"{on} "
        columns += [f"{on} loss", several + _movement(found, on)]
    rows = []
    for arm in found.arms:
        counted, every = len(found.results.seeds(arm)), len(found.of(arm))
        said = f"{counted}" if counted == every else f"{counted} of {every}"
        row = [Cell(arm), Cell(said, counted)]
        for on in found.sets:
            moved = _adaptation if _movement(found, on) == "adaptation" else _forgetting
            row.append(mean_cell(found.results.over_seeds(arm, on, final_loss)))
            row.append(mean_cell(found.results.over_seeds(arm, on, moved), sign=True))
        rows.append(row)
    about = (
        "Loss in nats per token at the last measurement; mean ± standard error over those of an "
        "arm's runs that are as far as its furthest."
    )
    if UPSTREAM in found.sets:
        about += " Forgetting: the rise of the upstream loss since before the first step."
    if new:
        about += " Adaptation: the fall of the loss on new data."
    return Table("Final losses", about, columns, rows)


def _movement(found: CollectedRuns, on: str) -> str:
    """Returns what a change of the loss on a set is called."""
    if on == UPSTREAM:
        return "forgetting"
    return "adaptation" if arms_trained_on(found, on) else "change"


def arms_trained_on(found: CollectedRuns, corpus: str) -> list[str]:
    """Returns the arms whose recipes have a corpus in their training data."""
    place = f"data.train.{corpus}."
    return [
        arm
        for arm in found.arms
        if any(name.startswith(place) for name in found.of(arm)[0].settings)
    ]


def _forgetting(one: Outcome) -> float:
    return one.forgetting


def _adaptation(one: Outcome) -> float:
    return one.adaptation


def validation_set_table(found: CollectedRuns, on: str) -> Table:
    """Returns all figures of the arms on a validation set."""
    others = [one for one in dict.fromkeys((found.reference, found.control)) if one]
    others = others if len(found.arms) > 1 else []
    columns = ["arm", "start", "final", *(f"vs {other}" for other in others), "perplexity"]
    columns += ["change", "bump", "bump at", "back at", "mean loss"]
    rows = []
    for arm in found.arms:
        over = _over(found, arm, on)
        if over(final_loss) is None:
            continue
        bump = over(lambda one: one.bump)
        rose = bump is not None and bump.mean > 0
        rows.append(
            [
                Cell(arm),
                mean_cell(over(lambda one: one.start)),
                mean_cell(over(final_loss)),
                *(
                    EMPTY if arm == other else mean_cell(_paired(found, arm, other, on), sign=True)
                    for other in others
                ),
                number_cell(_value(over(lambda one: perplexity(one.final))), ",.2f"),
                mean_cell(over(_forgetting), sign=True),
                mean_cell(bump, sign=True) if rose else Cell("none", 0.0),
                tokens_cell(_value(over(lambda one: one.top.tokens))) if rose else EMPTY,
                _back(found, arm, on),
                mean_cell(over(lambda one: one.area)),
            ]
        )
    about = (
        "Loss in nats per token; mean ± standard error over seeds. Bump: the highest rise above "
        "the start; back at: tokens from which the loss is down again; mean loss: over the run's "
        "tokens."
    )
    if others:
        about += (
            f" vs {' and '.join(others)}: difference of the final losses, paired by seed, where "
            "both arms have seen as many tokens."
        )
    if found.control is not None:
        about += f" {found.control} is the control, trained on old data."
    return Table(f"On {on}", about, columns, rows)


def claims_table(found: CollectedRuns) -> Table:
    """Returns the claims of the studies with their verdicts."""
    rows = [
        [Cell(one.verdict), Cell(words), Cell(one.claim), _effect(one), Cell(one.why)]
        for words, one in found.claims.items()
    ]
    about = (
        "The effect is the left side less the right one, with its 95 % interval over seeds; "
        "undecided where that has 0 in it."
    )
    return Table("Claims", about, ["verdict", "claim", "as written", "effect", "why"], rows)


def overtaking_table(found: CollectedRuns) -> Table:
    """Returns which arms overtake which others on the way, and where."""
    rows = [
        [Cell(on), Cell(arm), Cell(other), tokens_cell(tokens.mean, tokens.error)]
        for on in found.sets
        for arm in found.arms
        for other in found.arms
        if other != arm and (tokens := found.results.crossing(arm, other, on))
    ]
    about = (
        "The tokens from which the first arm's loss stays below the second's, having been above "
        "it, with every seed; mean ± standard error."
    )
    return Table("Overtaking", about, ["set", "arm", "overtakes", "from"], rows)


def set_pairs(found: CollectedRuns) -> list[tuple[str, str]]:
    """Returns the sets to set against each other: the old data's, and each other one."""
    sets = found.sets
    old = UPSTREAM if UPSTREAM in sets else sets[0] if sets else ""
    return [(old, on) for on in sets if on != old]


def final_losses(
    found: CollectedRuns, pair: tuple[str, str]
) -> dict[str, tuple[Estimate, Estimate]]:
    """Returns the final losses on two sets of the arms that were trained on the second's data.

    Of all arms, where no recipe names it so.
    """
    there = {
        arm: [found.results.over_seeds(arm, on, final_loss) for on in pair]
        for arm in arms_trained_on(found, pair[1]) or found.arms
    }
    return {arm: (x, y) for arm, (x, y) in there.items() if x and y}


def pareto_arms(found: CollectedRuns, pair: tuple[str, str]) -> list[str]:
    """Returns those of them that no other beats on both sets."""
    return pareto_front(
        {arm: (x.mean, y.mean) for arm, (x, y) in final_losses(found, pair).items()}
    )


def fitted_lines_table(found: CollectedRuns) -> Table:
    """Returns the straight lines of the losses on new data over those on the old."""
    rows = []
    results = found.results
    for pair in set_pairs(found):
        for arm in found.arms:
            fits = []
            for seed in results.seeds(arm):
                x, y = (results.outcome(arm, seed, on) for on in pair)
                if x and y and (fit := fit_line(x, y)):
                    fits.append(fit)
            if fits:
                figures = [mean_cell(estimate_mean(column)) for column in zip(*fits, strict=True)]
                rows.append([Cell(pair[1]), Cell(arm), *figures])
    over = set_pairs(found)[0][0] if rows else ""
    about = (
        f"The loss on a set as a straight line over the {over} loss at the same steps, by least "
        "squares; mean ± standard error over seeds."
    )
    return Table("Straight lines", about, ["set", "arm", "slope", "intercept", "r²"], rows)


def runs_table(found: CollectedRuns) -> Table:
    """Returns how far each run is, how fast it was, and the digest of its data."""
    rows = []
    for one in found.records:
        trained = one.of("train")
        speeds = [line["tokens_per_second"] for line in trained if line.get("tokens_per_second")]
        used = [line["mfu"] for line in trained if line.get("mfu")]
        last = trained[-1] if trained else {}
        rows.append(
            [
                Cell(one.arm),
                count_cell(one.seed),
                Cell(_state(one)),
                tokens_cell(last.get("tokens", 0)),
                number_cell(fmean(speeds) if speeds else None, ",.0f"),
                number_cell(fmean(used) if used else None, ".1%"),
                count_cell(sum(event["kind"] == "start" for event in one.events)),
                count_cell(int(last.get("skipped") or 0)),
                Cell(str(last.get("stream") or "")[:12]),
                Cell(str(one.directory)),
            ]
        )
    about = (
        "Speed and MFU are means over the logged steps; starts: how often a process began or went "
        "on; skipped: steps that were not applied; data: the digest of every token trained on."
    )
    columns = ["arm", "seed", "state", "tokens", "tokens/s", "MFU", "starts", "skipped", "data"]
    return Table("Runs", about, [*columns, "directory"], rows)


def _state(one: RunRecord) -> str:
    if one.is_done:
        return "complete"
    return f"step {one.step:,}" + (f" of {one.steps:,}" if one.steps else "")


def settings_table(found: CollectedRuns) -> Table:
    """Returns the settings in which the arms differ."""
    asked = {arm: found.of(arm)[0].settings for arm in found.arms}
    names = dict.fromkeys(name for one in asked.values() for name in one)
    rows = []
    for name in names:
        said = [_setting(one, name) for one in asked.values()]
        if len(set(said)) > 1 and name not in ("run", "seed"):
            usual = _setting(asked[found.reference], name)
            rows.append([Cell(name), *(Cell(one, quiet=one == usual) for one in said)])
    about = f"Every setting in which arms differ; all others are those of {found.reference}, below."
    return Table("Differences between the arms", about, ["setting", *asked], rows)


def same_batches_table(found: CollectedRuns) -> Table:
    """Returns which arms were trained on the very same tokens."""
    seeds: dict[str, list[str]] = {}
    for seed, groups in same_batches(found.results, found.arms).items():
        for group in groups:
            if len(group) > 1:
                seeds.setdefault(", ".join(group), []).append(str(seed))
    rows = [[Cell(group), Cell(", ".join(of))] for group, of in seeds.items()]
    about = (
        "Arms in one row were trained on the same tokens in the same order: the chained digests of "
        "all their batches are equal."
    )
    return Table("The same batches", about, ["arms", "seeds"], rows)


def environment_table(found: CollectedRuns) -> Table:
    """Returns the versions and devices that the runs recorded, and which rates were measured."""
    told: dict[tuple[str, str], Counter[str]] = {}
    for one in found.records:
        for what, value in dict.fromkeys(_environment(one)):
            told.setdefault((what, value), Counter())[one.arm] += 1
    rows = []
    for (what, value), arms in told.items():
        whose = ", ".join(arms)
        everyone = sum(arms.values()) == len(found.records)
        rows.append([Cell(what), Cell(value), Cell("all" if everyone else whose)])
    about = "As the runs recorded it when they began."
    return Table("Environment", about, ["what", "version", "runs"], rows)


def _environment(one: RunRecord) -> Iterator[tuple[str, str]]:
    for event in one.events:
        known = event.get("environment")
        if event["kind"] == "start" and isinstance(known, dict):
            yield from ((str(what), str(value)) for what, value in known.items())
    for model in one.lineage[-1:]:
        if model.schedule:
            said = (model.schedule.get(key, "?") for key in ("name", "distribution", "version"))
            yield "schedule", " ".join(said)


def applied_rates_sentence(found: CollectedRuns) -> str:
    """Returns a sentence on the rates that were measured on the weights."""
    measured = [
        (event["scheduled"], event["measured"])
        for one in found.records
        for event in one.events
        if event["kind"] == "rate"
        and all(isinstance(event.get(key), int | float) for key in ("scheduled", "measured"))
    ]
    if not measured:
        return ""
    worst = max((abs(a - b) / a if a else abs(b)) for a, b in measured)
    return (
        f"The rate was measured on the weights themselves at {len(measured):,} steps: it was the "
        f"scheduled one each time, to {worst:.1g} of its value."
    )


def events_table(found: CollectedRuns) -> Table:
    """Returns what the guard saw: steps not applied, spikes, stability gaps."""
    rows = [
        [
            Cell(one.arm),
            count_cell(one.seed),
            count_cell(line["step"]),
            Cell(str(line["kind"])),
            Cell(", ".join(f"{key} {_short(line[key])}" for key in line if key not in _KNOWN)),
        ]
        for one in found.records
        for line in one.lines
        if line["kind"] not in ("train", "evaluate")
    ]
    about = "Steps that were not applied, spikes of the loss, and the gap that re-warming tears."
    return Table("Remarks", about, ["arm", "seed", "step", "what", "details"], rows)


_KNOWN = ("kind", "step")


def summary_sentences(found: CollectedRuns) -> list[str]:
    """Returns what came of it all, in sentences."""
    done = sum(one.is_done for one in found.records)
    count = len(found.records)
    said = [
        f"{plural(len(found.arms), 'arm')}, {plural(count, 'run')}; "
        + (("all complete" if count > 1 else "complete") if done == count else f"{done} complete")
    ]
    last = [line["tokens"] for one in found.records for line in one.of("train")[-1:]]
    if last:
        least, most = format_count(min(last)), format_count(max(last))
        said[0] += f"; {least if least == most else f'{least} to {most}'} tokens each."
    verdicts = Counter(one.verdict for one in found.claims.values())
    if verdicts:
        told = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
        said.append(f"{plural(len(found.claims), 'claim')}: {told}.")
    for on in found.sets if len(found.arms) > 1 else []:
        over = {arm: found.results.over_seeds(arm, on, final_loss) for arm in found.arms}
        there = {arm: one for arm, one in over.items() if one}
        best = min(there, key=lambda arm: there[arm].mean)
        said.append(f"Lowest {on} loss: {best}, {mean_cell(there[best]).text} nats.")
    for pair in set_pairs(found):
        if len(final_losses(found, pair)) > 1:
            best = ", ".join(pareto_arms(found, pair))
            said.append(f"Pareto front of {pair[0]} and {pair[1]} loss: {best}.")
    said += [
        f"Trained on the very same batches: {row[0].text}."
        for row in same_batches_table(found).rows
    ]
    return said


def all_tables(found: CollectedRuns) -> list[Table]:
    """Returns all tables that have something in them, the summary's first."""
    tables = [
        *(final_losses_table(found), claims_table(found)),
        *(validation_set_table(found, on) for on in found.sets),
        *(
            overtaking_table(found),
            fitted_lines_table(found),
            settings_table(found),
            runs_table(found),
        ),
        *(same_batches_table(found), events_table(found), environment_table(found)),
    ]
    return [table for table in tables if table.rows]


def _over(
    found: CollectedRuns, arm: str, on: str
) -> Callable[[Callable[[Outcome], float]], Estimate | None]:
    return lambda figure: found.results.over_seeds(arm, on, figure)


def _paired(found: CollectedRuns, arm: str, other: str, on: str) -> Estimate | None:
    """Returns the difference of final losses, of arms that have seen as many tokens."""
    reached = {
        one.losses[-1].tokens
        for name in (arm, other)
        for seed in found.results.seeds(name)
        if (one := found.results.outcome(name, seed, on))
    }
    return found.results.paired(arm, other, on, final_loss) if len(reached) == 1 else None


def _back(found: CollectedRuns, arm: str, on: str) -> Cell:
    """Returns from how many tokens on the loss was back where it started, over the seeds."""
    there = [found.results.outcome(arm, seed, on) for seed in found.results.seeds(arm)]
    tokens = [one.recovered for one in there if one is not None]
    back = [one for one in tokens if one is not None]
    if len(back) < len(tokens):
        return Cell(f"not ({len(back)} of {len(tokens)})" if back else "not", math.inf)
    return tokens_cell(fmean(back)) if any(back) else Cell("—", 0.0)


def _effect(one: JudgedClaim) -> Cell:
    if one.effect is None:
        return EMPTY
    low_high = one.effect.interval
    interval = f" [{low_high[0]:+.4f}, {low_high[1]:+.4f}]" if low_high else ""
    return Cell(f"{one.effect.mean:+.4f}{interval}", one.effect.mean)


def _value(found: Estimate | None) -> float | None:
    return found.mean if found else None


def _setting(settings: dict[str, Any], name: str) -> str:
    """Returns a setting as a recipe would say it."""
    if name not in settings:
        return "—"
    value = settings[name]
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
