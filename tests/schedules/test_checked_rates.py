import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel

from rewarm import Schedule, schedules
from rewarm.errors import ScheduleError
from rewarm.quantities import RateOfBase
from rewarm.schedules import Constant, Rewarm, checked_rates


class ThirdParty(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["third-party"] = "third-party"
    result: object

    def __call__(self, progress):
        if isinstance(self.result, BaseException):
            raise self.result
        return 1 / 0 if self.result == "raise" else self.result

    def marks(self):
        if isinstance(self.result, BaseException):
            raise self.result
        return 1 / 0 if self.result == "raise" else {"end": self.result}


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Number(float):
    def __float__(self):
        return math.nan

    def __repr__(self):
        raise RuntimeError("no text")


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
        (SystemExit(0), "raised SystemExit: 0"),
        (GeneratorExit(), "raised GeneratorExit"),
        (Unprintable(), "raised Unprintable: (its text cannot be read)"),
        (10**400, "raised OverflowError: int too large to convert to float"),
        (Number(1.0), "gave a Number; a rate is finite and not negative"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_invalid_rates_are_errors(result, message):
    with pytest.raises(ScheduleError) as raised:
        schedules.rate(ThirdParty(result=result), 0.25)
    assert str(raised.value) == f"schedule 'third-party' at progress 0.25 {message}"


def test_an_integer_is_a_rate():
    assert schedules.rate(ThirdParty(result=0), 1) == 0.0
    assert schedules.rate(ThirdParty(result=1), 1) == 1.0


@pytest.mark.parametrize(
    "result", [math.nan, math.inf, "soon", None, "raise", SystemExit(0), GeneratorExit(), 10**400]
)
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


@pytest.mark.parametrize("call", [schedules.rate, schedules.check_rates])
def test_an_interrupt_of_the_user_stays_an_interrupt(call):
    with pytest.raises(KeyboardInterrupt):
        call(ThirdParty(result=KeyboardInterrupt()), 0.5)


def test_a_label_of_a_mark_is_text():
    class Numbered(ThirdParty):
        def marks(self):
            return {1: 0.5}

    with pytest.raises(ScheduleError, match=r"marks \{1: 0.5\}; a mark is a label and a finite"):
        schedules.marks(Numbered(result=0))


@pytest.mark.parametrize("name", ["__call__", "marks"])
@pytest.mark.parametrize("hang", ["sleeps", "spins and catches everything"])
def test_a_schedule_that_hangs_is_an_error(monkeypatch, name, hang):
    ended = threading.Event()

    def wait(*_):
        while not ended.is_set():
            try:
                ended.wait(60 if hang == "sleeps" else 0)
            except BaseException:
                continue
        return {}

    monkeypatch.setattr(checked_rates, "_MAX_SECONDS", 0.2)
    kind = type("Hanging", (ThirdParty,), {name: wait, "__module__": __name__})
    for read in (lambda s: schedules.check_rates(s, 0.1), schedules.marks, schedules.sample_curve):
        if (read is schedules.marks) == (name == "marks"):
            with pytest.raises(
                ScheduleError, match=r"'third-party' did not return .* within 0.2 s"
            ):
                read(kind(result=0.5))
    ended.set()


def test_a_schedule_that_hangs_is_an_error_in_a_thread_too(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(checked_rates, "_MAX_SECONDS", 0.2)

    class Hanging(ThirdParty):
        def __call__(self, progress):
            ended.wait(60)

    with ThreadPoolExecutor() as threads:
        checked = threads.submit(schedules.check_rates, Hanging(result=0), 0.1)
        with pytest.raises(ScheduleError, match="did not return its rates"):
            checked.result()
    ended.set()
