import math
import sys
from typing import ClassVar, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from plain_rewarm import PAPER, STEPS
from pydantic import BaseModel, ValidationError, field_validator

from rewarm import Schedule, cosine, linear, schedules
from rewarm.errors import ScheduleError
from rewarm.quantities import Budget
from rewarm.schedules import Constant, NoWarmup, Rewarm
from rewarm.testing import rates as rates_of

FALLING = ["cosine", "clipped-cosine", "linear", "1-sqrt", "inverse-sqrt"]


def rewarm(**settings) -> Rewarm:
    return Rewarm(**{"peak_lr": 3e-4, "min_lr": 3e-5, **settings})


@pytest.mark.parametrize("n", PAPER)
def test_the_tables_of_the_paper(n):
    clipped, textbook = PAPER[n]
    assert f"{rewarm(decay='clipped-cosine')(n / STEPS):.4e}" == f"{clipped:.4e}"
    assert f"{rewarm()(n / STEPS):.4e}" == f"{textbook:.4e}"


def test_the_clipped_cosine_reaches_its_floor_at_239_of_296_859_billion_tokens():
    curve = rewarm(decay="clipped-cosine")
    assert round(curve.floor_at() * 296.859, 1) == 239.0
    assert curve.floor_at() == pytest.approx(0.01 + 0.795167, abs=1e-6)
    assert curve(105_715 / STEPS) > curve(105_716 / STEPS) == 3e-5 == curve(1)


def test_pythias_own_curve():
    pythia = rewarm(decay="clipped-cosine")
    # paper.md says 2.974e-4 and 2.770e-4, which are these rounded once more.
    assert f"{pythia(10_000 / 143_000):.4e}" == "2.9735e-04"
    assert f"{pythia(27_000 / 143_000):.4e}" == "2.7695e-04"
    assert pythia(115_138 / 143_000) > 3e-5
    assert all(pythia(step / 143_000) == 3e-5 for step in range(115_139, 143_001, 500))


def test_the_textbook_curve_ends_at_its_minimum_and_only_there():
    assert rewarm().floor_at() == 1
    assert rewarm()(1) == 3e-5 < rewarm()(1 - 1e-6)


@pytest.mark.parametrize("decay", FALLING)
@pytest.mark.parametrize("min_lr", [0.0, 3e-5])
def test_the_rate_holds_past_the_end(decay, min_lr):
    curve = rewarm(decay=decay, min_lr=min_lr, warmup="20%")
    assert curve(1) == curve(1.000001) == curve(1.1) == curve(2)


def test_a_linear_decay_by_hand():
    curve = rewarm(decay="linear", start_lr=1e-4, warmup="20%")
    by_hand = {0.1: 2e-4, 0.2: 3e-4, 0.4: 2.325e-4, 0.6: 1.65e-4, 1.0: 3e-5}
    assert {at: curve(at) for at in by_hand} == pytest.approx(by_hand)


def test_a_decay_of_one_minus_the_root_by_hand():
    # paper.md, section 3, where 1,000 - 800 steps are what 80 % of the run are here.
    curve = rewarm(decay="1-sqrt", warmup="20%")
    by_hand = {0.204: 2.8091e-4, 0.4: 1.65e-4, 0.6: 1.0908e-4, 0.8: 6.6173e-5, 1.0: 3e-5}
    assert {at: f"{curve(at):.4e}" for at in by_hand} == {
        at: f"{rate:.4e}" for at, rate in by_hand.items()
    }


def test_an_inverse_square_root_by_hand():
    # peak · √(warmup / steps): half the peak at four times the warm-up, a tenth at a hundred times.
    curve = rewarm(decay="inverse-sqrt", warmup="0.5%", min_lr=3e-5)
    by_hand = {0.0025: 1.5e-4, 0.005: 3e-4, 0.02: 1.5e-4, 0.045: 1e-4, 0.5: 3e-5, 1.0: 3e-5}
    assert {at: curve(at) for at in by_hand} == pytest.approx(by_hand)
    assert curve.floor_at() == pytest.approx(0.5)
    heated = rewarm(decay="inverse-sqrt", warmup="0.5%", preheat="10%")
    assert heated(0.12) == pytest.approx(1.5e-4)
    assert heated.floor_at() == pytest.approx(0.6)
    assert rewarm(decay="inverse-sqrt", min_lr=0.0)(1) == pytest.approx(3e-5)


def test_no_decay_keeps_the_peak():
    curve = rewarm(decay="none", min_lr=None)
    assert [curve(at) for at in (0.005, 0.01, 0.5, 1.0, 3.0)] == [1.5e-4] + [3e-4] * 4
    assert curve.marks() == {"end of warm-up": 0.01}
    assert NoWarmup(peak_lr=3e-4, decay="none")(0.5) == 3e-4


@pytest.mark.parametrize("decay", sorted({*FALLING} - {"inverse-sqrt"}))
def test_no_warmup_is_rewarm_without_warmup(decay):
    without = NoWarmup(peak_lr=3e-4, min_lr=3e-5, decay=decay)
    zero = rewarm(warmup=0, decay=decay)
    places = [step / 100 for step in range(1, 120)]
    assert [without(at) for at in places] == [zero(at) for at in places]
    assert without(1e-9) == pytest.approx(3e-4, rel=1e-4)
    assert without.marks() == {"floor": without.floor_at()}


def test_constant():
    assert {Constant(lr=3e-5)(at) for at in (1e-9, 0.5, 1, 7)} == {3e-5}
    assert Constant(lr=3e-5).marks() == {}


def test_marks():
    marks = rewarm(decay="clipped-cosine", warmup="2%").marks()
    assert marks == {"end of warm-up": 0.02, "floor": pytest.approx(0.815167, abs=1e-6)}


def test_lines_and_waves():
    assert [linear(x, 1, 3) for x in (0, 0.5, 1)] == [1, 2, 3]
    assert [cosine(x, 3, 1) for x in (0, 0.5, 1)] == [3, 2, 1]
    assert cosine(1 / 3, 3, 1) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("settings", "said"),
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
        ({"decay": "none"}, "decay: none stays at peak_lr and has no min_lr; take it away"),
        ({"decay": "inverse-sqrt", "warmup": 0}, "it needs a warmup, so use the schedule rewarm"),
        ({"preheat": "50%", "warmup": "50%"}, "together should be less than the whole run"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        rewarm(**settings)


def test_a_schedule_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        rewarm().peak_lr = 1.0


rates = st.floats(min_value=0, max_value=10)
shares = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(
    st.lists(rates, min_size=3, max_size=3).map(sorted),
    st.booleans(),
    shares,
    st.sampled_from(FALLING),
    st.floats(min_value=0, max_value=3, exclude_min=True),
)
def test_rates_stay_between_the_lowest_and_the_peak(three, start_is_low, warmup, decay, progress):
    low, high, peak = three
    start, floor = (low, high) if start_is_low else (high, low)
    assume(warmup > 0 or decay != "inverse-sqrt")
    curve = Rewarm(start_lr=start, peak_lr=peak, min_lr=floor, warmup=warmup, decay=decay)
    assert low * (1 - 1e-9) <= schedules.rate(curve, progress) <= peak * (1 + 1e-9)


# Plug-ins: real distributions on the path.

SOURCE = """
from typing import ClassVar, Literal
from rewarm import Schedule

class Step(Schedule):
    "Falls to a tenth half way."
    contract: ClassVar[int] = 1
    name: Literal["step"] = "step"
    lr: float
    def __call__(self, progress):
        return self.lr if progress < 0.5 else self.lr / 10

class Uncallable(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["uncallable"] = "uncallable"

def function(progress):
    return 1.0
"""


def test_the_built_in_ones_enter_by_the_same_door():
    builtin = {one.name: one.distribution for one in schedules.installed()}
    assert builtin.items() >= dict.fromkeys(["constant", "no-warmup", "rewarm"], "rewarm").items()
    assert schedules.find("rewarm") is Rewarm
    assert schedules.find("no-warmup") is NoWarmup
    assert schedules.find("constant") is Constant


def test_a_plug_in_is_found_and_works(distribution):
    distribution("found_steps", SOURCE, step="Step")
    kind = schedules.find("step")
    assert issubclass(kind, Schedule)
    assert [kind(lr=1.0)(at) for at in (0.1, 0.9)] == [1.0, 0.1]
    assert schedules.origin("step")[:3] == ("step", "found_steps", "1.0")


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(
        ScheduleError,
        match=r"no schedule named 'rewram'; did you mean 'rewarm'\? \(installed: .*no-warmup",
    ):
        schedules.find("rewram")
    with pytest.raises(ScheduleError, match=r"no schedule named 'zzz' \(installed: "):
        schedules.find("zzz")


def test_only_the_schedule_that_is_named_is_imported(distribution):
    distribution("never_imported", "raise RuntimeError('imported')", never="Never")
    assert schedules.find("rewarm") is Rewarm
    assert "never" in [one.name for one in schedules.installed()]
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize(
    ("name", "source", "kind", "said"),
    [
        ("bad_raise", "raise RuntimeError('out of order')", "Step", "RuntimeError: out of order"),
        ("bad_exit", "import sys; sys.exit(7)", "Step", "SystemExit: 7"),
        ("bad_import", "import no_such_module", "Step", "ModuleNotFoundError: No module named"),
        ("bad_syntax", "def", "Step", "SyntaxError"),
        ("bad_nothing", "", "Step", "AttributeError"),
    ],
)
def test_a_plug_in_that_cannot_be_imported(distribution, name, source, kind, said):
    distribution(name, source, step=kind)
    with pytest.raises(ScheduleError, match=rf"{name} 1\.0 cannot be imported: {said}") as raised:
        schedules.find("step")
    assert str(raised.value).endswith(f"mend or uninstall {name}")


@pytest.mark.parametrize(
    ("module", "entry", "kind", "said"),
    [
        ("odd_function", "f", "function", "is not a rewarm.Schedule: odd_function:function"),
        ("odd_type", "f", "Literal", "is not a rewarm.Schedule"),
        ("odd_name", "stairs", "Step", "calls itself 'step'; the two names must be the same"),
        ("odd_call", "uncallable", "Uncallable", "has no __call__"),
    ],
)
def test_a_plug_in_that_is_not_what_it_claims(distribution, module, entry, kind, said):
    distribution(module, SOURCE, **{entry: kind})
    with pytest.raises(ScheduleError, match=f"schedule '{entry}' of {module} 1.0 {said}"):
        schedules.find(entry)


def test_a_distribution_whose_metadata_say_nothing_is_still_listed(distribution, tmp_path):
    distribution("anonymous", SOURCE, step="Step")
    (tmp_path / "site" / "anonymous-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\n"
    )
    assert schedules.origin("step")[:3] == ("step", "?", "?")
    assert schedules.identity("step") == {"name": "step", "distribution": "?", "version": "?"}
    assert issubclass(schedules.find("step"), Schedule)


def test_two_distributions_with_one_name_are_refused_before_either_is_imported(distribution):
    for name in ("twin_a", "twin_b"):
        distribution(name, SOURCE, step="Step")
    with pytest.raises(
        ScheduleError,
        match=r"two distributions offer .* 'step': twin_a 1.0 and twin_b 1.0; uninstall one",
    ):
        schedules.find("step")
    assert not {"twin_a", "twin_b"} & set(sys.modules)


# rate() and marks(): what a stranger's curve may give.


class Stranger(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["stranger"] = "stranger"
    gives: object

    def __call__(self, progress):
        return 1 / 0 if self.gives == "raise" else self.gives

    def marks(self):
        return 1 / 0 if self.gives == "raise" else {"end": self.gives}


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (math.nan, "gave nan; a rate is finite and not negative"),
        (math.inf, "gave inf; a rate is finite and not negative"),
        (-1e-9, "gave -1e-09; a rate is finite and not negative"),
        ("3e-4", "gave '3e-4'; a rate is a number"),
        (True, "gave True; a rate is a number"),
        (None, "gave None; a rate is a number"),
        ("raise", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_rates_that_are_none(gives, said):
    with pytest.raises(ScheduleError) as raised:
        schedules.rate(Stranger(gives=gives), 0.25)
    assert str(raised.value) == f"schedule 'stranger' at progress 0.25 {said}"


def test_a_whole_number_is_a_rate():
    assert schedules.rate(Stranger(gives=0), 1) == 0.0
    assert schedules.rate(Stranger(gives=1), 1) == 1.0


@pytest.mark.parametrize("gives", [math.nan, math.inf, "soon", None, "raise"])
def test_marks_that_are_none(gives):
    with pytest.raises(ScheduleError, match="mark"):
        schedules.marks(Stranger(gives=gives))


def test_marks_are_handed_on():
    assert schedules.marks(Stranger(gives=0.5)) == {"end": 0.5}


# read(), which recipes and schedules made of others read settings through.


def test_settings_are_read_against_the_budget_and_the_base_that_are_given():
    written = {"name": "rewarm", "peak_lr": "10x base", "min_lr": "base", "warmup": "25 steps"}
    context = {"budget": Budget(100.0, 64), "base_lr": lambda: 3e-5}
    read = schedules.read(written, context)
    assert (type(read), float(read.warmup), read.min_lr) == (Rewarm, 0.25, 3e-5)
    longer = schedules.read(read, {"budget": Budget(1000, 64), "base_lr": None})
    assert (float(longer.warmup), longer.min_lr) == (0.025, 3e-5)


@pytest.mark.parametrize(
    ("written", "place", "said"),
    [
        ("rewarm", (), "Value error, should be settings, such as {name: rewarm"),
        ({}, ("name",), "required, but missing"),
        ({"name": 3}, ("name",), "should be text"),
        ({"name": "rewram"}, ("name",), "no schedule named 'rewram'; did you mean 'rewarm'?"),
        ({"name": "constant", "rl": 1}, ("lr",), "Field required"),
    ],
)
def test_settings_that_cannot_be_read_are_told_with_their_place(written, place, said):
    class Outer(BaseModel):
        inner: Schedule

        @field_validator("inner", mode="plain")
        @classmethod
        def _read(cls, value, info):
            return schedules.read(value, {"budget": None, "base_lr": None})

    with pytest.raises(ValidationError) as raised:
        Outer(inner=written)
    first = raised.value.errors()[0]
    assert first["loc"] == ("inner", *place)
    assert first["msg"].startswith(said)


def test_the_rates_of_a_run_step_by_step():
    found = rates_of("rewarm", 4, peak_lr=2.0, min_lr="base", warmup="2 steps", decay="linear")
    assert found == [1.0, 2.0, pytest.approx(1 + 1.5e-5), 3e-5]
    assert rates_of(Constant, 2, lr="base") == [3e-5, 3e-5]
    rise = {"peak_lr": 1.0, "decay": "none", "warmup": "20 tokens"}
    assert rates_of("rewarm", 4, tokens_per_step=10, **rise) == [0.5, 1.0, 1.0, 1.0]
