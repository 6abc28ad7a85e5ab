import math
import re

import pytest
import torch
from training_runs import signal_in_step, trained_files, metrics, run

from rewarm.data.batch_loader import DataPosition
from rewarm.errors import Diverged, Preempted
from rewarm.recipe.fields import GuardSettings as Settings
from rewarm.training import loop
from rewarm.training.divergence_guard import DivergenceGuard, RateRise, StabilityGap

NOWHERE = DataPosition({})


def judged(guard, losses, *, lr=1e-3, first=1):
    """Has a guard judge losses; returns which steps were not to be applied."""
    skipped = []
    for step, loss in enumerate(losses, start=first):
        guard.begin(step, lr, NOWHERE)
        if guard.judge(torch.tensor(loss), torch.tensor(1.0)).item():
            skipped.append(step)
    return skipped


def guard(state=None, **settings):
    return DivergenceGuard(Settings(**settings), torch.device("cpu"), state or {}, base_lr=1e-3)


CALM = [3.0 + 0.01 * math.sin(7 * step) for step in range(40)]


def test_a_loss_that_is_not_finite_is_not_applied():
    one = guard(patience=3)
    assert judged(one, [*CALM, math.nan, 3.0, math.inf, math.inf]) == [41, 43, 44]
    events, stop = one.read(100)
    assert [(event.kind, event.step) for event in events] == [
        ("not-finite", 41), ("not-finite", 43), ("not-finite", 44),
    ]  # fmt: skip
    assert stop is None
    judged(one, [math.nan], first=45)
    _, stop = one.read(100)
    assert stop.reason.startswith("steps 43 to 45 were not finite: loss nan")
    assert stop.trouble == 43


@pytest.mark.parametrize(
    ("on_spike", "skipped", "stops"),
    [("warn", [], False), ("stop", [], True), ("skip", [41], False)],
)
def test_a_spike(on_spike, skipped, stops):
    one = guard(on_spike=on_spike)
    assert judged(one, [*CALM, 4.0, 3.0]) == skipped
    (event,), stop = one.read(100)
    assert (event.kind, event.step) == ("spike", 41)
    assert event.values["z"] > 6
    assert bool(stop) is stops


def test_a_guard_goes_on_from_its_state():
    whole, first = guard(on_spike="skip"), guard(on_spike="skip")
    judged(whole, CALM)
    judged(first, CALM[:23])
    first.read(1)
    rest = guard(first.state(), on_spike="skip")
    judged(rest, CALM[23:], first=24)
    whole.read(1)
    rest.read(1)
    assert rest.state() == whole.state()
    assert judged(rest, [4.0], first=41) == judged(whole, [4.0], first=41) == [41]


def test_a_rise_while_the_rate_is_raised_is_no_spike():
    one = guard(on_spike="skip")
    judged(one, CALM)
    for step in range(41, 51):
        one.begin(step, 1e-3 * (step - 39), NOWHERE)
        assert not one.judge(torch.tensor(3.0 + (step - 40) / 10), torch.tensor(1.0)).item()


def test_the_stability_gap_is_measured():
    gap = StabilityGap(rise=RateRise(lr=1e-3))
    losses = [3.0] * 10 + [3.5] * 10 + [2.9] * 20
    rates = [1e-3] * 5 + [1e-3 + 1e-4 * n for n in range(1, 6)] + [1.5e-3] * 30
    found = [
        event
        for step, (loss, lr) in enumerate(zip(losses, rates, strict=True), start=1)
        if (event := gap.see(step, lr, loss, tokens_per_step=100))
    ]
    (event,) = found
    # The rate rises from step 6 on, the mean of 8 losses is back at 3.0 with the 7th loss of 2.9.
    assert event.values["from"] == 6
    assert event.values["height"] == pytest.approx(0.5)
    assert event.values["tokens_to_recover"] == (event.step - 5) * 100
    assert 26 <= event.step <= 28


@pytest.fixture
def tampered(monkeypatch):
    """Has the loss of some steps be told otherwise; returns the weights before each step."""

    def tamper(change, *steps):
        take, weights = loop.take_step, []

        def taken(model, *args, judge, **kwargs):
            weights.append({n: t.clone() for n, t in model.state_dict().items()})
            tell = change if len(weights) in steps else float
            return take(
                model, *args, judge=lambda loss, norm: judge(torch.tensor(tell(loss)), norm),
                **kwargs,
            )  # fmt: skip

        monkeypatch.setattr(loop, "take_step", taken)
        return weights

    return tamper


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_bad_batch_leaves_the_run_as_it_was(recipe_text, tmp_path, tampered):
    before = tampered(lambda _: math.nan, 7, 8)
    run(recipe_text, tmp_path / "run")
    assert same(before[6], before[8])
    assert not same(before[8], before[9])
    lines = metrics(tmp_path / "run")
    assert [x["step"] for x in lines if x["kind"] == "not-finite"] == [7, 8]
    assert [x["skipped"] for x in lines if x["kind"] == "train"][-1] == 2


STEADY = {"schedule": "{name: constant, lr: 1e-4}", "tokens": 30720, "data__max_epochs": "null"}


def test_a_spike_can_stop_a_run_with_its_shards_named(recipe_text, tmp_path, tampered):
    tampered(lambda loss: float(loss) + 3, 25)
    stop = {"guard": "{on_spike: stop}", "every__save": 8}
    with pytest.raises(Diverged) as error:
        run(recipe_text, tmp_path / "run", **STEADY, **stop)
    assert "the loss spiked at step 25: " in str(error.value)
    assert re.search(r"read from downstream: 0\d+\.tar.*; upstream: 0\d+\.tar", str(error.value))
    assert "step-00000024; try" in str(error.value)


def test_skipping_is_resumed_exactly(recipe_text, tmp_path, tampered, monkeypatch):
    skip = {"guard": "{on_spike: skip}", **STEADY}
    with monkeypatch.context():
        before = tampered(lambda loss: float(loss) + 3, 25)
        straight = run(recipe_text, tmp_path / "straight", **skip)
        assert same(before[24], before[25])
    monkeypatch.undo()
    signal_in_step(monkeypatch, 21)
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "stopped", **skip)
    monkeypatch.undo()
    tampered(lambda loss: float(loss) + 3, 4)
    assert trained_files(run(recipe_text, tmp_path / "stopped", resume=True, **skip)) == trained_files(straight)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")
    assert metrics(tmp_path / "straight")[-2]["skipped"] == 1
