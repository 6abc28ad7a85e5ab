"""The curve once more, step by step and as plainly as can be: for the tests and for
benchmarks/schedules.py."""

import math

NEMOTRON = {"name": "reuse", "start_lr": 4.5e-5}

# shared/paper.md, section 3: from 4.5e-5 to a hundredth; a fifth at 71.13 % of the run; the values
# at a third and at a half are by hand, cos 60° being 1/2 and cos 90° being 0.
REFERENCE = [
    (
        NEMOTRON,
        30_000,
        {10_000: 3.38625e-5, 15_000: 2.2725e-5, 21_339: 9.0e-6, 30_000: 4.5e-7},
    )
]

CASES = [
    (NEMOTRON | {"ratio": 0.01}, 1000),
    (NEMOTRON | {"start_lr": 3e-4, "ratio": 0.1}, 997),
]


def by_hand(steps, name, start_lr, ratio):
    """The rate of every step."""
    low = start_lr * ratio
    return [
        low + (start_lr - low) * math.cos(math.pi / 2 * step / steps) ** 2
        for step in range(1, steps + 1)
    ]
