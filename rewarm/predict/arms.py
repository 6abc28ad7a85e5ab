"""The arms of a study as probes of the law, after checks that their losses can be compared.

```
 RunRecords ──> MeasuredRun ──> checks: finished, one base, one batch, same validation sets
                                  └──> mean over seeds ──> StudiedArms
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from rewarm.checkpoints.training_state import Ancestor
from rewarm.errors import CheckpointError
from rewarm.predict.fit import Probe
from rewarm.predict.law import RateCurve, rate_curve
from rewarm.recipe.fields import Role
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.runs.validation_roles import ROLES, merge_roles, reads_corpus
from rewarm.study.run_outcomes import RunOutcome

LEAST_ARMS = 3
_REMEDY = "name the directories of the arms to fit, without it"


class MeasuredRun(NamedTuple):
    """A run with metrics."""

    arm: str
    directory: Path
    recipe: Recipe | None
    """None if it cannot be read."""
    outcome: RunOutcome
    lineage: Sequence[Ancestor]
    """The models that its weights descend from, the base last; empty if they are not known."""


class StudiedArms(NamedTuple):
    """Arms that start from one base and differ in schedule, replay and length only."""

    probes: list[Probe]
    starts: dict[str, float]
    """The loss of the base on each validation set, in nats."""
    roles: dict[str, Role]
    """The role of each validation set that the law describes."""
    not_described: list[str]
    """The validation sets of neither role."""
    recipe: Recipe
    """That of the first run."""
    unit: float
    """The base's peak rate, or if it is not known, the highest of the arms."""
    start: float
    """The base's last rate, in `unit`."""
    base_is_known: bool
    """Whether the base's rates are on record."""
    old_corpora: Mapping[str, str]
    """The shards of what the base was trained on, by name, as far as known."""
    new_corpora: list[str]
    """The new corpora that the arms train on, as `new_data` gives them: one entry."""
    merged: Mapping[str, str] = MappingProxyType({})
    """Arms with the schedule, length and replay of another, by name: they count as runs of it."""

    def sets(self, role: Role) -> tuple[str, ...]:
        """Returns the validation sets of a role."""
        return tuple(name for name, own in self.roles.items() if own == role)

    @property
    def highest_peak(self) -> float:
        """The highest peak rate of the arms with a shift."""
        return self.unit * max(probe.curve.peak for probe in self.probes if probe.replay < 1)

    def curve(self, recipe: Recipe, steps: list[int]) -> RateCurve:
        """Returns the rates of a recipe at some steps."""
        rates = np.array([recipe.lr(step) for step in range(1, recipe.steps + 1)]) / self.unit
        return rate_curve(rates, steps, beta2=recipe.optimizer.betas[1])

    def replay_share(self, recipe: Recipe) -> float:
        """Returns the share of old data among a recipe's training tokens.

        Raises:
            CheckpointError: it changes during the run.
        """
        weights = recipe.corpus_weights
        if any(len(pieces) > 1 for pieces in weights.values()):
            raise CheckpointError(
                f"{recipe.run}: the weights of its corpora change during the run; the law is for "
                "a constant share of replay"
            )
        total = sum(pieces[0][1] for pieces in weights.values())
        old = [name for name in weights if self.is_old(name, recipe)]
        return float(sum(weights[name][0][1] for name in old) / total)

    def new_data(self, recipe: Recipe) -> str:
        """Returns the corpora of a recipe that are new to the base, and their shards."""
        corpora = recipe.data.train
        new = [name for name in corpora if not self.is_old(name, recipe)]
        return ", ".join(f"{name} ({corpora[name].shards})" for name in new)

    def is_old(self, corpus: str, recipe: Recipe) -> bool:
        """Returns whether a corpus that a recipe trains on is what the base was trained on."""
        shards = recipe.data.train[corpus].shards
        if corpus in self.old_corpora or shards in self.old_corpora.values():
            return True
        validation = self.recipe.data.validation
        return any(
            reads_corpus(name, validation[name].shards, {corpus: shards})
            for name in self.sets("upstream")
        )


def study_arms(runs: Sequence[MeasuredRun]) -> StudiedArms:
    """Returns the arms that some runs are of, averaged over seeds.

    Raises:
        CheckpointError: they are too few, a run is not finished, or they do not compare.
    """
    arms = _compared(runs)
    by_arm, merged = _by_arm(runs, arms)
    arms = arms._replace(merged=merged)
    arms.new_corpora.extend(
        dict.fromkeys(new for run in runs if run.recipe and (new := arms.new_data(run.recipe)))
    )
    arms.probes.extend(_probe(arm, own, arms) for arm, own in by_arm.items())
    shifted = [probe for probe in arms.probes if probe.replay < 1]
    if len(shifted) < LEAST_ARMS:
        names_found = ", ".join(probe.arm for probe in shifted) or "none"
        raise CheckpointError(
            f"different arms that train on new data: {len(shifted)} ({names_found}); at least "
            f"{LEAST_ARMS} are needed: one at the peak that you plan, one at a half or a quarter "
            "of it, and one with about 5% of replay"
        )
    return arms


def _by_arm(
    runs: Sequence[MeasuredRun], arms: StudiedArms
) -> tuple[dict[str, list[MeasuredRun]], dict[str, str]]:
    """Returns the runs of each arm, without copies, and which arms count as runs of another.

    The law cannot tell those apart. As arms of their own they would be predicted from each other,
    which says nothing of new arms.

    Raises:
        CheckpointError: the runs of an arm differ in schedule, length or replay.
    """
    by_arm: dict[str, list[MeasuredRun]] = {}
    merged: dict[str, str] = {}
    names: dict[tuple[float, bytes], str] = {}
    keys: dict[str, tuple[float, bytes]] = {}
    for run in runs:
        assert run.recipe
        recipe = run.recipe
        rates = np.array([recipe.lr(step) for step in range(1, recipe.steps + 1)])
        key = (round(arms.replay_share(recipe), 9), rates.tobytes())
        name = names.setdefault(key, run.arm)
        if keys.setdefault(run.arm, key) != key:
            raise CheckpointError(
                f"{run.directory}: its schedule, length or replay is not that of the other runs of "
                f"{run.arm}: {_REMEDY}"
            )
        if name != run.arm:
            merged[run.arm] = name
        own = by_arm.setdefault(name, [])
        if not any(_is_copy(run, other) for other in own):
            own.append(run)
    return by_arm, merged


def _is_copy(run: MeasuredRun, other: MeasuredRun) -> bool:
    """Returns whether two runs have one seed and the same losses."""
    assert run.recipe
    assert other.recipe
    return run.recipe.seed == other.recipe.seed and run.outcome.losses == other.outcome.losses


def comparable_runs(reference: str, runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Returns the runs that one law can describe together with an arm, the reference.

    Those are left out that are not finished, or that have another base, batch or data.
    """
    groups = (
        [run for run in runs if _compares([first, run])] for first in runs if first.arm == reference
    )
    return next((group for group in groups if group), [])


def _compares(runs: Sequence[MeasuredRun]) -> bool:
    try:
        _compared(runs)
    except CheckpointError:
        return False
    return True


def _compared(runs: Sequence[MeasuredRun]) -> StudiedArms:
    """Returns what some runs have in common, as arms without probes.

    Raises:
        CheckpointError: a run is not finished, or they do not compare.
    """
    for run in runs:
        _check_finished(run)
    first = runs[0]
    assert first.recipe
    settings = [common_settings(run.recipe) for run in runs if run.recipe]
    for name in settings[0]:
        _check_same(runs, name, [own[name] for own in settings])
    for what, value_of in _SAME.items():
        _check_same(runs, what, [value_of(run) for run in runs])
    names = list(first.outcome.losses)
    roles = {
        name: role
        for name in names
        if (role := merge_roles(name, (run.outcome.roles.get(name) for run in runs)))
    }
    if missing := [role for role in ROLES if role not in roles.values()]:
        raise CheckpointError(
            f"{first.directory}: no validation set is {missing[0]}; give one of {', '.join(names)} "
            f"as data.validation.NAME.role: {missing[0]} in its recipe.yaml"
        )
    starts = {name: _start(first, name) for name in roles}
    highest = max(highest_rate(run.recipe) for run in runs if run.recipe)
    arms = arms_of_base(first.recipe, first.lineage, starts, roles, highest)
    arms.not_described.extend(name for name in names if name not in roles)
    _check_same(runs, "new data", [arms.new_data(run.recipe) for run in runs if run.recipe])
    for run in runs:
        _check_learned(run, arms)
    return arms


def arms_of_base(
    recipe: Recipe,
    lineage: Sequence[Ancestor],
    starts: dict[str, float],
    roles: dict[str, Role],
    highest_rate: float,
) -> StudiedArms:
    """Returns what is known of arms before their losses are.

    Args:
        recipe: that of an arm.
        lineage: the models that its base descends from, the base last; empty if not known.
        starts: the loss of the base on each validation set, in nats.
        roles: the roles of the validation sets.
        highest_rate: of all arms; the unit of rates if those of the base are not on record.
    """
    rates = lineage[-1].lrs if lineage else None
    unit, last = (rates[1], rates[2]) if rates else (highest_rate, recipe.model.base_lr or 0.0)
    corpora = {name: shards for one in lineage for name, shards in one.corpora.items()}
    return StudiedArms(
        [], starts, roles, [], recipe, unit, last / unit, rates is not None, corpora, []
    )


def _check_finished(run: MeasuredRun) -> None:
    prefix = f"{run.directory}: {run.arm}"
    if run.recipe is None:
        raise CheckpointError(f"{prefix}: its recipe.yaml cannot be read; {_REMEDY}")
    for name, history in run.outcome.losses.items():
        reached = history.points[-1].step
        if reached < run.recipe.steps:
            raise CheckpointError(
                f"{prefix} has {name} losses up to step {reached:,} of {run.recipe.steps:,}: it is "
                "unfinished or diverged, and a schedule that is cut off misleads; finish it, or "
                f"{_REMEDY}"
            )
    if run.recipe.model.base is None or run.recipe.model.fresh:
        raise CheckpointError(f"{prefix} starts from new weights, not from a base; {_REMEDY}")
    for name, history in run.outcome.losses.items():
        if history.baseline is None or history.baseline.step or history.has_gap:
            raise CheckpointError(
                f"{prefix}: the {name} losses have a gap, or none before step 1; {_REMEDY}"
            )


def _check_learned(run: MeasuredRun, arms: StudiedArms) -> None:
    assert run.recipe
    if arms.replay_share(run.recipe) == 1:
        return
    rises = [
        history.points[-1].loss - _start(run, name)
        for name, history in run.outcome.losses.items()
        if name in arms.sets("downstream")
    ]
    if min(rises) >= 0:
        raise CheckpointError(
            f"{run.directory}: {run.arm} trains on new data, and its downstream loss changed by "
            f"{min(rises):+.3g} nats: it diverged or did not learn, and the law is for arms that "
            f"do; {_REMEDY}"
        )


def common_settings(recipe: Recipe) -> dict[str, str]:
    """Returns the settings that all arms have in common, and the runs that are predicted from them.

    The law describes other differences only: those of schedule, length and replay.
    """
    settings = {
        "model.base": recipe.model.base,
        "model.revision": recipe.model.revision,
        "model.tokenizer": recipe.model.tokenizer,
        "model.fresh": recipe.model.fresh,
        "data.context": recipe.data.context,
        "data.documents": recipe.data.documents,
        "batch.tokens": recipe.batch.tokens,
        **{
            f"optimizer.{name}": getattr(recipe.optimizer, name)
            for name in OptimizerSettings.model_fields
        },
    }
    return {name: "not set" if value is None else str(value) for name, value in settings.items()}


_SAME: dict[str, Callable[[MeasuredRun], object]] = {
    "sha256 of the base": lambda run: run.outcome.base and (run.outcome.base.sha256 or "")[:12],
    "validation sets": lambda run: ", ".join(sorted(run.outcome.losses)),
    "data of the validation sets": lambda run: ", ".join(
        f"{name} {run.outcome.validation_digests[name][:12]}"
        for name in sorted(run.outcome.losses)
        if name in run.outcome.validation_digests
    ),
    "tokens of the validation sets": lambda run: ", ".join(
        f"{name} {one.tokens:,}"
        for name, one in sorted(run.recipe.data.validation.items() if run.recipe else ())
        if one.tokens
    ),
}
"""What else all runs have in common, as far as it is known."""


def _check_same(runs: Sequence[MeasuredRun], what: str, values: Sequence[object]) -> None:
    known = [(run, value) for run, value in zip(runs, values, strict=True) if value]
    for run, value in known:
        first, expected = known[0]
        if value != expected:
            raise CheckpointError(
                f"{run.directory}: {what} of {run.arm}: {str(value).strip()}; of {first.arm}: "
                f"{str(expected).strip()}; one law is for arms that have it in common: {_REMEDY}"
            )


def _start(run: MeasuredRun, name: str) -> float:
    start = run.outcome.losses[name].start
    assert start is not None  # see _check_finished
    return start


def highest_rate(recipe: Recipe) -> float:
    """Returns the highest rate of a recipe, among a thousand of its steps if it has more."""
    steps = range(1, recipe.steps + 1, max(1, recipe.steps // 1000))
    return max(recipe.lr(step) for step in steps)


def _probe(arm: str, runs: list[MeasuredRun], arms: StudiedArms) -> Probe:
    """Returns the mean losses of an arm over its seeds, at the steps that all have in common."""
    recipe = runs[0].recipe
    assert recipe
    losses = [
        {name: {p.step: p.loss for p in run.outcome.losses[name].points} for name in arms.roles}
        for run in runs
    ]
    steps = sorted(set.intersection(*(set(by_set[name]) for by_set in losses for name in by_set)))
    steps = [step for step in steps if 0 < step <= recipe.steps]
    changes = {
        name: np.mean(
            [
                np.array([by_set[name][step] for step in steps]) - _start(run, name)
                for run, by_set in zip(runs, losses, strict=True)
            ],
            axis=0,
        )
        for name in arms.roles
    }
    return Probe(arm, arms.curve(recipe, steps), arms.replay_share(recipe), changes)
