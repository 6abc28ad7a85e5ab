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

from rewarm.study.claims import Verdict
from rewarm.study.intervals import Estimate
from rewarm.study.outcomes import (
    Outcome,
    StudyResults,
    fit_line,
    outcome_figures,
    pareto_front,
    same_batches,
)
from rewarm.study.study_file import StudyPlan

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


def results_as_json(plan: StudyPlan, results: StudyResults) -> dict[str, Any]:
    """Returns everything that came of a study so far."""
    new = [on for on in validation_sets(results) if on != UPSTREAM]
    return {
        "study": plan.study.study,
        "reference": plan.reference,
        "control": plan.study.control,
        "seeds": list(plan.study.seeds),
        "arms": {arm: _arm(plan, results, arm) for arm in plan.study.arms},
        "batches": {
            str(seed): groups for seed, groups in same_batches(results, plan.study.arms).items()
        },
        "overtakes": {on: _overtakes(plan, results, on) for on in validation_sets(results)},
        "pareto": {on: study_pareto_front(plan, results, on) for on in new},
        "lines": {on: _lines(plan, results, on) for on in new},
        "claims": {
            said: {"claim": claim.text, **_verdict(claim.judge(results.known, plan.study.seeds))}
            for said, claim in plan.claims.items()
        },
    }


def validation_sets(results: StudyResults) -> list[str]:
    """Returns the names of the validation sets, in the order of their measurement."""
    return list(dict.fromkeys(on for ran in results.ran.values() for on in ran.sets))


def study_pareto_front(plan: StudyPlan, results: StudyResults, on: str) -> list[str]:
    """Returns the arms trained on a corpus that no other beats on its set and upstream at once."""
    points = {}
    for arm in plan.study.arms:
        x, y = (results.over_seeds(arm, one, FIGURES["final"]) for one in (UPSTREAM, on))
        if x and y and on in _corpora(plan, arm):
            points[arm] = (x.mean, y.mean)
    return pareto_front(points)


def _corpora(plan: StudyPlan, arm: str) -> list[str]:
    return list(plan.of(arm)[0].recipe.data.train)


def _arm(plan: StudyPlan, results: StudyResults, arm: str) -> dict[str, Any]:
    runs = {job.seed: job for job in plan.of(arm)}
    others = dict.fromkeys(one for one in (plan.reference, plan.study.control) if one)
    return {
        "changes": plan.study.arms[arm],
        "trains on": _corpora(plan, arm),
        "seeds": {
            str(seed): {
                "sets": {
                    on: outcome_figures(one) for on, one in results.ran[arm, seed].sets.items()
                },
                "stream": results.ran[arm, seed].stream,
                "run": str(runs[seed].directory),
            }
            for seed in results.seeds(arm)
        },
        "over seeds": _each(results, partial(results.over_seeds, arm)),
        "against": {
            other: _each(results, partial(results.paired, arm, other))
            for other in others
            if other != arm and same_length(plan, arm, other)
        },
    }


def same_length(plan: StudyPlan, arm: str, other: str) -> bool:
    """Returns whether two arms are as long, so that their ends may be set against each other."""
    one, two = (plan.of(name)[0].recipe for name in (arm, other))
    return one.steps * one.batch.tokens == two.steps * two.batch.tokens


def _each(
    results: StudyResults, figure: Callable[[str, Callable[[Outcome], float]], Estimate | None]
) -> dict[str, Any]:
    return {
        on: {name: _estimate(figure(on, of)) for name, of in FIGURES.items()}
        for on in validation_sets(results)
    }


def _overtakes(plan: StudyPlan, results: StudyResults, on: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for arm in plan.study.arms:
        for other in plan.study.arms:
            if other != arm and (tokens := results.crossing(arm, other, on)):
                found.setdefault(arm, {})[other] = _estimate(tokens)
    return found


def _lines(plan: StudyPlan, results: StudyResults, on: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in plan.study.arms:
        for seed in results.seeds(arm):
            x, y = (results.outcome(arm, seed, one) for one in (UPSTREAM, on))
            if x and y and (line := fit_line(x, y)):
                found.setdefault(arm, {})[str(seed)] = line._asdict()
    return found


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return found._asdict() | {"interval": found.interval} if found else None


def _verdict(found: Verdict) -> dict[str, Any]:
    return {"verdict": found.verdict, "effect": _estimate(found.effect), "why": found.why}
