"""Published facts about the Pythia models (arXiv:2304.01373) that their files do not contain.

A checkpoint on the hub holds weights only. The tokens that it was trained on and the learning rate
of its last update follow from the paper: 143,000 steps of 1,024 × 2,048 tokens, a warm-up of 1%,
and GPT-NeoX's cosine to zero, clipped at a tenth of the peak.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rewarm.model.architecture import PRESETS, Architecture
from rewarm.quantities import Span
from rewarm.schedules import Rewarm

_STEPS = 143_000
_TOKENS_PER_STEP = 1024 * 2048
_PEAK_LR = {
    "pythia-70m": 1e-3,
    "pythia-160m": 6e-4,
    "pythia-410m": 3e-4,
    "pythia-1b": 3e-4,
    "pythia-1.4b": 2e-4,
    "pythia-2.8b": 1.6e-4,
    "pythia-6.9b": 1.2e-4,
    "pythia-12b": 1.2e-4,
}


class PublishedTraining(NamedTuple):
    """How far a published checkpoint was trained."""

    step: int
    tokens: int
    lrs: tuple[float, float, float]
    """The learning rate of the first update, the highest, and that of the last update."""


def published_architecture(name: str) -> Architecture | None:
    """Returns the architecture of a Pythia model by its hub name; None for other models."""
    preset = _preset_name(name)
    return PRESETS.get(preset) if preset else None


def published_training(name: str, revision: str | None) -> PublishedTraining | None:
    """Returns how far a Pythia revision such as `step10000` was trained; None if unknown."""
    peak = _PEAK_LR.get(_preset_name(name) or "")
    match = re.fullmatch(r"step([0-9]{1,6})", revision or f"step{_STEPS}")
    step = int(match[1]) if match else 0
    if peak is None or not 0 < step <= _STEPS:
        return None
    schedule = Rewarm(
        peak_lr=peak, min_lr=peak / 10, start_lr=0.0, warmup=Span("1%"), decay="clipped-cosine"
    )
    first, highest, last = (schedule(k / _STEPS) for k in (1, min(step, _STEPS // 100), step))
    return PublishedTraining(step, step * _TOKENS_PER_STEP, (first, highest, last))


def _preset_name(name: str) -> str | None:
    owner, _, model = name.partition("/")
    return model.removesuffix("-deduped") if owner == "EleutherAI" else None
