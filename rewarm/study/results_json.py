"""`results.json`: the results of a study as plain data, from which `rewarm report` reads.

```
arms       ARM: changes, trains on, seeds (metrics, stream, sha256 of base, CPU threads, run), over
                seeds, and against the reference and the control: SET: METRIC: {mean, error, seeds,
                interval}
batches    SEED: the groups of arms that were trained on the same tokens
notes      what limits the comparison: gaps in metrics, validation data that changed
overtakes  SET: ARM: OTHER: tokens after which ARM's loss stays below OTHER's
roles      SET: upstream (what the base was trained on), downstream (new), or null
pareto     SET: the arms trained on it that no other dominates on it and upstream
lines      SET: ARM: SEED: its losses as a straight line over the upstream losses
claims     NAME: claim, verdict, effect, why
sha256     digest of all of the above, so that a report notices a change
```
Losses are in nats per token; `pareto` and `lines` use the mean loss of several upstream sets.
Errors are standard errors over the seeds; intervals are 95% confidence intervals of the mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rewarm.errors import CheckpointError
from rewarm.paths import short_path
from rewarm.runs.validation_roles import reads_corpus
from rewarm.safe_loading import first_validation_error, parse_json, read_json
from rewarm.study.claims import NOT_MEASURED, Claim, Verdict
from rewarm.study.decidable_claims import undecidable_claims
from rewarm.study.intervals import Estimate
from rewarm.study.loss_history import (
    METRICS,
    LossHistory,
    final_loss,
    fit_line,
    metrics_as_json,
)
from rewarm.study.run_outcomes import (
    RunOutcome,
    StudyResults,
    outcome_notes,
    pareto_front,
    same_batches,
)
from rewarm.study.study_plan import StudyPlan


class MeanWithInterval(BaseModel):
    """A mean over seeds, as read from results.json."""

    mean: float
    interval: tuple[float, float] | None = None


class JudgedClaim(BaseModel):
    """A claim of a study with its verdict, as read from results.json."""

    claim: str
    verdict: str
    effect: MeanWithInterval | None = None
    why: str = ""


class StudySummary(BaseModel):
    """The part of results.json that a report reads: what the runs themselves do not record."""

    arms: dict[str, Any]
    """The arms in their order; a report reads only their names."""
    seeds: list[int] = []
    reference: str | None = None
    control: str | None = None
    claims: dict[str, JudgedClaim] = {}


def results_digest(content: dict[str, Any]) -> str:
    """Returns the digest of the content of results.json, without the digest that it contains."""
    as_read = parse_json(json.dumps({k: v for k, v in content.items() if k != "sha256"}).encode())
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def read_summary(path: Path) -> StudySummary:
    """Returns what a report reads of a results.json.

    Raises:
        CheckpointError: the file is damaged, or changed since it was written.
    """
    try:
        content = read_json(path)
        summary = StudySummary.model_validate(content)
        if content.get("sha256", results_digest(content)) != results_digest(content):
            raise ValueError("changed since it was written (its sha256 differs)")
        return summary
    except ValidationError as error:
        reason = first_validation_error(error)
    except (OSError, ValueError) as error:
        reason = str(error)
    raise CheckpointError(
        f"{path}: cannot be read: {reason}; run `rewarm compare` again, or move it away"
    )


def results_as_json(plan: StudyPlan, results: StudyResults) -> dict[str, Any]:
    """Returns the content of results.json, for the complete runs of a study."""
    content = _results(plan, results)
    return content | {"sha256": results_digest(content)}


def _results(plan: StudyPlan, results: StudyResults) -> dict[str, Any]:
    new_sets = results.new_sets if results.upstream else []
    seeds = plan.study.seeds
    return {
        "study": short_path(plan.study.study),
        "reference": plan.reference,
        "control": plan.study.control,
        "seeds": list(seeds),
        "arms": {arm: _arm_as_json(plan, results, arm) for arm in plan.study.arms},
        "batches": {
            str(seed): groups for seed, groups in same_batches(results, plan.study.arms).items()
        },
        "notes": outcome_notes(results),
        "roles": {name: results.role(name) for name in results.validation_sets},
        "overtakes": {name: _overtakes(plan, results, name) for name in results.validation_sets},
        "pareto": {name: study_pareto_front(plan, results, name) for name in new_sets},
        "lines": {name: _fitted_lines(plan, results, name) for name in new_sets},
        "claims": {
            name: {"claim": claim.text, **_verdict_as_json(verdict)}
            for name, claim, verdict in _verdicts(plan, results)
        },
    }


def _verdicts(plan: StudyPlan, results: StudyResults) -> Iterator[tuple[str, Claim, Verdict]]:
    """Yields each claim with its verdict; why it has none, if the recipes already tell."""
    undecidable = undecidable_claims(plan)
    for name, claim in plan.claims.items():
        verdict = claim.judge(results.claimed_metric, plan.study.seeds)
        if verdict.reason == NOT_MEASURED:
            verdict = verdict._replace(reason=undecidable.get(name, NOT_MEASURED))
        yield name, claim, verdict


def study_pareto_front(plan: StudyPlan, results: StudyResults, validation_set: str) -> list[str]:
    """Returns the arms that no other arm dominates on a new validation set and upstream.

    Of the arms that are trained on the set's text; of all arms, if none is. Empty without an
    upstream set.
    """
    points = {}
    for arm in arms_trained_on(plan, validation_set) or plan.study.arms:
        if results.upstream:
            x, y = (
                results.mean_over_seeds(arm, name, final_loss)
                for name in (results.upstream, validation_set)
            )
            if x and y:
                points[arm] = (x.mean, y.mean)
    return pareto_front(points)


def arms_trained_on(plan: StudyPlan, validation_set: str) -> list[str]:
    """Returns the arms of a study that train on the text of a validation set."""
    arms = []
    for arm in plan.study.arms:
        data = plan.runs_of(arm)[0].recipe.data
        corpora = {name: corpus.shards for name, corpus in data.train.items()}
        settings = data.validation.get(validation_set)
        if reads_corpus(validation_set, settings.shards if settings else "", corpora):
            arms.append(arm)
    return arms


def _training_corpora(plan: StudyPlan, arm: str) -> list[str]:
    return list(plan.runs_of(arm)[0].recipe.data.train)


def _arm_as_json(plan: StudyPlan, results: StudyResults, arm: str) -> dict[str, Any]:
    runs = {run.seed: run for run in plan.runs_of(arm)}
    baselines = dict.fromkeys(name for name in (plan.reference, plan.study.control) if name)
    return {
        "changes": plan.study.arms[arm],
        "trains on": _training_corpora(plan, arm),
        "seeds": {
            str(seed): {
                **_outcome_as_json(results.outcomes[arm, seed]),
                "run": str(runs[seed].directory),
            }
            for seed in results.seeds(arm)
        },
        "over seeds": _all_metrics(results, partial(results.mean_over_seeds, arm)),
        "against": {
            baseline: _all_metrics(results, partial(results.paired_difference, arm, baseline))
            for baseline in baselines
            if baseline != arm and _same_length(plan, arm, baseline)
        },
    }


def _outcome_as_json(outcome: RunOutcome) -> dict[str, Any]:
    return {
        "sets": {name: metrics_as_json(history) for name, history in outcome.losses.items()},
        "stream": outcome.stream_digest,
        "base": outcome.base and outcome.base.sha256,
        "cpu threads": outcome.cpu_threads,
    }


def _same_length(plan: StudyPlan, arm: str, other: str) -> bool:
    """Returns whether two arms train on the same number of tokens: only then they are compared."""
    recipe, other_recipe = (plan.runs_of(name)[0].recipe for name in (arm, other))
    return recipe.steps * recipe.batch.tokens == other_recipe.steps * other_recipe.batch.tokens


def _all_metrics(
    results: StudyResults,
    estimate: Callable[[str, Callable[[LossHistory], float | None]], Estimate | None],
) -> dict[str, Any]:
    return {
        validation_set: {
            name: _estimate_as_json(estimate(validation_set, metric))
            for name, metric in METRICS.items()
        }
        for validation_set in results.validation_sets
    }


def _overtakes(
    plan: StudyPlan, results: StudyResults, validation_set: str
) -> dict[str, dict[str, Any]]:
    overtakes: dict[str, dict[str, Any]] = {}
    for arm in plan.study.arms:
        for other in plan.study.arms:
            if other == arm:
                continue
            if tokens := results.overtaking_tokens(arm, other, validation_set):
                overtakes.setdefault(arm, {})[other] = _estimate_as_json(tokens)
    return overtakes


def _fitted_lines(plan: StudyPlan, results: StudyResults, validation_set: str) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    for arm in plan.study.arms:
        for seed in results.seeds(arm):
            x = results.history(arm, seed, results.upstream or "")
            y = results.history(arm, seed, validation_set)
            if x and y and (line := fit_line(x, y)):
                lines.setdefault(arm, {})[str(seed)] = line._asdict()
    return lines


def _estimate_as_json(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "mean": estimate.mean,
        "error": estimate.standard_error,
        "seeds": estimate.seeds,
        "interval": estimate.interval,
    }


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    effect = _estimate_as_json(verdict.effect)
    return {"verdict": verdict.verdict, "effect": effect, "why": verdict.reason}
