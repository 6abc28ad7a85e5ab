"""Tables that compare arms, with every cell formatted; renderers only lay them out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

from rewarm.quantities import perplexity
from rewarm.recipe.fields import Role
from rewarm.study.intervals import Estimate
from rewarm.study.loss_history import METRICS, LossHistory, final_loss
from rewarm.study.results_json import JudgedClaim, MeanWithInterval
from rewarm.study.run_outcomes import RunOutcome, StudyResults
from rewarm.table_cells import EMPTY, Cell, Table, number_cell, tokens_cell


def start_to_end_table(outcomes: dict[str, RunOutcome]) -> Table:
    """Returns a table with the start and final loss of one run per arm, on each validation set.

    The columns are `arm`, then for each validation set `NAME loss`, as `5.059 → 5.616`, and its
    change, see `changes_by_set`.

    Args:
        outcomes: the outcome of one run per arm, all measured on the same validation sets.
    """
    results = StudyResults({(arm, 0): outcome for arm, outcome in outcomes.items()})
    changes = changes_by_set(results)
    columns = ["arm"]
    for name, change in changes.items():
        columns += [f"{name} loss", change.column]
    rows = []
    for arm, outcome in outcomes.items():
        row = [Cell(arm)]
        for name, change in changes.items():
            history = outcome.losses[name]
            start = "—" if history.start is None else f"{history.start:.3f}"
            row.append(Cell(f"{start} → {history.final:.3f}", history.final))
            row.append(number_cell(METRICS[change.metric](history), "+.3f"))
        rows.append(row)
    caption = (
        f"Loss in nats per token, before the first step and at the end.{change_notes(results)}"
    )
    return Table("Losses from start to end", caption, columns, rows)


class SetChange(NamedTuple):
    """How tables show the change of the loss on a validation set."""

    column: str
    """`forgetting`, `adaptation` or `change`; with the set's name if several have that column."""
    metric: str
    """The key in METRICS."""


def changes_by_set(results: StudyResults) -> dict[str, SetChange]:
    """Returns how tables show the change of the loss, by validation set.

    Forgetting, the rise, on what the base was trained on; adaptation, the fall, on what is new to
    it; change, the rise, on a set that is known to be neither.
    """
    columns: dict[Role | None, str] = {"upstream": "forgetting", "downstream": "adaptation"}
    by_set = {name: columns.get(results.role(name), "change") for name in results.validation_sets}
    counts = Counter(by_set.values())
    return {
        name: SetChange(
            f"{name} {column}" if counts[column] > 1 or column == "change" else column,
            "adaptation" if column == "adaptation" else "forgetting",
        )
        for name, column in by_set.items()
    }


def change_notes(results: StudyResults) -> str:
    """Returns sentences, each after a space, that explain the columns of `changes_by_set`."""
    names: dict[Role | None, list[str]] = {}
    for name in results.validation_sets:
        names.setdefault(results.role(name), []).append(name)
    notes = ""
    if upstream := names.get("upstream"):
        notes += (
            f" Forgetting: the rise of the {' and '.join(upstream)} loss since before the first "
            "step, on what the base was trained on."
        )
    if downstream := names.get("downstream"):
        notes += f" Adaptation: the fall of the {' and '.join(downstream)} loss, on new data."
    if unknown := names.get(None):
        notes += f" Change: the rise of the {' and '.join(unknown)} loss, of unknown role."
    return notes


def comparison_table(
    results: StudyResults,
    validation_set: str,
    *,
    arms: Iterable[str],
    reference: str,
    control: str | None,
) -> Table:
    """Returns a table with all metrics of arms on a validation set, one row per measured arm.

    The columns are `arm`, `start`, `final`, `vs REFERENCE`, `vs CONTROL`, `perplexity`, `bits
    per byte` (if known), `change`, `peak rise`, `tokens at peak`, `recovered at` and `mean loss`.

    Args:
        results: the outcomes of the runs, by arm and seed.
        validation_set: the name of the validation set.
        arms: the names of the arms, in the order of the rows.
        reference: the arm that other arms' final losses are compared with.
        control: the arm trained on old data; other arms are compared with it too.
    """
    arm_names = list(arms)
    baselines = _baselines(arm_names, reference, control)
    rows = [
        _comparison_row(results, validation_set, arm, baselines)
        for arm in arm_names
        if results.histories(arm, validation_set)
    ]
    columns = ["arm", "start", "final", *(f"vs {arm}" for arm in baselines), "perplexity"]
    columns += [
        "bits per byte",
        "change",
        "peak rise",
        "tokens at peak",
        "recovered at",
        "mean loss",
    ]
    caption = (
        "Loss in nats per token; mean ± standard error over seeds. Peak rise: the highest loss "
        "minus the initial one; tokens at peak: training tokens before the highest loss; recovered "
        "at: training tokens after which the loss is back to its initial value; —: the loss never "
        "rose; mean loss: loss averaged over training."
    )
    if baselines:
        caption += " " + "; ".join(f"vs {arm}: final loss minus {arm}'s" for arm in baselines)
        caption += ", paired by seed, for arms trained on the same number of tokens."
    if control is not None:
        caption += f" {control} is the control, trained on old data."
    table = Table(f"Losses on {results.label(validation_set)}", caption, columns, rows)
    if not any(row[columns.index("bits per byte")].text for row in rows):
        return table.select(*(column for column in columns if column != "bits per byte"))
    return table._replace(
        caption=f"{caption} Bits per byte of text: the final loss, whatever the tokenizer."
    )


def _baselines(arm_names: list[str], reference: str, control: str | None) -> list[str]:
    """Returns the arms that others are compared with: the reference and the control, if any."""
    if len(arm_names) < 2:
        return []
    return [arm for arm in dict.fromkeys((reference, control)) if arm]


def _comparison_row(
    results: StudyResults, validation_set: str, arm: str, baselines: list[str]
) -> list[Cell]:
    def mean(metric: Callable[[LossHistory], float | None]) -> Estimate | None:
        return results.mean_over_seeds(arm, validation_set, metric)

    differences = [
        EMPTY
        if arm == baseline
        else mean_cell(results.final_difference(arm, baseline, validation_set), sign=True)
        for baseline in baselines
    ]
    final_perplexity = mean(lambda history: perplexity(history.final))
    peak_rise = mean(lambda history: history.peak_rise)
    peak_tokens = mean(lambda history: history.peak and history.peak.tokens)
    never_rose = _NEVER_ROSE if peak_rise else EMPTY
    has_risen = peak_rise is not None and peak_rise.mean > 0
    return [
        Cell(arm),
        mean_cell(mean(lambda history: history.start)),
        mean_cell(mean(final_loss)),
        *differences,
        number_cell(final_perplexity.mean if final_perplexity else None, ",.2f"),
        mean_cell(mean(lambda history: history.bits_per_byte)),
        mean_cell(mean(lambda history: history.forgetting), sign=True),
        mean_cell(peak_rise, sign=True) if has_risen else never_rose,
        tokens_cell(peak_tokens.mean) if has_risen and peak_tokens else never_rose,
        _recovered_cell(results.histories(arm, validation_set)),
        mean_cell(mean(lambda history: history.mean_loss)),
    ]


_NEVER_ROSE = Cell("—", 0.0)
"""For the peak and the recovery of a loss that never was above its initial value."""


def _recovered_cell(histories: list[LossHistory]) -> Cell:
    """Returns the tokens after which the loss is back to its initial value, averaged over seeds.

    If it does not recover with every seed, the cell has the number of seeds with which it does.
    """
    tokens_by_seed = [
        history.recovered_at for history in histories if history.peak_rise is not None
    ]
    if not tokens_by_seed:
        return EMPTY
    recovery_tokens = [tokens for tokens in tokens_by_seed if tokens is not None]
    if not recovery_tokens:
        return Cell("never", math.inf)
    if len(recovery_tokens) < len(tokens_by_seed):
        return Cell(f"{len(recovery_tokens)} of {len(tokens_by_seed)} seeds", math.inf)
    return tokens_cell(fmean(recovery_tokens)) if any(recovery_tokens) else _NEVER_ROSE


def claims_table(claims: Mapping[str, JudgedClaim]) -> Table:
    """Returns a table with the claims of a study, by name, and their verdicts."""
    rows = [
        [
            Cell(judged.verdict),
            Cell(name),
            Cell(judged.claim),
            _effect_cell(judged.effect),
            Cell(judged.why),
        ]
        for name, judged in claims.items()
    ]
    caption = (
        "The effect is the left side minus the right side, with its 95% interval over seeds; a "
        "claim is undecided if that interval contains 0."
    )
    return Table("Claims", caption, ["verdict", "name", "claim", "effect", "reason"], rows)


def _effect_cell(effect: MeanWithInterval | None) -> Cell:
    if effect is None:
        return EMPTY
    interval = f" [{effect.interval[0]:+.4f}, {effect.interval[1]:+.4f}]" if effect.interval else ""
    return Cell(f"{effect.mean:+.4f}{interval}", effect.mean)


def mean_cell(estimate: Estimate | None, *, sign: bool = False) -> Cell:
    """Returns a cell with a mean and its standard error, `2.5000 ± 0.0120`; empty for None."""
    if estimate is None:
        return EMPTY
    mean = format(estimate.mean, "+.4f" if sign else ".4f")
    error = f" ± {estimate.standard_error:.4f}" if estimate.standard_error else ""
    return Cell(mean + error, estimate.mean)
