"""The output of `rewarm probe` before its arms are trained: what they are, and what they take."""

from __future__ import annotations

from rewarm.cli.cost_output import speed_by_measuring
from rewarm.cli.terminal_tables import print_notes, print_result_table
from rewarm.estimates.cost import RunCost, estimate_recipe_cost
from rewarm.plots.axes import format_rate
from rewarm.predict.probe_plan import ProbeCosts, ProbePlan
from rewarm.predict.probe_target import ProbeTarget
from rewarm.quantities import format_number, format_seconds
from rewarm.recipe.recipe import Recipe
from rewarm.table_cells import Cell, Table, count_cell, number_cell, tokens_cell


def measure_costs(recipe: Recipe) -> ProbeCosts:
    """Measures what an arm takes on this machine, as `rewarm plan --measure` does.

    Args:
        recipe: that of an arm.

    Raises:
        RewarmError: its steps do not run here.
    """
    (cost,) = estimate_recipe_cost(recipe, gpus=1, on_gpu=None, speed_of=speed_by_measuring()).costs
    return _costs(cost)


def _costs(cost: RunCost) -> ProbeCosts:
    time = cost.time
    assert time
    return ProbeCosts(
        3600 * time.training / cost.steps,
        3600 * time.evaluating / cost.evaluations,
        3600 * (time.starting + time.saving),
    )


def print_probe_plan(target: ProbeTarget, plan: ProbePlan, costs: ProbeCosts, hours: float) -> None:
    """Prints the arms of a probe with what each takes."""
    recipe = target.recipe
    peak = max(recipe.lr(step) for step in range(1, recipe.steps + 1))
    rows = [
        [
            Cell(arm.name),
            Cell(format_rate(arm.peak * peak, 3), arm.peak * peak),
            Cell(f"{arm.replay:.3g}", arm.replay),
            count_cell(arm.steps),
            tokens_cell(arm.steps * recipe.batch.tokens),
            number_cell(arm.seconds / 60, ".1f"),
        ]
        for arm in plan.arms
    ]
    columns = ["arm", "peak", "replay", "steps", "tokens", "minutes"]
    print_result_table(Table("Arms of the probe", "", columns, rows), show_title=False)
    longest = max(arm.steps for arm in plan.arms)
    notes = [
        ("target", f"{recipe.steps:,} steps: {recipe.steps / longest:.2g} × the longest arm"),
        ("replay", target.note),
        (
            "time",
            f"{format_number(plan.seconds / 60)} of {format_number(60 * hours)} minutes, "
            f"{plan.evaluating:.0%} of them for evaluations: {format_seconds(costs.step)} a step, "
            f"{format_seconds(costs.evaluation)} an evaluation, {format_seconds(costs.arm)} to "
            "start and save an arm, as measured here",
        ),
    ]
    print_notes((f"{heading:<10}{text}" for heading, text in notes), indent=10)
