"""Losses that follow the law of `rewarm.predict` exactly, or with an error for each arm."""

from typing import NamedTuple

import numpy as np

from rewarm.predict.fit import Probe
from rewarm.predict.law import rate_curve
from rewarm.predict.loss_models import LawModel

PARAMETERS = {
    **{"c": 0.25, "kappa": 0.3, "old K": 0.32, "old a": 0.37, "old phi": 1.5, "old L": 3e-4},
    **{"new B": 1.2, "new E": 0.7, "new b": 0.27, "new s": 0.33},
}
LOGARITHMS = np.log([*PARAMETERS.values()])
LAW = LawModel(("old",), ("new",), 0.1)
STEPS = [2, 4, 8, 20, 60, 100, 140, 180, 220, 260, 300, 340, 380, 400]


class Arm(NamedTuple):
    peak: float = 1.0
    replay: float = 0.0
    steps: int = 400


ARMS = {
    "peak": Arm(),
    "half": Arm(0.5),
    "quarter": Arm(0.25),
    "double": Arm(2.0),
    "replay": Arm(replay=0.05),
    "more-replay": Arm(replay=0.25),
    "no-shift": Arm(replay=1.0),
}


def rewarmed(peak: float, steps: int = 400) -> np.ndarray:
    """A warm-up over 5 % of the steps, and a half cosine down to a tenth of the peak."""
    progress = np.arange(1, steps + 1) / steps
    decay = (progress - 0.05) / 0.95
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * np.clip(decay, 0, 1))) / 2
    return peak * np.where(progress < 0.05, progress / 0.05, cosine)


def synthetic_probe(name: str, arm: Arm, error: float = 0.0) -> Probe:
    """An arm whose losses change by the law times 1 + error."""
    steps = [step * arm.steps // 400 for step in STEPS]
    curve = rate_curve(rewarmed(arm.peak, arm.steps), steps)
    sets = LAW.sets if arm.replay < 1 else LAW.old
    changes = {
        validation_set: (1 + error) * LAW.change(LOGARITHMS, validation_set, curve, arm.replay)
        for validation_set in sets
    }
    return Probe(name, curve, arm.replay, changes)


def synthetic_probes(error: float = 0.0, seed: int = 0) -> list[Probe]:
    """All arms; `error` is the standard deviation of their relative errors."""
    errors = error * np.random.default_rng(seed).standard_normal(len(ARMS))
    return [
        synthetic_probe(name, arm, float(one))
        for (name, arm), one in zip(ARMS.items(), errors, strict=True)
    ]
