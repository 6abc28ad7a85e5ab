"""Which claims of a study its runs can decide, known before they start."""

from __future__ import annotations

import math

from rewarm.recipe.recipe import Recipe
from rewarm.study.claimed_metrics import RunPart
from rewarm.study.claims import ONE_SEED, Claim
from rewarm.study.intervals import interval_factor
from rewarm.study.study_plan import StudyPlan

USUAL_SEEDS = 3
"""With two, an interval is more than three times as wide."""


def undecidable_claims(plan: StudyPlan) -> dict[str, str]:
    """Returns the claims that are undecided whatever the runs measure, each with the reason."""
    recipes = {arm: plan.runs_of(arm)[0].recipe for arm in plan.study.arms}
    reasons = {}
    for name, claim in plan.claims.items():
        if len(plan.study.seeds) < 2:
            reasons[name] = ONE_SEED
        elif reason := _missing_evaluations(claim, recipes):
            reasons[name] = reason
    return reasons


def _missing_evaluations(claim: Claim, recipes: dict[str, Recipe]) -> str:
    """Returns for which metric a run evaluates too rarely; empty if for none."""
    for request in sorted(claim.metrics):
        for arm in request.arms:
            count = _evaluations_in(request.part, recipes[arm])
            if count < request.least_evaluations:
                return (
                    f"{request.metric} of {arm} takes {request.least_evaluations} evaluations in "
                    f"that part of the run, which has {count}; set every.evaluate, such as "
                    "[{until: 1%, every: 20}, {every: 1000}]"
                )
    return ""


def _evaluations_in(part: RunPart, recipe: Recipe) -> int:
    """Returns how often a run evaluates in a part of it; step 0 is before the first update."""
    steps = recipe.steps
    periodic = (step for due in recipe.every.evaluations(steps) for step in due)
    evaluated = {0, *periodic, steps} if recipe.data.validation else ()
    first, last = (part.start - 1e-9) * steps, (part.end + 1e-9) * steps
    return sum(first <= step <= last for step in evaluated)


def smallest_decided_effect(seeds: int) -> float:
    """Returns from which effect on a claim is decided, in standard deviations between seeds."""
    return interval_factor(seeds) / math.sqrt(seeds)
