"""Claims: how they are parsed, and what few seeds can decide."""

import pytest

from rewarm.study.claimed_metrics import MetricRequest
from rewarm.study.claims import parse_claim

ARMS = ["rewarm", "peak-6e-4", "constant"]
SETS = ["upstream", "downstream"]


def parse(text):
    return parse_claim(text, arms=ARMS, validation_sets=SETS)


def lookup(values):
    """Looks metrics up by name, set and arms: {("final", "upstream", "rewarm"): [1.0, 2.0]}."""

    def metric(request: MetricRequest, seed: int) -> float | None:
        by_seed = values.get((request.metric, *request.validation_sets, *request.arms))
        return by_seed[seed] if by_seed else None

    return metric


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
    assert parse(text).judge(lookup(LOSSES), [0, 1, 2]).verdict == verdict


def test_effect_is_paired_with_an_interval_by_students_t():
    verdict = parse("final(upstream, peak-6e-4) > final(upstream, rewarm)").judge(
        lookup(LOSSES), [0, 1, 2]
    )
    # Differences 0.5, 0.55, 0.5: mean 0.51667, s = 0.028868, s/√3 = 0.016667, t(2) = 4.302653.
    assert verdict.effect.mean == pytest.approx(0.516667, abs=1e-6)
    assert verdict.effect.standard_error == pytest.approx(0.016667, abs=1e-6)
    assert verdict.effect.interval == pytest.approx((0.444956, 0.588377), abs=1e-6)


def test_one_seed_is_undecided():
    verdict = parse("final(upstream, rewarm) < final(upstream, peak-6e-4)").judge(
        lookup(LOSSES), [0]
    )
    assert (verdict.verdict, verdict.reason) == ("undecided", "a single seed gives no interval")
    assert verdict.effect.mean == pytest.approx(-0.5)
    assert verdict.effect.interval is None


def test_missing_measurements_are_undecided():
    verdict = parse("final(downstream, rewarm) < 3").judge(lookup(LOSSES), [0, 1])
    assert verdict == ("undecided", None, "not measured")
    losses = {("final", "upstream", "rewarm"): [2.0, None, 2.2]}
    verdict = parse("final(upstream, rewarm) < 3").judge(lookup(losses), [0, 1, 2])
    assert (verdict.verdict, verdict.reason) == ("undecided", "1 of 3 seeds have no value")


@pytest.mark.parametrize(
    ("text", "values", "undefined"),
    [
        ("1 / final(upstream, rewarm) < 3", [2.0, 0.0, 2.2], 1),
        ("1 / final(upstream, rewarm) < 3", [0.0, 0.0, 0.0], 3),
        ("1 / (1 / final(upstream, rewarm)) < 3", [2.0, 0.0, 2.2], 1),
        ("abs(1 / final(upstream, rewarm)) > 3", [2.0, 0.0, 0.0], 2),
        ("1e308 * final(upstream, rewarm) > 3", [1.5, 1.5, 1.5], 3),
    ],
)
def test_division_by_zero_is_undecided(text, values, undefined):
    losses = {("final", "upstream", "rewarm"): values}
    verdict = parse(text).judge(lookup(losses), [0, 1, 2])
    assert verdict.verdict == "undecided"
    assert verdict.reason == f"with {undefined} of 3 seeds it divides by zero or overflows"
    assert (verdict.effect is None) == (undefined == 3)


def test_never_overtaking_does_not_confirm_overtaking_late():
    losses = {
        ("overtakes", "downstream", "rewarm", "constant"): [None, None],
        ("final", "downstream", "rewarm"): [3.0, 3.0],
        ("final", "downstream", "constant"): [2.0, 2.0],
    }
    claim = parse("overtakes(rewarm, constant, downstream) after 20%")
    verdict = claim.judge(lookup(losses), [0, 1])
    assert (verdict.verdict, verdict.reason) == ("not held", "it never overtakes")


def test_one_seed_decides_no_claim_of_any_kind():
    never = {
        ("overtakes", "downstream", "rewarm", "constant"): [None],
        ("final", "downstream", "rewarm"): [3.0],
        ("final", "downstream", "constant"): [2.0],
    }
    verdict = parse("overtakes(rewarm, constant, downstream) after 20%").judge(lookup(never), [0])
    assert verdict.verdict == "undecided"
    assert verdict.reason == "a single seed gives no interval; with this one it never overtakes"


def requests(text, **run_tokens):
    claim = parse_claim(text, arms=ARMS, validation_sets=SETS, run_tokens=run_tokens)
    return sorted(claim.metrics)


def test_parts_of_runs_in_shares_and_tokens():
    assert requests("slope(upstream, rewarm, last 20%) < 0") == [
        ("slope", ("upstream",), ("rewarm",), (0.8, 1.0))
    ]
    assert requests("bump(upstream, rewarm, first 0.5 %) < 1") == [
        ("bump", ("upstream",), ("rewarm",), (0.0, 0.005))
    ]
    text = "gap(downstream, rewarm, constant, after 50B tokens) < 0.01"
    assert requests(text, rewarm=200 * 10**9, constant=200 * 10**9) == [
        ("gap", ("downstream",), ("rewarm", "constant"), (0.25, 1.0))
    ]
    assert requests("linearity(upstream, downstream, rewarm) > 0.9") == [
        ("linearity", ("upstream", "downstream"), ("rewarm",), (0.0, 1.0))
    ]


def test_overtaking_after_a_number_of_tokens():
    tokens = {"rewarm": 1_000_000, "constant": 1_000_000}
    text = "overtakes(rewarm, constant, downstream) after 200k tokens"
    claim = parse_claim(text, arms=ARMS, validation_sets=SETS, run_tokens=tokens)
    effect = claim.judge(lookup(LOSSES), [0, 1, 2]).effect
    assert effect.mean == pytest.approx(0.45 - 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should have a metric or a number on each side"),
        ("final(upstream, rewarm)", "should compare two sides with < or >"),
        ("final(upstream, rewarm) < ", "should have a metric or a number on each side"),
        ("final(upstream, rewarm) < 3 4", "unexpected '4'"),
        ("final(upstream, rewarm) = 3", "cannot read '= 3'"),
        ("finel(upstream, rewarm) < 3", "no metric named 'finel'; did you mean 'final'?"),
        ("final(upstraem, rewarm) < 3", "set named 'upstraem'; did you mean 'upstream'?"),
        ("final(upstream, constnat) < 3", "no arm named 'constnat'; did you mean 'constant'?"),
        ("final(upstream) < 3", "final should be written final(SET, ARM)"),
        ("overtakes(rewarm, downstream) > 0", "should be written overtakes(ARM, ARM, SET)"),
        ("(final(upstream, rewarm) < 3", "a parenthesis is not closed"),
        ("final(upstream, rewarm) after 30%", "after needs overtakes(ARM, ARM, SET)"),
        ("1.2.3 < 2", "1.2.3 is not a number"),
        ("1e999 < 2", "1e999 is not a number"),
        ("bump(upstream, rewarm, early 1%) < 1", "'early 1%' is not a part of a run"),
        ("bump(upstream, rewarm, first) < 1", "'' is not a length"),
        ("bump(upstream, rewarm, first 120%) < 1", "120% is 1.2 of the run"),
        ("bump(upstream, rewarm, first 1B tokens) < 1", "rewarm do not have runs of one length"),
        ("gap(upstream, rewarm) < 1", "gap should be written gap(SET, ARM, ARM)"),
        ("__import__('os') < 1", "cannot read"),
    ],
)
def test_invalid_claims(text, message):
    with pytest.raises(ValueError, match="a claim is written such as") as raised:
        parse(text)
    assert message in str(raised.value)
