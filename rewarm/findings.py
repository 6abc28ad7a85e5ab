"""The tables of a report: what came of the arms, what was asked of them, and on what they ran."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any, NamedTuple

from rewarm.claims import Estimate, estimate
from rewarm.gather import Gathered, Judged, Record
from rewarm.outcomes import Outcome, overtakes, pareto, same_batches, straight_line
from rewarm.quantities import in_words, perplexity


class Cell(NamedTuple):
    """What stands in a table."""

    text: str
    value: float | None = None
    """Of a number, for sorting by it."""
    quiet: bool = False
    """Whether a reader may pass over it."""


class Table(NamedTuple):
    """A table, ready to be shown in any format."""

    title: str
    about: str
    """What its numbers are, in a sentence or two."""
    columns: list[str]
    rows: list[list[Cell]]


NONE = Cell("")


def final(one: Outcome) -> float:
    """Returns the last loss."""
    return one.final


def main(found: Gathered) -> Table:
    """Returns the table that a reader wants first: the last losses, and how far they moved."""
    moved = {"upstream": "forgetting", "downstream": "adaptation"}
    columns = ["arm", "runs"]
    for on in found.sets:
        columns += [f"{on} loss", moved.get(on) or f"{on} change"]
    rows = []
    for arm in found.arms:
        row = [Cell(arm), _whole(len(found.of(arm)))]
        for on in found.sets:
            lower_is_better = moved.get(on) == "adaptation"
            change = found.results.over_seeds(
                arm, on, _adaptation if lower_is_better else _forgetting
            )
            row += [_mean(found.results.over_seeds(arm, on, final)), _mean(change, sign=True)]
        rows.append(row)
    about = "Loss in nats per token, at the last measurement; mean ± standard error over seeds."
    if "upstream" in found.sets:
        about += " Forgetting is the rise of the upstream loss since before the first step."
    if "downstream" in found.sets:
        about += " Adaptation is the fall of the downstream loss."
    return Table("Final losses", about, columns, rows)


def _forgetting(one: Outcome) -> float:
    return one.forgetting


def _adaptation(one: Outcome) -> float:
    return one.adaptation


def by_set(found: Gathered, on: str) -> Table:
    """Returns all figures of the arms on a validation set."""
    others = [found.reference]
    if found.control is not None and found.control != found.reference:
        others.append(found.control)
    columns = ["arm", "start", "final", *(f"vs {other}" for other in others), "perplexity"]
    columns += ["change", "bump", "bump at", "back at", "mean loss"]
    rows = []
    for arm in found.arms:
        over = _over(found, arm, on)
        if over(final) is None:
            continue
        bump = over(lambda one: one.bump)
        rose = bump is not None and bump.mean > 0
        rows.append(
            [
                Cell(arm),
                _mean(over(lambda one: one.start)),
                _mean(over(final)),
                *(
                    NONE if arm == other else _mean(_paired(found, arm, other, on), sign=True)
                    for other in others
                ),
                _number(_value(over(lambda one: perplexity(one.final))), ",.2f"),
                _mean(over(_forgetting), sign=True),
                _mean(bump, sign=True) if rose else Cell("none", 0.0),
                _tokens(_value(over(lambda one: one.top.tokens))) if rose else NONE,
                _back(found, arm, on),
                _mean(over(lambda one: one.area)),
            ]
        )
    about = (
        "Loss in nats per token; mean ± standard error over seeds. Bump: the highest rise above "
        "the start; back at: tokens from which the loss is down again; mean loss: over the run's "
        f"tokens. vs {found.reference}: difference of the final losses, paired by seed."
    )
    if found.control is not None and found.control != found.reference:
        about += f" {found.control} trained on the old data for as many tokens."
    return Table(f"On {on}", about, columns, rows)


def claims(found: Gathered) -> Table:
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


def crossings(found: Gathered) -> Table:
    """Returns which arms overtake which others on the way, and where."""
    rows = []
    results = found.results
    for on in found.sets:
        for arm in found.arms:
            for other in found.arms:
                both = [
                    (one, two)
                    for seed in results.seeds(arm)
                    if (one := results.outcome(arm, seed, on))
                    and (two := results.outcome(other, seed, on))
                ]
                shares = [share for one, two in both if (share := overtakes(one, two)) is not None]
                if arm != other and any(shares):
                    row = [Cell(on), Cell(arm), Cell(other), _mean(estimate(shares), share=True)]
                    rows.append([*row, Cell(f"{len(shares)} of {len(both)}", len(shares))])
    about = (
        "The share of the run from which the first arm's loss stays below the second's, having "
        "been above it."
    )
    columns = ["set", "arm", "overtakes", "from", "seeds"]
    return Table("Overtaking", about, columns, rows)


def axes(found: Gathered) -> tuple[str, str] | None:
    """Returns the two sets that losses are plotted against each other on, if there are two."""
    named = [on for on in ("upstream", "downstream") if on in found.sets]
    sets = list(dict.fromkeys([*named, *found.sets]))
    return (sets[0], sets[1]) if len(sets) > 1 else None


def finals(found: Gathered) -> dict[str, tuple[Estimate, Estimate]]:
    """Returns each arm's final losses on the two sets of `axes`, over seeds."""
    if (pair := axes(found)) is None:
        return {}
    there = {arm: [found.results.over_seeds(arm, on, final) for on in pair] for arm in found.arms}
    return {arm: (x, y) for arm, (x, y) in there.items() if x and y}


def front(found: Gathered) -> list[str]:
    """Returns the arms that no other beats on both sets of `axes`."""
    return pareto({arm: (x.mean, y.mean) for arm, (x, y) in finals(found).items()})


def lines(found: Gathered) -> Table:
    """Returns the straight lines of one loss over the other."""
    rows = []
    x_on, y_on = axes(found) or ("", "")
    results = found.results
    for arm in found.arms:
        fits = [
            fit
            for seed in results.seeds(arm)
            if (x := results.outcome(arm, seed, x_on))
            and (y := results.outcome(arm, seed, y_on))
            and (fit := straight_line(x, y))
        ]
        if fits:
            columns = zip(*fits, strict=True)
            rows.append([Cell(arm), *(_mean(estimate(column)) for column in columns)])
    about = (
        f"The {y_on} loss as a straight line over the {x_on} loss at the same steps, by least "
        "squares; mean ± standard error over seeds."
    )
    return Table("Straight lines", about, ["arm", "slope", "intercept", "r²"], rows)


def runs(found: Gathered) -> Table:
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
                _whole(one.seed),
                Cell(_state(one)),
                _tokens(last.get("tokens", 0)),
                _number(fmean(speeds) if speeds else None, ",.0f"),
                _number(fmean(used) if used else None, ".1%"),
                _whole(sum(event["kind"] == "start" for event in one.events)),
                _whole(int(last.get("skipped") or 0)),
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


def _state(one: Record) -> str:
    if one.is_done:
        return "complete"
    return f"step {one.step:,}" + (f" of {one.steps:,}" if one.steps else "")


def differences(found: Gathered) -> Table:
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


def batches(found: Gathered) -> Table:
    """Returns which arms were trained on the very same tokens."""
    seeds: dict[str, list[str]] = {}
    for seed, groups in same_batches(found.results, found.arms).items():
        for group in groups:
            seeds.setdefault(", ".join(group), []).append(str(seed))
    rows = [[Cell(group), Cell(", ".join(of))] for group, of in seeds.items()]
    about = (
        "Arms in one row were trained on the same tokens in the same order: the chained digests of "
        "all their batches are equal."
    )
    return Table("The same batches", about, ["arms", "seeds"], rows)


def environment(found: Gathered) -> Table:
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


def _environment(one: Record) -> Iterator[tuple[str, str]]:
    for event in one.events:
        known = event.get("environment")
        if event["kind"] == "start" and isinstance(known, dict):
            yield from ((str(what), str(value)) for what, value in known.items())
    for model in one.lineage[-1:]:
        if model.schedule:
            said = (model.schedule.get(key, "?") for key in ("name", "distribution", "version"))
            yield "schedule", " ".join(said)


def rates(found: Gathered) -> str:
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


def remarks(found: Gathered) -> Table:
    """Returns what the guard saw: steps not applied, spikes, stability gaps."""
    rows = [
        [
            Cell(one.arm),
            _whole(one.seed),
            _whole(line["step"]),
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


def summary(found: Gathered) -> list[str]:
    """Returns what came of it all, in sentences."""
    done = sum(one.is_done for one in found.records)
    count = len(found.records)
    said = [
        f"{many(len(found.arms), 'arm')}, {many(count, 'run')}; "
        + (("all complete" if count > 1 else "complete") if done == count else f"{done} complete")
    ]
    last = [line["tokens"] for one in found.records for line in one.of("train")[-1:]]
    if last:
        least, most = in_words(min(last)), in_words(max(last))
        said[0] += f"; {least if least == most else f'{least} to {most}'} tokens each."
    verdicts = Counter(one.verdict for one in found.claims.values())
    if verdicts:
        told = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
        said.append(f"{many(len(found.claims), 'claim')}: {told}.")
    for on in found.sets if len(found.arms) > 1 else []:
        over = {arm: found.results.over_seeds(arm, on, final) for arm in found.arms}
        there = {arm: one for arm, one in over.items() if one}
        best = min(there, key=lambda arm: there[arm].mean)
        said.append(f"Lowest {on} loss: {best}, {_mean(there[best]).text} nats.")
    if (pair := axes(found)) and len(found.arms) > 1 and (there_too := front(found)):
        said.append(f"Pareto front of {pair[0]} and {pair[1]} loss: {', '.join(there_too)}.")
    if same := [
        group
        for groups in same_batches(found.results, found.arms).values()
        for group in groups
        if len(group) > 1
    ]:
        alike = list(dict.fromkeys(", ".join(group) for group in same))
        said.append(f"Trained on the very same batches: {'; '.join(alike)}.")
    return said


def everything(found: Gathered) -> list[Table]:
    """Returns all tables that have something in them, the summary's first."""
    tables = [
        *(main(found), claims(found)),
        *(by_set(found, on) for on in found.sets),
        *(crossings(found), lines(found), differences(found), runs(found)),
        *(batches(found), remarks(found), environment(found)),
    ]
    return [table for table in tables if table.rows]


def _over(
    found: Gathered, arm: str, on: str
) -> Callable[[Callable[[Outcome], float]], Estimate | None]:
    return lambda figure: found.results.over_seeds(arm, on, figure)


def _paired(found: Gathered, arm: str, other: str, on: str) -> Estimate | None:
    return found.results.paired(arm, other, on, final)


def _back(found: Gathered, arm: str, on: str) -> Cell:
    """Returns from how many tokens on the loss was back where it started, over the seeds."""
    there = [found.results.outcome(arm, seed, on) for seed in found.results.seeds(arm)]
    tokens = [one.recovered for one in there if one is not None]
    back = [one for one in tokens if one is not None]
    if len(back) < len(tokens):
        return Cell(f"not ({len(back)} of {len(tokens)})" if back else "not", math.inf)
    return _tokens(fmean(back)) if any(back) else Cell("—", 0.0)


def _mean(found: Estimate | None, *, sign: bool = False, share: bool = False) -> Cell:
    if found is None:
        return NONE
    form = ".1%" if share else "+.4f" if sign else ".4f"
    mean = format(found.mean, form)
    error = f" ± {format(found.error, form.lstrip('+'))}" if found.error else ""
    return Cell(mean + error, found.mean)


def _effect(one: Judged) -> Cell:
    if one.effect is None:
        return NONE
    low_high = one.effect.interval
    interval = f" [{low_high[0]:+.4f}, {low_high[1]:+.4f}]" if low_high else ""
    return Cell(f"{one.effect.mean:+.4f}{interval}", one.effect.mean)


def _value(found: Estimate | None) -> float | None:
    return found.mean if found else None


def _number(value: float | None, form: str) -> Cell:
    return NONE if value is None else Cell(format(value, form), value)


def _whole(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def _tokens(value: float | None) -> Cell:
    return NONE if value is None else Cell(in_words(value), value)


def many(count: int, what: str) -> str:
    """Returns a number of things: `1 arm`, `2 arms`."""
    return f"{count} {what}{'s' * (count != 1)}"


def _setting(settings: dict[str, Any], name: str) -> str:
    """Returns a setting as a recipe would say it."""
    if name not in settings:
        return "—"
    value = settings[name]
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
