"""The curve once more, step by step and as plainly as can be: for the tests and for
benchmarks/schedules.py. Lengths and spans are whole steps here."""

import math


def rewarm(peak, warmup, decay="linear", start=0.0, low=3e-5):
    return {
        "name": "rewarm",
        **{"start_lr": start, "peak_lr": peak, "min_lr": low},
        **{"warmup": f"{warmup} steps", "decay": decay},
    }


def part(steps, schedule, repeat=1):
    return {"length": f"{steps} steps", "repeat": repeat, "schedule": schedule}


def sequence(*parts):
    return {"name": "sequence", "parts": list(parts)}


TWICE = sequence(
    part(400, rewarm(3e-4, 100)),
    part(400, rewarm(2e-4, 200, start=3e-5)),
    part(200, {"name": "constant", "lr": 3e-5}),
)
CYCLES = sequence(part(1000, rewarm(3e-4, 50, start=3e-5), repeat=5))

# By hand: lines between the start, the peak and the end of each part.
REFERENCE = [
    (
        TWICE,
        1000,
        {
            **{1: 3e-6, 50: 1.5e-4, 100: 3e-4, 250: 1.65e-4, 400: 3e-5},
            **{401: 3.085e-5, 500: 1.15e-4, 600: 2e-4, 700: 1.15e-4, 800: 3e-5, 801: 3e-5},
            1000: 3e-5,
        },
    ),
    (
        CYCLES,
        1000,
        {
            begin + step: rate
            for begin in range(0, 1000, 200)
            for step, rate in {1: 3.54e-5, 25: 1.65e-4, 50: 3e-4, 125: 1.65e-4, 200: 3e-5}.items()
        },
    ),
]

CASES = [
    (TWICE, 1000),
    (CYCLES, 1000),
    (
        sequence(
            part(97, rewarm(3e-4, 7, "cosine")),
            part(300, rewarm(2e-4, 10, "cosine", start=3e-5, low=1e-5), repeat=3),
            part(700, rewarm(1e-4, 50, low=1e-6), repeat=7),
            part(3, {"name": "constant", "lr": 1e-6}),
        ),
        1100,
    ),
]

# A sequence in a sequence is found by its name only where the plug-in is installed. In floating
# point, 0.7 + 0.1 is below 0.8.
NESTED = [
    (
        sequence(
            part(700, TWICE | {"parts": [part(700, rewarm(3e-4, 70))]}),
            part(100, rewarm(1e-4, 30)),
            part(200, sequence(part(50, rewarm(3e-4, 5)), part(150, rewarm(2e-4, 15), repeat=3))),
        ),
        1000,
    ),
]


def by_hand(steps, name, parts=(), **settings):
    """The rate of every step."""
    if name == "sequence":
        rates = []
        for one in parts:
            cycle = int(one["length"].split()[0]) // one["repeat"]
            rates += by_hand(cycle, **one["schedule"]) * one["repeat"]
        assert len(rates) == steps
        return rates
    if name == "constant":
        return [settings["lr"]] * steps
    start, peak, low = (settings[f"{which}_lr"] for which in ("start", "peak", "min"))
    rise = int(settings["warmup"].split()[0])
    rates = []
    for step in range(1, steps + 1):
        fallen = (step - rise) / (steps - rise)
        if step < rise:
            rate = (start * (rise - step) + peak * step) / rise
        elif settings["decay"] == "linear":
            rate = (peak * (steps - step) + low * (step - rise)) / (steps - rise)
        else:
            rate = low + (peak - low) * math.cos(math.pi / 2 * fallen) ** 2
        rates.append(rate)
    return rates
