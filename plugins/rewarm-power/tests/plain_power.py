"""The curve once more, step by step and as plainly as can be: for the tests and for
benchmarks/schedules.py. Spans are whole steps here, but for those in tokens."""

import math

TOKENS_PER_STEP = 4_194_304  # a batch of 1,024 sequences of 4,096 tokens

PAPER = {"name": "power", "peak_lr": 0.02, "batch": 1024, "min_lr": 1e-5}

# By hand, with 30 digits, from equations 7 and 8 of arXiv:2408.13359, in a run of 300,000 steps =
# 1.2583 T tokens: n = 4,194,304 · step, and 4096 · n^-0.51 is 0.02 at 25.96 B tokens, step 6190.3.
REFERENCE = [
    (
        PAPER | {"warmup": "1000 steps", "decay": "60000 steps"},
        300_000,
        {
            # warm-up: n / W of the peak
            **{1: 2e-5, 500: 0.01, 1000: 0.02, 6190: 0.02},
            # the power: 4096 · n^-0.51
            **{10_000: 0.0156604197, 100_000: 4.83953234e-3, 240_000: 3.09667525e-3},
            # half way down an exponential: the geometric mean of 3.09667525e-3 and 1e-5
            **{270_000: 1.75973727e-4, 300_000: 1e-5},
        },
    ),
    (
        PAPER | {"warmup": "1000 steps", "decay": "60000 steps", "shape": "linear"},
        300_000,
        {240_000: 3.09667525e-3, 270_000: 1.553337625e-3, 300_000: 1e-5},  # half way: the mean
    ),
]

CASES = [
    (PAPER | {"a": a, "b": b, "shape": shape} | spans, steps)
    for shape in ("exponential", "linear")
    for a, b, steps, spans in (
        (4, -0.51, 30_000, {"warmup": "238 steps", "decay": "3000 steps", "seen": "0 tokens"}),
        (4.6, -0.51, 2003, {"warmup": "0 steps", "decay": "13 steps", "seen": "300B tokens"}),
        (3.0, -0.45, 1000, {"warmup": "500 steps", "decay": "500 steps", "seen": "0 tokens"}),
    )
]


def by_hand(steps, name, peak_lr, batch, a, b, min_lr, seen, warmup, decay, shape):
    """The rate of every step."""
    rise, fall = (int(span.split()[0]) for span in (warmup, decay))
    before = int(seen.split()[0].replace("B", "0" * 9))

    def power(step):
        tokens = before + step * TOKENS_PER_STEP
        return min(peak_lr, math.exp(math.log(batch * a) + b * math.log(tokens)))

    rates = []
    for step in range(1, steps + 1):
        into = step - (steps - fall)
        if step < rise:
            rate = power(rise) * step / rise
        elif into <= 0:
            rate = power(step)
        elif shape == "linear":
            rate = (power(steps - fall) * (fall - into) + min_lr * into) / fall
        else:
            top = power(steps - fall)
            rate = top * math.exp(math.log(min_lr / top) * into / fall)
        rates.append(rate)
    return rates
