"""The curve once more, step by step and as plainly as can be: for the tests and for
benchmarks/schedules.py. Spans are whole steps here."""

import math

PAPER = {
    "name": "infinite",
    "peak_lr": 3e-4,
    "constant_lr": 1.65e-4,
    "min_lr": 3e-5,
    "warmup": "10 steps",
    "cooling": "600 steps",
    "annealing": "140 steps",
}

# shared/paper.md, section 3.
REFERENCE = [
    (
        PAPER,
        1000,
        {
            **{5: 1.5000e-4, 160: 2.8023e-4, 310: 2.3250e-4, 460: 1.8477e-4},
            **{610: 1.65e-4, 735: 1.65e-4, 860: 1.65e-4, 861: 1.6300e-4, 930: 7.0356e-5},
            1000: 3.0e-5,
        },
    ),
    (
        PAPER | {"cooldown": "inverse-sqrt"},
        1000,
        {50: 2.5644e-4, 160: 2.1004e-4, 310: 1.8563e-4, 460: 1.7302e-4, 610: 1.65e-4},
    ),
]

CASES = [
    (PAPER | {"start_lr": start, "cooldown": way, "alpha": alpha} | lengths, steps)
    for way, alpha in (("cosine", 10.0), ("inverse-sqrt", 10.0), ("inverse-sqrt", 0.5))
    for start, lengths, steps in (
        (0.0, {}, 1000),
        (3e-5, {"warmup": "13 steps", "cooling": "601 steps", "annealing": "97 steps"}, 997),
        (0.0, {"warmup": "0 steps", "cooling": "0 steps", "annealing": "100 steps"}, 1000),
        (0.0, {"warmup": "100 steps", "cooling": "800 steps", "annealing": "100 steps"}, 1000),
    )
]


def by_hand(
    steps,
    name,
    start_lr,
    peak_lr,
    constant_lr,
    min_lr,
    warmup,
    cooldown,
    cooling,
    alpha,
    annealing,
):
    """The rate of every step."""
    rise, cool, anneal = (int(span.split()[0]) for span in (warmup, cooling, annealing))
    rates = []
    for step in range(1, steps + 1):
        cooled, annealed = step - rise, step - (steps - anneal)
        if step < rise:
            rate = start_lr + (peak_lr - start_lr) * step / rise
        elif annealed > 0:
            rate = constant_lr * math.exp(-math.log(constant_lr / min_lr) / anneal * annealed)
        elif cooled >= cool:
            rate = constant_lr
        elif cooldown == "cosine":
            wave = math.cos(math.pi / 2 * cooled / cool) ** 2
            rate = constant_lr + (peak_lr - constant_lr) * wave
        else:
            h = (1 + alpha * cooled / cool) ** -0.5 - 1
            rate = peak_lr + (constant_lr - peak_lr) * h / ((1 + alpha) ** -0.5 - 1)
        rates.append(rate)
    return rates
