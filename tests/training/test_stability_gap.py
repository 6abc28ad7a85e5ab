"""The stability gap: when the rate's rise starts, how far the loss rises, when it recovers."""

import pytest

from rewarm.training.stability_gap import GuardEvent, RateRise, StabilityGap


def test_height_and_recovery_by_hand():
    gap = StabilityGap(rise=RateRise(lr=1e-3))
    losses = [3.0] * 10 + [3.5] * 10 + [2.9] * 20
    rates = [1e-3] * 5 + [1e-3 + 1e-4 * n for n in range(1, 6)] + [1.5e-3] * 30
    events = [
        event
        for step, (loss, lr) in enumerate(zip(losses, rates, strict=True), start=1)
        if (event := gap.update(step, lr, loss, tokens_per_step=100))
    ]
    (event,) = events
    # The rate rises from step 6 on; the mean of 8 losses is at 3.0 again with the 7th loss of 2.9.
    assert event.values["from"] == 6
    assert event.values["height"] == pytest.approx(0.5)
    assert event.values["tokens_to_recover"] == (event.step - 5) * 100
    assert 26 <= event.step <= 28


def test_a_rise_is_expected_to_show_for_as_many_steps_again():
    rise = RateRise(lr=1e-3)
    expected = [rise.update(step, 1e-3 * max(1, min(step - 4, 4))) for step in range(1, 15)]
    # The rate is above that of the step before in steps 6, 7 and 8.
    assert [step for step, is_expected in enumerate(expected, start=1) if is_expected] == [
        *(6, 7, 8, 9, 10, 11)
    ]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "stability-gap",
            {"height": 0.25, "top_step": 40, "tokens_to_recover": 2000},
            "step 1,000  stability gap: the training loss rose by 0.2500 until step 40; recovered "
            "after 2,000 tokens",
        ),
        (
            "stability-gap",
            {"height": 0.25, "top_step": 40, "tokens_to_recover": None},
            "step 1,000  stability gap: the training loss rose by 0.2500 until step 40; not "
            "recovered",
        ),
        (
            "overflow",
            {"loss_scale": 4096.0},
            "step 1,000  the gradient overflowed fp16 at a loss scale of 4,096; not applied",
        ),
        (
            "spike",
            {"loss": 4.0, "z": 7.5, "applied": True},
            "step 1,000  warning: loss 4.0000 is a spike (z 7.5); applied",
        ),
        (
            "not-finite",
            {"loss": float("nan"), "grad_norm": 2.0, "applied": False},
            "step 1,000  warning: loss nan, gradient norm 2; not applied",
        ),
    ],
)
def test_messages(kind, values, message):
    assert GuardEvent(kind, 1000, values).message() == message
