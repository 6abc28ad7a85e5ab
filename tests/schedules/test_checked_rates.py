import math
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel

from rewarm import Schedule, schedules
from rewarm.errors import ScheduleError
from rewarm.quantities import RateOfBase
from rewarm.schedules import Constant, Rewarm


class ThirdParty(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["third-party"] = "third-party"
    result: object

    def __call__(self, progress):
        return 1 / 0 if self.result == "raise" else self.result

    def marks(self):
        return 1 / 0 if self.result == "raise" else {"end": self.result}


@pytest.mark.parametrize(
    ("result", "message"),
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
def test_invalid_rates_are_errors(result, message):
    with pytest.raises(ScheduleError) as raised:
        schedules.rate(ThirdParty(result=result), 0.25)
    assert str(raised.value) == f"schedule 'third-party' at progress 0.25 {message}"


def test_an_integer_is_a_rate():
    assert schedules.rate(ThirdParty(result=0), 1) == 0.0
    assert schedules.rate(ThirdParty(result=1), 1) == 1.0


@pytest.mark.parametrize("result", [math.nan, math.inf, "soon", None, "raise"])
def test_invalid_marks_are_errors(result):
    with pytest.raises(ScheduleError, match="mark"):
        schedules.marks(ThirdParty(result=result))


def test_valid_marks_are_returned():
    assert schedules.marks(ThirdParty(result=0.5)) == {"end": 0.5}


def test_a_schedule_that_returns_the_same_rates_passes():
    schedules.check_rates(Rewarm(peak_lr=3e-4, min_lr=3e-5), 1e-3)


def test_a_schedule_that_keeps_state_is_an_error():
    calls = []

    class Stateful(ThirdParty):
        def __call__(self, progress):
            calls.append(progress)
            return 1.0 / len(calls)

        def marks(self):
            return {}

    with pytest.raises(ScheduleError, match=r"at progress 1 gave 0\.005, and .* when called again"):
        schedules.check_rates(Stateful(result=0), 1e-3)


def test_marks_before_the_first_step_are_checked_at_the_first_step():
    class FailsAtZero(ThirdParty):
        def __call__(self, progress):
            return 1.0 if progress >= 0.001 else math.nan

        def marks(self):
            return {"start": 0.0}

    schedules.check_rates(FailsAtZero(result=0), 0.001)


def test_a_sampled_curve_has_a_hundred_rates():
    curve = schedules.sample_curve(Rewarm(peak_lr=1.0, min_lr=0.0, warmup="50%", decay="linear"))
    assert len(curve) == 100
    assert (curve[0], curve[49], curve[99]) == (0.02, 1.0, 0.0)


def test_rates_of_the_base_are_listed_with_their_arithmetic():
    class Two(BaseModel):
        parts: list[Constant]

    rate = RateOfBase(5, 3e-5)
    constant = Constant.model_construct(lr=rate)
    assert list(schedules.of_base(constant)) == ["lr = 5 × 3e-05 (the base's last) = 0.00015"]
    both = Two.model_construct(parts=[Constant(lr=1.0), constant])
    assert list(schedules.of_base(both)) == ["parts.1.lr = 5 × 3e-05 (the base's last) = 0.00015"]
