"""The curve once more, step by step and as plainly as can be: for the tests and for
benchmarks/schedules.py. Spans are whole steps here."""

PEAK = {"name": "d2z", "peak_lr": 3e-4}

# By hand: (settings, steps, {step: rate}).
REFERENCE = [
    (PEAK, 1000, {1: 3e-6, 50: 1.5e-4, 100: 3e-4, 325: 2.25e-4, 550: 1.5e-4, 910: 3e-5, 1000: 0.0}),
    (PEAK | {"warmup": "0%"}, 1000, {1: 2.997e-4, 500: 1.5e-4, 999: 3e-7}),
]

CASES = [
    (PEAK | {"warmup": "100 steps"}, 1000),
    (PEAK | {"warmup": "0 steps"}, 997),
    (PEAK | {"warmup": "131 steps"}, 1303),
]


def by_hand(steps, name, peak_lr, warmup):
    """The rate of every step."""
    rise = int(warmup.split()[0])
    return [
        peak_lr * step / rise if step < rise else peak_lr * (steps - step) / (steps - rise)
        for step in range(1, steps + 1)
    ]
