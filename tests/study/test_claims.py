"""Claims: how they are read, and what few seeds can say of them."""

import math

import pytest

from rewarm.study.claims import FigureRequest, parse_claim
from rewarm.study.intervals import estimate_mean

ARMS = ["rewarm", "peak-6e-4", "constant"]
SETS = ["upstream", "downstream"]


def read(text):
    return parse_claim(text, arms=ARMS, sets=SETS)


def known(values):
    """A function of figures by name and seed: {("final", "upstream", "rewarm"): [1.0, 2.0]}."""

    def say(asked: FigureRequest, seed: int) -> float | None:
        of = values.get((asked.figure, asked.on, *asked.arms))
        return of[seed] if of else None

    return say


LOSSES = {
    ("final", "upstream", "rewarm"): [2.0, 2.1, 2.2],
    ("final", "upstream", "peak-6e-4"): [2.5, 2.65, 2.7],
    ("final", "upstream", "constant"): [2.0, 2.2, 2.1],
    ("overtakes", "downstream", "rewarm", "constant"): [0.4, 0.5, 0.45],
}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("final(upstream, rewarm) < final(upstream, peak-6e-4)", "held"),
        ("final(upstream, rewarm) > final(upstream, peak-6e-4)", "not held"),
        ("final(upstream, rewarm) < final(upstream, constant)", "undecided"),
        ("final(upstream,peak-6e-4) - final(upstream,rewarm) > 0.4", "held"),
        ("abs(final(upstream, rewarm) - final(upstream, constant)) < 0.5", "held"),
        ("2 * (final(upstream, rewarm) + 1) > 3 * 2 - 0.5", "held"),
        ("-final(upstream, rewarm) > -3", "held"),
        ("overtakes(rewarm, constant, downstream) after 20%", "held"),
        ("overtakes(rewarm, constant, downstream) before 20 %", "not held"),
        ("overtakes(rewarm, constant, downstream) > 0.3", "held"),
    ],
)
def test_verdicts(text, verdict):
    assert read(text).judge(known(LOSSES), [0, 1, 2]).verdict == verdict


def test_the_effect_is_paired_and_has_students_interval():
    found = read("final(upstream, peak-6e-4) > final(upstream, rewarm)").judge(
        known(LOSSES), [0, 1, 2]
    )
    # Differences 0.5, 0.55, 0.5: mean 0.51667, s = 0.028868, s/√3 = 0.016667, t(2) = 4.303.
    assert found.effect.mean == pytest.approx(0.516667, abs=1e-6)
    assert found.effect.error == pytest.approx(0.016667, abs=1e-6)
    assert found.effect.interval == pytest.approx((0.444950, 0.588383), abs=1e-6)


def test_one_seed_decides_nothing():
    found = read("final(upstream, rewarm) < final(upstream, peak-6e-4)").judge(known(LOSSES), [0])
    assert (found.verdict, found.why) == ("undecided", "one seed has no interval")
    assert found.effect.mean == pytest.approx(-0.5)
    assert found.effect.interval is None


def test_what_was_not_measured_is_not_judged():
    found = read("final(downstream, rewarm) < 3").judge(known(LOSSES), [0, 1])
    assert (found.verdict, found.effect, found.why) == ("undecided", None, "not measured")
    some = {("final", "upstream", "rewarm"): [2.0, None, 2.2]}
    found = read("final(upstream, rewarm) < 3").judge(known(some), [0, 1, 2])
    assert (found.verdict, found.why) == ("undecided", "1 of 3 seeds have no value")


def test_an_arm_that_never_overtakes_does_not_do_so_late():
    values = {
        ("overtakes", "downstream", "rewarm", "constant"): [None, None],
        ("final", "downstream", "rewarm"): [3.0, 3.0],
        ("final", "downstream", "constant"): [2.0, 2.0],
    }
    found = read("overtakes(rewarm, constant, downstream) after 20%").judge(known(values), [0, 1])
    assert (found.verdict, found.why) == ("not held", "it is never overtaken")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "should have a figure or a number on each side"),
        ("final(upstream, rewarm)", "should compare two sides with < or >"),
        ("final(upstream, rewarm) < ", "should have a figure or a number on each side"),
        ("final(upstream, rewarm) < 3 4", "cannot read '4' where it stands"),
        ("final(upstream, rewarm) = 3", "cannot read '= 3'"),
        ("finel(upstream, rewarm) < 3", "no figure named 'finel'; did you mean 'final'?"),
        ("final(upstraem, rewarm) < 3", "set named 'upstraem'; did you mean 'upstream'?"),
        ("final(upstream, constnat) < 3", "no arm named 'constnat'; did you mean 'constant'?"),
        ("final(upstream) < 3", "final should be written final(SET, ARM)"),
        ("overtakes(rewarm, downstream) > 0", "should be written overtakes(ARM, ARM, SET)"),
        ("(final(upstream, rewarm) < 3", "a bracket is not closed"),
        ("final(upstream, rewarm) after 30%", "after goes with overtakes(ARM, ARM, SET)"),
        ("1.2.3 < 2", "1.2.3 is not a number"),
        ("__import__('os') < 1", "cannot read"),
    ],
)
def test_what_cannot_be_read(text, said):
    with pytest.raises(ValueError, match="a claim is written such as") as raised:
        read(text)
    assert said in str(raised.value)


def test_estimates():
    assert estimate_mean([]) is None
    assert estimate_mean([2.0]) == (2.0, None, 1)
    many = estimate_mean([0.0, 1.0] * 50)
    low, high = many.interval
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.25 * 100 / 99) / 10)
