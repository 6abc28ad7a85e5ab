"""What `rewarm check` and `plan` say about a study's seeds: what they decide, what more cost."""

from __future__ import annotations

from rewarm.estimates.cost import CostEstimate
from rewarm.quantities import format_number
from rewarm.study.decidable_claims import (
    USUAL_SEEDS,
    smallest_decided_effect,
    undecidable_claims,
)
from rewarm.study.study_plan import StudyPlan


def seed_notes(plan: StudyPlan, estimate: CostEstimate | None) -> list[tuple[str, str]]:
    """Returns what the seeds at hand can decide and what more of them cost, as (heading, text).

    Args:
        plan: the study.
        estimate: its cost, if a speed is known.
    """
    if not plan.claims:
        return []
    seeds, undecidable = plan.study.seeds, undecidable_claims(plan)
    if len(seeds) < 2:
        more = [*seeds, *range(max(seeds) + 1, max(seeds) + USUAL_SEEDS)]
        text = (
            f"1: none of the {len(plan.claims)} claims can be decided, since one seed gives no "
            f"interval; try --set 'seeds={more}'"
        )
        return [("seeds", text + _cost_of(USUAL_SEEDS - 1, len(seeds), estimate))]
    now, then = (smallest_decided_effect(count) for count in (len(seeds), len(seeds) + 1))
    text = (
        f"{len(seeds)}: a claim is decided if its effect is above {now:.2f} standard deviations "
        f"between seeds; with one seed more above {then:.2f}"
    )
    notes = [("seeds", text + _cost_of(1, len(seeds), estimate))]
    return notes + [("undecided", f"{name}: {reason}") for name, reason in undecidable.items()]


def _cost_of(more_seeds: int, seeds: int, estimate: CostEstimate | None) -> str:
    """Returns what further seeds of every arm cost; a base is trained once."""
    if estimate is None or estimate.gpu_hours is None:
        return ""
    arms = (cost for cost in estimate.costs if not cost.name.startswith("bases/"))
    hours = more_seeds * sum(cost.runs * (cost.gpu_hours or 0.0) for cost in arms) / seeds
    price = f", cost {format_number(hours * estimate.price)}" if estimate.price is not None else ""
    unit = "hours" if estimate.costs[0].device == "CPU" else "GPU hours"
    return f" ({format_number(hours)} {unit} more{price})"
