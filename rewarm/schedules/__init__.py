"""Learning-rate schedules: functions from progress in (0, 1] to the absolute learning rate.

A schedule is a frozen pydantic model that can be called. It has no state, so resuming a run,
overriding a setting and drawing the curve call the same function, with nothing to restore. All
schedules, including the built-in ones, are found through entry points of the group
`rewarm.schedules`.
"""

from rewarm.schedules.base import CONTRACT, Schedule, cosine, linear
from rewarm.schedules.builtin import Constant, Decay, NoWarmup, Rewarm
from rewarm.schedules.checked_rates import (
    check_rates,
    marked_steps,
    marks,
    of_base,
    rate,
    sample_curve,
)
from rewarm.schedules.final_decay import is_constant_before, sampled_steps, step_before_decay
from rewarm.schedules.registry import (
    GROUP,
    find,
    identity,
    installed,
    origin,
    read,
    settings_schema,
)

__all__ = [
    "CONTRACT",
    "GROUP",
    "Constant",
    "Decay",
    "NoWarmup",
    "Rewarm",
    "Schedule",
    "check_rates",
    "cosine",
    "find",
    "identity",
    "installed",
    "is_constant_before",
    "linear",
    "marked_steps",
    "marks",
    "of_base",
    "origin",
    "rate",
    "read",
    "sample_curve",
    "sampled_steps",
    "settings_schema",
    "step_before_decay",
]
