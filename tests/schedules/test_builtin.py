import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from plain_rewarm import PAPER, STEPS
from pydantic import ValidationError

from rewarm import schedules
from rewarm.schedules import Constant, NoWarmup, Rewarm

FALLING = ["cosine", "clipped-cosine", "linear", "1-sqrt", "inverse-sqrt"]


def rewarm(**settings) -> Rewarm:
    return Rewarm(**{"peak_lr": 3e-4, "min_lr": 3e-5, **settings})


@pytest.mark.parametrize("n", PAPER)
def test_rates_equal_the_tables_of_the_paper(n):
    clipped, textbook = PAPER[n]
    assert f"{rewarm(decay='clipped-cosine')(n / STEPS):.4e}" == f"{clipped:.4e}"
    assert f"{rewarm()(n / STEPS):.4e}" == f"{textbook:.4e}"


def test_the_clipped_cosine_reaches_its_floor_after_239_of_296_859_billion_tokens():
    curve = rewarm(decay="clipped-cosine")
    assert round(curve.floor_progress() * 296.859, 1) == 239.0
    assert curve.floor_progress() == pytest.approx(0.01 + 0.795167, abs=1e-6)
    assert curve(105_715 / STEPS) > curve(105_716 / STEPS) == 3e-5 == curve(1)


def test_the_curve_that_trained_pythia():
    pythia = rewarm(decay="clipped-cosine")
    # paper.md has 2.974e-4 and 2.770e-4, which are these rounded once more.
    assert f"{pythia(10_000 / 143_000):.4e}" == "2.9735e-04"
    assert f"{pythia(27_000 / 143_000):.4e}" == "2.7695e-04"
    assert pythia(115_138 / 143_000) > 3e-5
    assert all(pythia(step / 143_000) == 3e-5 for step in range(115_139, 143_001, 500))


def test_the_cosine_reaches_its_minimum_at_the_end_only():
    assert rewarm().floor_progress() == 1
    assert rewarm()(1) == 3e-5 < rewarm()(1 - 1e-6)


@pytest.mark.parametrize("decay", FALLING)
@pytest.mark.parametrize("min_lr", [0.0, 3e-5])
def test_the_rate_is_constant_past_the_end(decay, min_lr):
    curve = rewarm(decay=decay, min_lr=min_lr, warmup="20%")
    assert curve(1) == curve(1.000001) == curve(1.1) == curve(2)


def test_the_linear_decay_by_hand():
    curve = rewarm(decay="linear", start_lr=1e-4, warmup="20%")
    by_hand = {0.1: 2e-4, 0.2: 3e-4, 0.4: 2.325e-4, 0.6: 1.65e-4, 1.0: 3e-5}
    assert {at: curve(at) for at in by_hand} == pytest.approx(by_hand)


def test_the_1_sqrt_decay_by_hand():
    # paper.md, section 3: the decay of 200 of 1,000 steps there is 80 % of the run here.
    curve = rewarm(decay="1-sqrt", warmup="20%")
    by_hand = {0.204: 2.8091e-4, 0.4: 1.65e-4, 0.6: 1.0908e-4, 0.8: 6.6173e-5, 1.0: 3e-5}
    assert {at: f"{curve(at):.4e}" for at in by_hand} == {
        at: f"{rate:.4e}" for at, rate in by_hand.items()
    }


def test_the_inverse_sqrt_decay_by_hand():
    # peak · √(warmup / steps): half the peak at four times the warm-up, a tenth at a hundred times.
    curve = rewarm(decay="inverse-sqrt", warmup="0.5%", min_lr=3e-5)
    by_hand = {0.0025: 1.5e-4, 0.005: 3e-4, 0.02: 1.5e-4, 0.045: 1e-4, 0.5: 3e-5, 1.0: 3e-5}
    assert {at: curve(at) for at in by_hand} == pytest.approx(by_hand)
    assert curve.floor_progress() == pytest.approx(0.5)
    preheated = rewarm(decay="inverse-sqrt", warmup="0.5%", preheat="10%")
    assert preheated(0.12) == pytest.approx(1.5e-4)
    assert preheated.floor_progress() == pytest.approx(0.6)
    assert rewarm(decay="inverse-sqrt", min_lr=0.0)(1) == pytest.approx(3e-5)


def test_without_decay_the_rate_stays_at_the_peak():
    curve = rewarm(decay="none", min_lr=None)
    assert [curve(at) for at in (0.005, 0.01, 0.5, 1.0, 3.0)] == [1.5e-4] + [3e-4] * 4
    assert curve.marks() == {"end of warm-up": 0.01}
    assert NoWarmup(peak_lr=3e-4, decay="none")(0.5) == 3e-4


@pytest.mark.parametrize("decay", sorted({*FALLING} - {"inverse-sqrt"}))
def test_no_warmup_equals_rewarm_with_a_warmup_of_0(decay):
    no_warmup = NoWarmup(peak_lr=3e-4, min_lr=3e-5, decay=decay)
    zero_warmup = rewarm(warmup=0, decay=decay)
    samples = [step / 100 for step in range(1, 120)]
    assert [no_warmup(at) for at in samples] == [zero_warmup(at) for at in samples]
    assert no_warmup(1e-9) == pytest.approx(3e-4, rel=1e-4)
    assert no_warmup.marks() == {"floor": no_warmup.floor_progress()}


def test_constant_has_one_rate():
    assert {Constant(lr=3e-5)(at) for at in (1e-9, 0.5, 1, 7)} == {3e-5}
    assert Constant(lr=3e-5).marks() == {}


def test_marks_of_rewarm():
    marks = rewarm(decay="clipped-cosine", warmup="2%").marks()
    assert marks == {"end of warm-up": 0.02, "floor": pytest.approx(0.815167, abs=1e-6)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_lr": 4e-4}, "min_lr 0.0004 should not be above peak_lr 0.0003"),
        ({"peak_lr": -1.0, "min_lr": 0.0}, "greater than or equal to 0"),
        ({"peak_lr": math.inf}, "finite number"),
        ({"peak_lr": "3e-4"}, "should be a rate, such as 3e-4"),
        ({"peak_lr": "5x base"}, "there is no base here"),
        ({"warmup": 1}, "less than 1"),
        ({"warmup": "100%"}, "less than 1"),
        ({"warmup": -0.1}, "greater than or equal to 0"),
        ({"warmup": math.nan}, "greater than or equal to 0"),
        (
            {"decay": "wsd"},
            "'cosine', 'clipped-cosine', 'linear', '1-sqrt', 'inverse-sqrt' or 'none'",
        ),
        ({"peek_lr": 1.0}, "Extra inputs"),
        ({"min_lr": None}, "min_lr is required with decay: cosine"),
        ({"decay": "none"}, "decay: none stays at peak_lr and has no min_lr; remove min_lr"),
        ({"decay": "inverse-sqrt", "warmup": 0}, "it needs a warmup, so use the schedule rewarm"),
        ({"preheat": "50%", "warmup": "50%"}, "together should be less than the whole run"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        rewarm(**settings)


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        rewarm().peak_lr = 1.0


rate_values = st.floats(min_value=0, max_value=10)
share_values = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(
    st.lists(rate_values, min_size=3, max_size=3).map(sorted),
    st.booleans(),
    share_values,
    st.sampled_from(FALLING),
    st.floats(min_value=0, max_value=3, exclude_min=True),
)
def test_rates_stay_between_the_lowest_rate_and_the_peak(
    three_rates, start_is_low, warmup, decay, progress
):
    low, high, peak = three_rates
    start, floor = (low, high) if start_is_low else (high, low)
    assume(warmup > 0 or decay != "inverse-sqrt")
    curve = Rewarm(start_lr=start, peak_lr=peak, min_lr=floor, warmup=warmup, decay=decay)
    assert low * (1 - 1e-9) <= schedules.rate(curve, progress) <= peak * (1 + 1e-9)


@pytest.mark.parametrize(("warmup", "gap"), [("0.5%", 4.57e-7), ("1%", 2.285e-7), ("2%", 1.142e-7)])
def test_gpt_neox_is_one_update_apart(warmup, gap):
    """Its update k used the rate of our step k - 1; docs/schedules-reference.md has the gaps."""
    schedule = rewarm(start_lr=0.0, warmup=warmup, decay="clipped-cosine")
    rates = [0.0, *(schedule(step / 131_296) for step in range(1, 131_297))]
    gaps = [now - before for before, now in pairwise(rates)]
    assert max(map(abs, gaps)) == pytest.approx(gap, rel=1e-3)
    assert min(gaps) == pytest.approx(-3.589e-9, rel=1e-3)
    assert gaps[-1] == 0
