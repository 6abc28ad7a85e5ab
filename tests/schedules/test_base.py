from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from rewarm import Schedule, cosine, linear


class Flat(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["flat"] = "flat"
    lr: float

    def __call__(self, progress):
        return self.lr


def test_linear_and_cosine_by_hand():
    assert [linear(x, 1, 3) for x in (0, 0.5, 1)] == [1, 2, 3]
    assert [cosine(x, 3, 1) for x in (0, 0.5, 1)] == [3, 2, 1]
    assert cosine(1 / 3, 3, 1) == pytest.approx(2.5)


def test_both_are_exact_at_their_ends():
    for curve in (linear, cosine):
        assert (curve(0, 0.1, 0.3), curve(1, 0.1, 0.3)) == (0.1, 0.3)


def test_a_schedule_is_frozen_and_refuses_unknown_settings():
    with pytest.raises(ValidationError, match="frozen"):
        Flat(lr=1.0).lr = 2.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        Flat(lr=1.0, rl=2.0)


def test_a_schedule_has_no_marks_by_default():
    assert Flat(lr=1.0).marks() == {}


def test_a_schedule_needs_a_call():
    class NoCall(Schedule):
        contract: ClassVar[int] = 1
        name: Literal["no-call"] = "no-call"

    with pytest.raises(TypeError, match="abstract"):
        NoCall()
