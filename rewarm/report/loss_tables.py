"""The tables of a report that show losses: final, per validation set, and against each other."""

from __future__ import annotations

from rewarm.report.collect_runs import CollectedRuns
from rewarm.runs.validation_roles import reads_corpus
from rewarm.study.comparison_tables import (
    change_notes,
    changes_by_set,
    comparison_table,
    mean_cell,
)
from rewarm.study.intervals import Estimate, estimate_mean
from rewarm.study.loss_history import METRICS, FittedLine, final_loss, fit_line
from rewarm.study.run_outcomes import pareto_front
from rewarm.table_cells import Cell, Table, tokens_cell


def final_losses_table(collected: CollectedRuns) -> Table:
    """Returns a table with each arm's final losses, and their changes since the start."""
    changes = changes_by_set(collected.results)
    columns = ["arm", "runs"]
    averaged = {name for name in changes if _has_average(collected, name)}
    for name, change in changes.items():
        columns += [f"{name} loss", change.column, *([f"{name} EMA loss"] * (name in averaged))]
    rows = []
    for arm in collected.arms:
        used_runs, all_runs = len(collected.results.seeds(arm)), len(collected.records_of(arm))
        runs = f"{used_runs}" if used_runs == all_runs else f"{used_runs} of {all_runs}"
        row = [Cell(arm), Cell(runs, used_runs)]
        for name, change in changes.items():
            final = collected.results.mean_over_seeds(arm, name, final_loss)
            difference = collected.results.mean_over_seeds(arm, name, METRICS[change.metric])
            row += [mean_cell(final), mean_cell(difference, sign=True)]
            if name in averaged:
                row.append(mean_cell(_average_loss(collected, arm, name)))
        rows.append(row)
    caption = (
        "Loss in nats per token at the last evaluation; mean ± standard error over the runs that "
        f"have reached the last step evaluated in their arm.{change_notes(collected.results)}"
    )
    if averaged:
        caption += " EMA: the loss of the averaged weights (optimizer.ema)."
    return Table("Final losses", caption, columns, rows)


def _has_average(collected: CollectedRuns, name: str) -> bool:
    return any(_average_loss(collected, arm, name) for arm in collected.arms)


def _average_loss(collected: CollectedRuns, arm: str, name: str) -> Estimate | None:
    """Returns the loss of averaged weights at the last evaluation; None without `optimizer.ema`."""
    losses = []
    for record in collected.records_of(arm):
        if record.seed in collected.results.seeds(arm):
            losses += [line.get(f"{name}/ema_loss") for line in record.lines_of("evaluate")[-1:]]
    return estimate_mean(loss for loss in losses if loss is not None)


def _arms_trained_on(collected: CollectedRuns, validation_set: str) -> list[str]:
    """Returns the arms whose recipes have the text of a validation set in their training data."""
    arms = []
    for arm in collected.arms:
        settings = collected.records_of(arm)[0].settings
        corpora = {
            path.removeprefix("data.train.").removesuffix(".shards"): str(shards)
            for path, shards in settings.items()
            if path.startswith("data.train.") and path.endswith(".shards")
        }
        held_out = settings.get(f"data.validation.{validation_set}.shards", "")
        if reads_corpus(validation_set, str(held_out), corpora):
            arms.append(arm)
    return arms


def validation_set_table(collected: CollectedRuns, validation_set: str) -> Table:
    """Returns a table with all metrics of the arms on a validation set."""
    return comparison_table(
        collected.results,
        validation_set,
        arms=collected.arms,
        reference=collected.reference,
        control=collected.control,
    )


def overtaking_table(collected: CollectedRuns) -> Table:
    """Returns a table of the arms that overtake others, and after how many tokens they do."""
    rows = [
        [Cell(name), Cell(arm), Cell(other), tokens_cell(tokens.mean, tokens.standard_error)]
        for name in collected.validation_sets
        for arm in collected.arms
        for other in collected.arms
        if other != arm and (tokens := collected.results.overtaking_tokens(arm, other, name))
    ]
    caption = (
        "Training tokens after which the first arm's loss, which was above the second's before, "
        "stays below it, if it does so with every seed; mean ± standard error."
    )
    return Table("Overtaking", caption, ["set", "arm", "overtakes", "after tokens"], rows)


def set_pairs(collected: CollectedRuns) -> list[tuple[str, str]]:
    """Returns the pairs of validation sets to compare: the old data's with each of the others.

    Of several sets of old data, their mean; without any, the first set is compared with the others.
    """
    results = collected.results
    if results.upstream:
        return [(results.upstream, name) for name in results.new_sets]
    return [(results.validation_sets[0], name) for name in results.validation_sets[1:]]


def final_losses(
    collected: CollectedRuns, pair: tuple[str, str]
) -> dict[str, tuple[Estimate, Estimate]]:
    """Returns the final losses on two validation sets, for the arms trained on the second's data.

    If no recipe trains on the text of the second set, all arms are included.
    """
    losses = {
        arm: [collected.results.mean_over_seeds(arm, name, final_loss) for name in pair]
        for arm in _arms_trained_on(collected, pair[1]) or collected.arms
    }
    return {arm: (x, y) for arm, (x, y) in losses.items() if x and y}


def pareto_arms(collected: CollectedRuns, pair: tuple[str, str]) -> list[str]:
    """Returns the arms among `final_losses` that no other arm dominates on the two sets."""
    return pareto_front(
        {arm: (x.mean, y.mean) for arm, (x, y) in final_losses(collected, pair).items()}
    )


def fitted_lines_table(collected: CollectedRuns) -> Table:
    """Returns a table of lines fitted to the losses on new data over those on old data."""
    pairs = set_pairs(collected)
    rows = []
    for pair in pairs:
        for arm in collected.arms:
            if lines := _fitted_lines(collected, arm, pair):
                cells = [mean_cell(estimate_mean(column)) for column in zip(*lines, strict=True)]
                rows.append([Cell(pair[1]), Cell(arm), *cells])
    old_set = pairs[0][0] if rows else ""
    caption = (
        f"The loss on a set as a straight line over the {old_set} loss at the same steps, by least "
        "squares; mean ± standard error over seeds."
    )
    return Table("Fitted lines", caption, ["set", "arm", "slope", "intercept", "r²"], rows)


def _fitted_lines(collected: CollectedRuns, arm: str, pair: tuple[str, str]) -> list[FittedLine]:
    """Returns the fitted line of each of an arm's seeds, if one can be fitted."""
    lines = []
    for seed in collected.results.seeds(arm):
        x, y = (collected.results.history(arm, seed, name) for name in pair)
        if x and y and (line := fit_line(x, y)):
            lines.append(line)
    return lines
