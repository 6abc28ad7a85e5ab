"""What came of a study as plain data: `results.json`, which `rewarm report` is made from.

```
arms       ARM: changes, trains on, seeds (figures, stream, run), over seeds, against the reference
                and against the control: SET: FIGURE: {mean, error, seeds, interval}
overtakes  SET: ARM: OTHER: tokens from which ARM's loss stays below OTHER's
pareto     SET: the arms trained on it that no other beats on it and upstream at once
lines      SET: ARM: SEED: its losses as a straight line over the upstream ones
claims     WORDS: claim, verdict, effect, why
```
Losses are in nats. Errors are standard errors over the seeds, intervals hold the mean at 95 %.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rewarm.claims import Estimate, Verdict
from rewarm.outcomes import Outcome, Results, figures, pareto, same_batches, straight_line
from rewarm.study import Plan

UPSTREAM = "upstream"
"""The set of what the base was trained on: forgetting is told on it."""

FIGURES: dict[str, Callable[[Outcome], float]] = {
    "start": lambda one: one.start,
    "final": lambda one: one.final,
    "forgetting": lambda one: one.forgetting,
    "adaptation": lambda one: one.adaptation,
    "bump": lambda one: one.bump,
    "area": lambda one: one.area,
}


def as_data(plan: Plan, results: Results) -> dict[str, Any]:
    """Returns everything that came of a study so far."""
    new = [on for on in sets(results) if on != UPSTREAM]
    return {
        "study": plan.study.study,
        "reference": plan.reference,
        "control": plan.study.control,
        "seeds": list(plan.study.seeds),
        "arms": {arm: _arm(plan, results, arm) for arm in plan.study.arms},
        "batches": {
            str(seed): groups for seed, groups in same_batches(results, plan.study.arms).items()
        },
        "overtakes": {on: _overtakes(plan, results, on) for on in sets(results)},
        "pareto": {on: front(plan, results, on) for on in new},
        "lines": {on: _lines(plan, results, on) for on in new},
        "claims": {
            said: {"claim": claim.text, **_verdict(claim.judge(results.known, plan.study.seeds))}
            for said, claim in plan.claims.items()
        },
    }


def sets(results: Results) -> list[str]:
    """Returns the names of the validation sets, in the order of their measurement."""
    return list(dict.fromkeys(on for ran in results.ran.values() for on in ran.sets))


def front(plan: Plan, results: Results, on: str) -> list[str]:
    """Returns the arms trained on a corpus that no other beats on its set and upstream at once."""
    points = {}
    for arm in plan.study.arms:
        x, y = (results.over_seeds(arm, one, FIGURES["final"]) for one in (UPSTREAM, on))
        if x and y and on in _corpora(plan, arm):
            points[arm] = (x.mean, y.mean)
    return pareto(points)


def _corpora(plan: Plan, arm: str) -> list[str]:
    return list(plan.of(arm)[0].recipe.data.train)


def _arm(plan: Plan, results: Results, arm: str) -> dict[str, Any]:
    runs = {job.seed: job for job in plan.of(arm)}
    others = dict.fromkeys(one for one in (plan.reference, plan.study.control) if one)
    return {
        "changes": plan.study.arms[arm],
        "trains on": _corpora(plan, arm),
        "seeds": {
            str(seed): {
                "sets": {on: figures(one) for on, one in results.ran[arm, seed].sets.items()},
                "stream": results.ran[arm, seed].stream,
                "run": str(runs[seed].directory),
            }
            for seed in results.seeds(arm)
        },
        "over seeds": _each(results, partial(results.over_seeds, arm)),
        "against": {
            other: _each(results, partial(results.paired, arm, other))
            for other in others
            if other != arm and comparable(plan, arm, other)
        },
    }


def comparable(plan: Plan, arm: str, other: str) -> bool:
    """Returns whether two arms are as long, so that their ends may be set against each other."""
    one, two = (plan.of(name)[0].recipe for name in (arm, other))
    return one.steps * one.batch.tokens == two.steps * two.batch.tokens


def _each(
    results: Results, figure: Callable[[str, Callable[[Outcome], float]], Estimate | None]
) -> dict[str, Any]:
    return {
        on: {name: _estimate(figure(on, of)) for name, of in FIGURES.items()}
        for on in sets(results)
    }


def _overtakes(plan: Plan, results: Results, on: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for arm in plan.study.arms:
        for other in plan.study.arms:
            if other != arm and (tokens := results.crossing(arm, other, on)):
                found.setdefault(arm, {})[other] = _estimate(tokens)
    return found


def _lines(plan: Plan, results: Results, on: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in plan.study.arms:
        for seed in results.seeds(arm):
            x, y = (results.outcome(arm, seed, one) for one in (UPSTREAM, on))
            if x and y and (line := straight_line(x, y)):
                found.setdefault(arm, {})[str(seed)] = line._asdict()
    return found


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return found._asdict() | {"interval": found.interval} if found else None


def _verdict(found: Verdict) -> dict[str, Any]:
    return {"verdict": found.verdict, "effect": _estimate(found.effect), "why": found.why}
