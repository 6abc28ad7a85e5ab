"""How far a run is outside of what was probed, and whether the law is known to hold there."""

from __future__ import annotations

from typing import NamedTuple

from rewarm.predict.arms import StudiedArms
from rewarm.predict.law import RateCurve
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.training_settings import OptimizerSettings

# What was measured: docs/predict.md, "Limits".
_MOST_LENGTHS = 2.0
_MOST_PEAKS = 2.0
_MOST_SHARES = 5.0
_LEAST_PEAKS = 0.2
_ANNEALED = 0.5
_ROUNDING = 1e-6


class ReachLimits(NamedTuple):
    """The runs with a shift for which the law is known to hold."""

    lowest_peak: float
    """In units of the base's peak, like the highest."""
    highest_peak: float
    steps: float
    replay: float
    """The largest share of replay; 0 if no arm has any."""


def limits_of(arms: StudiedArms) -> ReachLimits:
    """Returns the limits beyond which `reach_of` refuses."""
    probes = [probe for probe in arms.probes if probe.replay < 1]
    peaks = [probe.curve.peak for probe in probes]
    return ReachLimits(
        _LEAST_PEAKS * min(peaks),
        _MOST_PEAKS * max(peaks),
        _MOST_LENGTHS * max(probe.curve.run_steps for probe in probes),
        _MOST_SHARES * max(probe.replay for probe in probes),
    )


class Reach(NamedTuple):
    """How far a run is outside of the arms, in sentences."""

    notes: list[str]
    """What is outside of the arms."""
    refusals: list[str]
    """What is beyond the limits; these are errors unless they are forced."""
    is_longer: bool
    """Whether it is longer than every arm."""

    @property
    def outside(self) -> list[str]:
        """The notes and the refusals; a note that a refusal repeats is not among them."""
        notes = [
            note for note in self.notes if not any(text.startswith(note) for text in self.refusals)
        ]
        return notes + self.refusals


def reach_of(arms: StudiedArms, curve: RateCurve, replay: float) -> Reach:
    """Returns how far a run with this schedule and replay share is outside of the arms."""
    probes = [probe for probe in arms.probes if probe.replay < 1]
    notes, refusals = [], []

    def compare(what: str, ratio: float, limit: float, text: str) -> None:
        if ratio > 1 + _ROUNDING:
            notes.append(f"{what} is {ratio:.2g} times {text}")
        if ratio > limit * (1 + _ROUNDING):
            refusals.append(f"{notes[-1]}; predictions are known to hold up to {limit:g} times")

    longest = max(probe.curve.run_steps for probe in probes)
    compare("its length", curve.run_steps / longest, _MOST_LENGTHS, "that of the longest arm")
    peaks = [probe.curve.peak for probe in probes]
    compare("its peak rate", curve.peak / max(peaks), _MOST_PEAKS, "the highest of the arms")
    below = min(peaks) / curve.peak
    if below > 1 + _ROUNDING:
        notes.append(f"its peak rate is {1 / below:.2g} times the lowest of the arms")
        if 1 / below < _LEAST_PEAKS * (1 - _ROUNDING):
            refusals.append(f"{notes[-1]}; predictions are known to hold down to {_LEAST_PEAKS}")
    if 0 < replay < 1:
        shares = [probe.replay for probe in probes if probe.replay]
        if not shares:
            refusals.append(
                f"{replay:.3g} of its tokens are replay, and no arm has any: what replay does "
                "differs between corpora; train an arm with about 5%"
            )
        else:
            compare("its replay", replay / max(shares), _MOST_SHARES, "the largest of the arms")
    if replay == 1 and curve.peak > 1 + _ROUNDING:
        refusals.append(
            f"it trains on old data only, at {curve.peak:.2g} times the base's peak: above 1, the "
            "loss stays higher than the law says"
        )
    if refusal := undescribed_base(arms):
        refusals.append(refusal)
    return Reach(notes, refusals, curve.run_steps > longest * (1 + _ROUNDING))


def undescribed_base(arms: StudiedArms) -> str | None:
    """Returns why the law does not describe the base of some arms; None if it does."""
    if arms.start <= _ANNEALED:
        return None
    return (
        f"the base's last rate is {arms.start:.2g} of its peak: a base that has not decayed is not "
        "described"
    )


def recipe_differences(arms: StudiedArms, recipe: Recipe) -> list[str]:
    """Returns in what a recipe differs from the arms other than schedule, length and replay.

    The law of the arms is for recipes without such differences.
    """
    of_arms = arms.recipe
    settings = {
        "model.base": (recipe.model.base, of_arms.model.base),
        "model.revision": (recipe.model.revision, of_arms.model.revision),
        "model.tokenizer": (recipe.model.tokenizer, of_arms.model.tokenizer),
        "model.fresh": (recipe.model.fresh, of_arms.model.fresh),
        "data.context": (recipe.data.context, of_arms.data.context),
        "batch.tokens": (recipe.batch.tokens, of_arms.batch.tokens),
        "data.documents": (recipe.data.documents, of_arms.data.documents),
        **{
            f"optimizer.{name}": (getattr(recipe.optimizer, name), getattr(of_arms.optimizer, name))
            for name in OptimizerSettings.model_fields
        },
        **{
            f"data.validation.{name}.{key}": (getattr(own, key), getattr(expected, key))
            for name, expected in of_arms.data.validation.items()
            if (own := recipe.data.validation.get(name)) and name in arms.roles
            for key in ("shards", "tokens")
        },
    }
    differences = [
        f"{path} is {_text(own)}, and {_text(expected)} in the arms; predictions are for runs that "
        "have it in common with them"
        for path, (own, expected) in settings.items()
        if own != expected
    ]
    new = arms.new_data(recipe)
    if not differences and new and new not in arms.new_corpora:
        differences = [
            f"new data {new}, and {' or '.join(arms.new_corpora)} in the arms; the loss on other "
            "data follows another law"
        ]
    return differences


def _text(value: object) -> str:
    return "not set" if value is None else str(value)
