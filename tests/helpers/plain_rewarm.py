"""The built-in schedules again, step by step and as simply as possible, with reference values.

For tests/schedules and benchmarks/schedules.py. Spans are whole steps here.
"""

import math

STEPS = 131_296  # of arXiv:2308.04014

# shared/paper.md, section 1: the rate of update n, with 1 % warm-up from 0 and 3e-4 → 3e-5.
PAPER = {
    1: (2.2849e-7, 2.2849e-7),
    656: (1.4989e-4, 1.4989e-4),
    13_130: (2.9404e-4, 2.9453e-4),
    22_114: (2.8180e-4, 2.8330e-4),
    65_648: (1.5471e-4, 1.6714e-4),
    98_472: (4.7318e-5, 7.0301e-5),
    105_715: (3.0001e-5, 5.4991e-5),
    105_716: (3.0000e-5, 5.4989e-5),
}

RATES = {"peak_lr": 3e-4, "min_lr": 3e-5}
REWARM = {"name": "rewarm", **RATES}
BARE = {"name": "no-warmup", **RATES}
RISE = REWARM | {"warmup": "200 steps"}

REFERENCE = [
    (
        REWARM | {"decay": decay, "warmup": "1%"},
        STEPS,
        {step: values[column] for step, values in PAPER.items()} | {STEPS: 3e-5},
    )
    for column, decay in enumerate(["clipped-cosine", "cosine"])
]
# By hand. The 1-sqrt decay is that of section 3 for the last 200 of 1000 steps, here all of 200;
# inverse-sqrt is at half after four and at a quarter after sixteen warm-ups (arXiv:1706.03762).
REFERENCE += [
    (RISE | {"decay": "linear"}, 1000, {100: 1.5e-4, 200: 3e-4, 400: 2.325e-4, 600: 1.65e-4}),
    (
        RISE | {"decay": "1-sqrt", "warmup": "50 steps"},
        250,
        {50: 3e-4, 51: 2.8091e-4, 100: 1.65e-4, 150: 1.0908e-4, 200: 6.6173e-5, 250: 3e-5},
    ),
    (
        REWARM | {"decay": "inverse-sqrt", "warmup": "50 steps", "min_lr": 5e-5},
        2000,
        {25: 1.5e-4, 50: 3e-4, 200: 1.5e-4, 800: 7.5e-5, 1800: 5e-5, 2000: 5e-5},
    ),
    (
        {"name": "rewarm", "peak_lr": 3e-4, "decay": "none", "warmup": "200 steps"},
        1000,
        {1: 1.5e-6, 100: 1.5e-4, 200: 3e-4, 1000: 3e-4},
    ),
    (BARE | {"decay": "linear"}, 1000, {500: 1.65e-4, 1000: 3e-5}),
    (BARE | {"decay": "1-sqrt"}, 200, {1: 2.8091e-4, 50: 1.65e-4, 100: 1.0908e-4, 200: 3e-5}),
    (BARE | {"decay": "cosine"}, 1000, {500: 1.65e-4, 1000: 3e-5}),
    # The floor begins at arccos(-0.8) / π = 0.795167 of the run.
    (BARE | {"decay": "clipped-cosine"}, 1000, {500: 1.5e-4, 796: 3e-5, 1000: 3e-5}),
    ({"name": "no-warmup", "peak_lr": 3e-4, "decay": "none"}, 1000, {1: 3e-4, 1000: 3e-4}),
    ({"name": "constant", "lr": 3e-5}, 1000, {1: 3e-5, 1000: 3e-5}),
]

DECAYS = ["cosine", "clipped-cosine", "linear", "1-sqrt", "inverse-sqrt", "none"]
CASES = [
    (
        {"name": name, "peak_lr": 3e-4, "preheat": f"{preheat} steps", "decay": decay}
        | ({"start_lr": start, "warmup": f"{rise} steps"} if name == "rewarm" else {})
        | ({} if decay == "none" else {"min_lr": 3e-5}),
        steps,
    )
    for name in ("rewarm", "no-warmup")
    for decay in DECAYS
    for steps, preheat, rise, start in ((1000, 0, 10, 0.0), (997, 7, 113, 1e-4))
    if (name, decay) != ("no-warmup", "inverse-sqrt")
]
CASES += [({"name": "constant", "lr": 3e-5}, 1000)]


def by_hand(
    steps, name, lr=None, start_lr=0.0, peak_lr=0.0, min_lr=0.0, preheat="0 steps",
    warmup="0 steps", decay="none",
):  # fmt: skip
    """The rate of every step of a schedule with these settings."""
    if name == "constant":
        return [lr] * steps
    preheat_steps, warmup_steps = int(preheat.split()[0]), int(warmup.split()[0])
    rates = []
    for step in range(1, steps + 1):
        elapsed = step - preheat_steps - warmup_steps
        x = elapsed / (steps - preheat_steps - warmup_steps)
        if step <= preheat_steps:
            rate = 0.0
        elif elapsed < 0:
            rate = (start_lr * -elapsed + peak_lr * (step - preheat_steps)) / warmup_steps
        elif decay == "none":
            rate = peak_lr
        elif decay == "cosine":
            rate = min_lr + (peak_lr - min_lr) * math.cos(math.pi / 2 * x) ** 2
        elif decay == "clipped-cosine":
            rate = max(peak_lr / 2 * (1 + math.cos(math.pi * elapsed / steps)), min_lr)
        elif decay == "linear":
            rate = peak_lr - (peak_lr - min_lr) * x
        elif decay == "1-sqrt":
            rate = min_lr + (peak_lr - min_lr) * (1 - x**0.5)
        else:
            rate = max(peak_lr * (warmup_steps / (step - preheat_steps)) ** 0.5, min_lr)
        rates.append(rate)
    return rates
