"""The curves once more, step by step and as plainly as can be: for the tests and for
benchmarks/schedules.py. Spans are whole steps here."""

import math
from itertools import pairwise

SHAPES = ["1-sqrt", "linear", "cosine", "exponential", "inverse"]
RATES = {"peak_lr": 3e-4, "min_lr": 3e-5}
WSD = {"name": "wsd", **RATES, "decay": "200 steps"}
WSD_S = {"name": "wsd-s", **RATES, "returns": ["200 steps", "400 steps"], "decay": 0.5}

# shared/paper.md, section 3, has the values of `1-sqrt` and `linear`; the others are by hand.
FALLS = {
    "1-sqrt": {1: 2.8091e-4, 50: 1.6500e-4, 100: 1.0908e-4, 150: 6.6173e-5},
    "linear": {50: 2.3250e-4, 100: 1.6500e-4},
    "cosine": {50: 2.60459415e-4, 100: 1.65e-4, 150: 6.95405845e-5},
    "exponential": {50: 1.68702398e-4, 100: 9.48683298e-5, 150: 5.33483823e-5},
    "inverse": {1: 2.87081340e-4, 50: 9.23076923e-5, 100: 5.45454545e-5, 150: 3.87096774e-5},
}
REFERENCE = [
    (
        WSD | {"shape": shape},
        1000,
        {800: 3e-4, 1000: 3e-5} | {800 + into: rate for into, rate in FALLS[shape].items()},
    )
    for shape in SHAPES
]
# The decay of 200 steps again, at the end of each stretch of 400.
REFERENCE += [
    (
        WSD_S | {"returns": ["400 steps", "800 steps"], "shape": shape},
        1200,
        {
            step + into: rate
            for step in (200, 600, 1000)
            for into, rate in ({0: 3e-4, 200: 3e-5} | FALLS[shape]).items()
        }
        | {401: 3e-4, 801: 3e-4},
    )
    for shape in SHAPES
]

CASES = [
    (
        {"name": "wsd", "start_lr": start, "peak_lr": 3e-4, "min_lr": low, "shape": shape}
        | {"warmup": f"{warmup} steps", "decay": f"{decay} steps"},
        steps,
    )
    for shape in SHAPES
    for steps, warmup, decay, start, low in (
        (1000, 10, 200, 0.0, 3e-5),
        (1000, 0, 1000, 0.0, 3e-5),
        (1000, 900, 100, 3e-4, 3e-4),
        (997, 13, 101, 3e-5, 1e-9),
        (10_000, 70, 700, 0.0, 3e-5),  # in floating point, 1 - 0.07 is just below 0.93
    )
]
CASES += [
    (
        {"name": "wsd-s", "start_lr": 0.0, **RATES, "shape": shape, "decay": decay}
        | {"warmup": "10 steps", "returns": [f"{step} steps" for step in returns]},
        steps,
    )
    for shape in SHAPES
    for steps, returns, decay in (
        (1000, [250, 500], 0.1),
        (1000, [100, 300, 600], 0.9),
        (9000, [700, 2100, 6300], 0.2),
    )
]


def by_hand(steps, name, start_lr, peak_lr, min_lr, warmup, shape, decay, returns=()):
    """The rate of every step."""
    rise = int(warmup.split()[0])
    ends = [0, *(int(place.split()[0]) for place in returns), steps]
    rates = []
    for begin, end in pairwise(ends):
        fall = int(decay.split()[0]) if name == "wsd" else round(decay * (end - begin))
        for step in range(begin + 1, end + 1):
            into = step - (end - fall)
            if step < rise:
                rate = start_lr + (peak_lr - start_lr) * step / rise
            elif into <= 0:
                rate = peak_lr
            elif shape == "1-sqrt":
                rate = min_lr + (peak_lr - min_lr) * (1 - math.sqrt(into / fall))
            elif shape == "linear":
                rate = (peak_lr * (fall - into) + min_lr * into) / fall
            elif shape == "cosine":
                rate = min_lr + (peak_lr - min_lr) * math.cos(math.pi / 2 * into / fall) ** 2
            elif shape == "exponential":
                rate = peak_lr * math.exp(math.log(min_lr / peak_lr) * into / fall)
            else:
                rate = 1 / (into / fall / min_lr + (fall - into) / fall / peak_lr)
            rates.append(rate)
    return rates
