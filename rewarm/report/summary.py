"""The summary of a report: sentences with the main results."""

from __future__ import annotations

from collections import Counter

from rewarm.quantities import format_count
from rewarm.report.collect_runs import CollectedRuns
from rewarm.report.loss_tables import final_losses, pareto_arms, set_pairs
from rewarm.report.run_tables import same_batches_table
from rewarm.study.comparison_tables import mean_cell
from rewarm.study.loss_history import final_loss
from rewarm.study.run_outcomes import outcome_notes
from rewarm.table_cells import plural


def summary_sentences(collected: CollectedRuns) -> list[str]:
    """Returns the main results, one sentence per result."""
    return [
        _runs_sentence(collected),
        *_not_begun_sentences(collected),
        *outcome_notes(collected.results),
        *(
            f"{record.arm}, seed {record.seed}: {note}"
            for record in collected.records
            for note in record.notes
        ),
        *_claims_sentences(collected),
        *_lowest_loss_sentences(collected),
        *_pareto_sentences(collected),
        *(
            f"Trained on the same batches: {row[0].text}."
            for row in same_batches_table(collected).rows
        ),
    ]


def _runs_sentence(collected: CollectedRuns) -> str:
    complete = sum(record.is_done for record in collected.records)
    runs = len(collected.records)
    if complete < runs:
        state = f"{complete} complete"
    else:
        state = "all complete" if runs > 1 else "complete"
    sentence = f"{plural(len(collected.arms), 'arm')}, {plural(runs, 'run')}; {state}"
    tokens = [line["tokens"] for run in collected.records for line in run.lines_of("train")[-1:]]
    if tokens:
        least, most = format_count(min(tokens)), format_count(max(tokens))
        sentence += f"; {least if least == most else f'{least} to {most}'} tokens each."
    return sentence


def _not_begun_sentences(collected: CollectedRuns) -> list[str]:
    arms = [
        f"{arm} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
        for arm, seeds in collected.not_begun.items()
    ]
    return [f"Not begun: {', '.join(arms)}."] if arms else []


def _claims_sentences(collected: CollectedRuns) -> list[str]:
    verdicts = Counter(claim.verdict for claim in collected.claims.values())
    if not verdicts:
        return []
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    return [f"{plural(len(collected.claims), 'claim')}: {counts}."]


def _lowest_loss_sentences(collected: CollectedRuns) -> list[str]:
    if len(collected.arms) < 2:
        return []
    sentences = []
    for name in collected.validation_sets:
        estimates = {
            arm: estimate
            for arm in collected.arms
            if (estimate := collected.results.mean_over_seeds(arm, name, final_loss))
        }
        best_arm = min(estimates, key=lambda arm: estimates[arm].mean)
        sentences.append(
            f"Lowest {name} loss: {best_arm}, {mean_cell(estimates[best_arm]).text} nats."
        )
    return sentences


def _pareto_sentences(collected: CollectedRuns) -> list[str]:
    return [
        f"Pareto front of {pair[0]} and {pair[1]} loss: {', '.join(pareto_arms(collected, pair))}."
        for pair in set_pairs(collected)
        if len(final_losses(collected, pair)) > 1
    ]


def applied_rates_sentence(collected: CollectedRuns) -> str:
    """Returns a sentence on the learning rates measured on the weights; empty if none was."""
    rates = [
        (event["scheduled"], event["measured"])
        for record in collected.records
        for event in record.events
        if event["kind"] == "rate"
        and all(isinstance(event.get(key), int | float) for key in ("scheduled", "measured"))
    ]
    if not rates:
        return ""
    largest_error = max(
        abs(scheduled_lr - measured_lr) / scheduled_lr if scheduled_lr else abs(measured_lr)
        for scheduled_lr, measured_lr in rates
    )
    return (
        f"The learning rate was measured on the weights at {len(rates):,} steps. It "
        f"differed from the scheduled one by a relative error of at most {largest_error:.1g}."
    )
