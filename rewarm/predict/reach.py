"""How far a run is outside of what was probed, and whether the law is known to hold there."""

from __future__ import annotations

from typing import NamedTuple

from rewarm.predict.arms import StudiedArms, common_settings
from rewarm.predict.law import RateCurve
from rewarm.recipe.recipe import Recipe

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
            notes.append(f"{replay:.3g} of its tokens are replay, and no arm has any")
            refusals.append(
                f"{notes[-1]}: what replay does differs between corpora; train an arm with about 5%"
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
    settings = common_settings(recipe) | _validation_settings(arms, recipe)
    of_arms = common_settings(arms.recipe) | _validation_settings(arms, arms.recipe)
    differences = [
        f"{name} is {value}, and {of_arms[name]} in the arms; predictions are for runs that have "
        "it in common with them"
        for name, value in settings.items()
        if value != of_arms[name]
    ]
    new = arms.new_data(recipe)
    if not differences and new and new not in arms.new_corpora:
        differences = [
            f"new data {new}, and {' or '.join(arms.new_corpora)} in the arms; the loss on other "
            "data follows another law"
        ]
    return differences


def _validation_settings(arms: StudiedArms, recipe: Recipe) -> dict[str, str]:
    """Returns the settings of those validation sets of the arms that a recipe has, too."""
    sets = recipe.data.validation
    return {
        f"data.validation.{name}.{setting}": "not set" if value is None else str(value)
        for name in arms.roles
        if name in sets and name in arms.recipe.data.validation
        for setting, value in (("shards", sets[name].shards), ("tokens", sets[name].tokens))
    }
