"""The comparison tables of arms: content and format of every cell, for any renderer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

from rewarm.quantities import perplexity
from rewarm.study.intervals import Estimate
from rewarm.study.loss_history import LossHistory, final_loss
from rewarm.study.results_json import JudgedClaim, MeanWithInterval
from rewarm.study.run_outcomes import UPSTREAM, RunOutcome, StudyResults
from rewarm.table_cells import EMPTY, Cell, Table, number_cell, tokens_cell


def start_to_end_table(outcomes: dict[str, RunOutcome]) -> Table:
    """Returns start and final loss of single runs on each validation set, one row a run.

    The columns are `arm`, then for each validation set `NAME loss`, as `5.059 → 5.616`, and its
    change: `forgetting`, the rise, on upstream; `adaptation`, the fall, on any other.

    Args:
        outcomes: of each arm one run, measured on the same validation sets.
    """
    first = next(iter(outcomes.values()), None)
    validation_sets = list(first.losses) if first else []
    columns = ["arm"]
    for name in validation_sets:
        columns += [f"{name} loss", "forgetting" if name == UPSTREAM else "adaptation"]
    rows = []
    for arm, outcome in outcomes.items():
        row = [Cell(arm)]
        for name in validation_sets:
            history = outcome.losses[name]
            row.append(Cell(f"{history.start:.3f} → {history.final:.3f}", history.final))
            change = history.forgetting if name == UPSTREAM else history.adaptation
            row.append(number_cell(change, "+.3f"))
        rows.append(row)
    about = (
        "Loss in nats per token, before the first step and at the end. Forgetting: the rise of "
        "the upstream loss. Adaptation: the fall of the downstream loss."
    )
    return Table("Losses from start to end", about, columns, rows)


def comparison_table(
    results: StudyResults,
    validation_set: str,
    *,
    arms: Iterable[str],
    reference: str,
    control: str | None,
) -> Table:
    """Returns all figures of arms on a validation set, one row an arm that was measured on it.

    The columns are `arm`, `start`, `final`, `vs REFERENCE`, `vs CONTROL`, `perplexity`, `change`,
    `peak rise`, `peak at`, `recovered at` and `mean loss`.

    Args:
        results: the outcomes by arm and seed.
        validation_set: its name.
        arms: in the order of the rows.
        reference: the arm whose final loss the others' are compared with.
        control: the arm that trained on old data, compared with in the same way.
    """
    compared = list(arms)
    baselines = _baselines(compared, reference, control)
    rows = [
        _comparison_row(results, validation_set, arm, baselines)
        for arm in compared
        if results.histories(arm, validation_set)
    ]
    columns = ["arm", "start", "final", *(f"vs {arm}" for arm in baselines), "perplexity"]
    columns += ["change", "peak rise", "peak at", "recovered at", "mean loss"]
    about = (
        "Loss in nats per token; mean ± standard error over seeds. Peak rise: how far the highest "
        "loss is above the start; recovered at: tokens at which the loss is down to its start "
        "again; mean loss: over the run's tokens."
    )
    if baselines:
        about += (
            f" vs {' and '.join(baselines)}: difference of the final losses, paired by seed, where "
            "both arms have seen as many tokens."
        )
    if control is not None:
        about += f" {control} is the control, trained on old data."
    return Table(f"Losses on {validation_set}", about, columns, rows)


def _baselines(arms: list[str], reference: str, control: str | None) -> list[str]:
    """Returns the arms that others are compared with: reference and control, each once."""
    if len(arms) < 2:
        return []
    return [arm for arm in dict.fromkeys((reference, control)) if arm]


def _comparison_row(
    results: StudyResults, validation_set: str, arm: str, baselines: list[str]
) -> list[Cell]:
    def mean(figure: Callable[[LossHistory], float]) -> Estimate | None:
        return results.mean_over_seeds(arm, validation_set, figure)

    differences = [
        EMPTY
        if arm == baseline
        else mean_cell(results.final_difference(arm, baseline, validation_set), sign=True)
        for baseline in baselines
    ]
    final_perplexity = mean(lambda history: perplexity(history.final))
    peak_rise = mean(lambda history: history.peak_rise)
    peak_tokens = mean(lambda history: history.peak.tokens)
    has_risen = peak_rise is not None and peak_rise.mean > 0
    return [
        Cell(arm),
        mean_cell(mean(lambda history: history.start)),
        mean_cell(mean(final_loss)),
        *differences,
        number_cell(final_perplexity.mean if final_perplexity else None, ",.2f"),
        mean_cell(mean(lambda history: history.forgetting), sign=True),
        mean_cell(peak_rise, sign=True) if has_risen else Cell("none", 0.0),
        tokens_cell(peak_tokens.mean) if has_risen and peak_tokens else EMPTY,
        _recovered_cell(results.histories(arm, validation_set)),
        mean_cell(mean(lambda history: history.mean_loss)),
    ]


def _recovered_cell(histories: list[LossHistory]) -> Cell:
    """Returns the mean of the tokens at which the losses of an arm's seeds have recovered."""
    tokens = [history.recovered_at for history in histories]
    recovered = [count for count in tokens if count is not None]
    if len(recovered) < len(tokens):
        return Cell(f"not ({len(recovered)} of {len(tokens)})" if recovered else "not", math.inf)
    return tokens_cell(fmean(recovered)) if any(recovered) else Cell("—", 0.0)


def claims_table(claims: Mapping[str, JudgedClaim]) -> Table:
    """Returns the claims of a study, by name, with their verdicts."""
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
    about = (
        "The effect is the left side minus the right side, with its 95 % interval over seeds; a "
        "claim is undecided where that interval has 0 in it."
    )
    return Table("Claims", about, ["verdict", "claim", "as written", "effect", "why"], rows)


def _effect_cell(effect: MeanWithInterval | None) -> Cell:
    if effect is None:
        return EMPTY
    interval = f" [{effect.interval[0]:+.4f}, {effect.interval[1]:+.4f}]" if effect.interval else ""
    return Cell(f"{effect.mean:+.4f}{interval}", effect.mean)


def mean_cell(estimate: Estimate | None, *, sign: bool = False) -> Cell:
    """Returns a mean with its standard error, `2.5000 ± 0.0120`; empty for None."""
    if estimate is None:
        return EMPTY
    form = "+.4f" if sign else ".4f"
    error = f" ± {estimate.error:.4f}" if estimate.error else ""
    return Cell(format(estimate.mean, form) + error, estimate.mean)
