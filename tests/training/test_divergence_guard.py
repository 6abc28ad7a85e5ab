"""The divergence guard: which steps are applied, and when a run has to stop."""

import math

import pytest
import torch
from tiny_models import same_tensors
from training_runs import metrics, run, signal_in_step, trained_files

from rewarm.data.batch_loader import DataPosition
from rewarm.errors import Diverged, Preempted
from rewarm.recipe.training_settings import GuardSettings
from rewarm.training import loop
from rewarm.training.divergence_guard import DivergenceGuard

CALM_LOSSES = [3.0 + 0.01 * math.sin(7 * step) for step in range(40)]


def judge_losses(guard, losses, *, first=1):
    """Has a guard judge losses; returns the steps that should not be applied."""
    skipped = []
    for step, loss in enumerate(losses, start=first):
        guard.start_step(step, 1e-3, DataPosition({}))
        if guard.should_skip(torch.tensor(loss), torch.tensor(1.0)).item():
            skipped.append(step)
    return skipped


def make_guard(state=None, **settings):
    return DivergenceGuard(
        GuardSettings(**settings), torch.device("cpu"), state or {}, base_lr=1e-3
    )


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run():
    guard = make_guard(patience=3)
    losses = [*CALM_LOSSES, math.nan, 3.0, math.inf, math.inf]
    assert judge_losses(guard, losses) == [41, 43, 44]
    events, stop = guard.read(100)
    assert [(event.kind, event.step) for event in events] == [
        ("not-finite", 41), ("not-finite", 43), ("not-finite", 44),
    ]  # fmt: skip
    assert stop is None
    judge_losses(guard, [math.nan], first=45)
    _, stop = guard.read(100)
    assert stop.reason.startswith("steps 43 to 45 were not finite: loss nan")
    assert stop.first_bad_step == 43


@pytest.mark.parametrize(
    ("on_spike", "skipped", "stops"),
    [("warn", [], False), ("stop", [], True), ("skip", [41], False)],
)
def test_spike(on_spike, skipped, stops):
    guard = make_guard(on_spike=on_spike)
    assert judge_losses(guard, [*CALM_LOSSES, 4.0, 3.0]) == skipped
    (event,), stop = guard.read(100)
    assert (event.kind, event.step) == ("spike", 41)
    assert event.values["z"] > 6
    assert bool(stop) is stops


def test_guard_continues_from_its_saved_state():
    uninterrupted, before = make_guard(on_spike="skip"), make_guard(on_spike="skip")
    judge_losses(uninterrupted, CALM_LOSSES)
    judge_losses(before, CALM_LOSSES[:23])
    before.read(1)
    resumed = make_guard(before.state(), on_spike="skip")
    judge_losses(resumed, CALM_LOSSES[23:], first=24)
    uninterrupted.read(1)
    resumed.read(1)
    assert resumed.state() == uninterrupted.state()
    for guard in (resumed, uninterrupted):
        assert judge_losses(guard, [4.0], first=41) == [41]


def test_a_rise_of_the_loss_while_the_rate_rises_is_no_spike():
    guard = make_guard(on_spike="skip")
    judge_losses(guard, CALM_LOSSES)
    for step in range(41, 51):
        guard.start_step(step, 1e-3 * (step - 39), DataPosition({}))
        assert not guard.should_skip(torch.tensor(3.0 + (step - 40) / 10), torch.tensor(1.0)).item()


@pytest.fixture
def change_loss(monkeypatch):
    """Shows the guard another loss at some of a run's steps; returns the weights before each."""

    def change(new_loss, *steps):
        take_step, weights = loop.take_step, []

        def take_with_changed_loss(model, *args, should_skip, **kwargs):
            weights.append({name: t.clone() for name, t in model.state_dict().items()})
            shown = new_loss if len(weights) in steps else float

            def judge_changed_loss(loss, norm):
                return should_skip(torch.tensor(shown(loss)), norm)

            return take_step(model, *args, should_skip=judge_changed_loss, **kwargs)

        monkeypatch.setattr(loop, "take_step", take_with_changed_loss)
        return weights

    return change


def test_a_bad_batch_changes_no_weight(recipe_text, tmp_path, change_loss):
    before = change_loss(lambda _: math.nan, 7, 8)
    run(recipe_text, tmp_path / "run")
    assert same_tensors(before[6], before[8])
    assert not same_tensors(before[8], before[9])
    assert [line["step"] for line in metrics(tmp_path / "run", "not-finite")] == [7, 8]
    assert metrics(tmp_path / "run", "train")[-1]["skipped"] == 2


@pytest.mark.parametrize("patience", [1, 3])
def test_the_guard_stops_a_run_between_two_log_lines(recipe_text, tmp_path, change_loss, patience):
    steps = change_loss(lambda _: math.nan, *range(5, 21))
    settings = {"guard": f"{{patience: {patience}}}", "every": "{log: 100, save: null}"}
    last = 4 + patience
    with pytest.raises(Diverged, match=rf"steps? 5 (to {last} were|was) not finite"):
        run(recipe_text, tmp_path / "run", **settings)
    assert len(steps) == last  # on a CPU; on a GPU within MAX_STEPS_UNREAD steps more
    lines = metrics(tmp_path / "run", "not-finite")
    assert [line["step"] for line in lines] == list(range(5, last + 1))


def test_the_guard_stops_a_run_at_a_spike_between_two_log_lines(recipe_text, tmp_path, change_loss):
    steps = change_loss(lambda loss: float(loss) + 3, 25)
    settings = {"guard": "{on_spike: stop}", "every": "{log: 100, save: 100}"}
    with pytest.raises(Diverged, match="the loss spiked at step 25"):
        run(recipe_text, tmp_path / "run", **STEADY, **settings)
    assert len(steps) == 25


STEADY = {"schedule": "{name: constant, lr: 1e-4}", "tokens": 30720, "data__max_epochs": "null"}


def test_a_spike_can_stop_a_run_and_names_its_shards(recipe_text, tmp_path, change_loss):
    change_loss(lambda loss: float(loss) + 3, 25)
    settings = {"guard": "{on_spike: stop}", "every__save": 8}
    with pytest.raises(
        Diverged,
        match=r"the loss spiked at step 25: [\s\S]*read from downstream: 0\d+\.tar.*; "
        r"upstream: 0\d+\.tar[\s\S]*step-00000024; try",
    ):
        run(recipe_text, tmp_path / "run", **STEADY, **settings)


def test_a_run_that_skips_a_spike_is_resumed_exactly(
    recipe_text, tmp_path, change_loss, monkeypatch
):
    settings = {"guard": "{on_spike: skip}", **STEADY}
    with monkeypatch.context():
        before = change_loss(lambda loss: float(loss) + 3, 25)
        straight = run(recipe_text, tmp_path / "straight", **settings)
        assert same_tensors(before[24], before[25])
    monkeypatch.undo()
    signal_in_step(monkeypatch, 21)
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "stopped", **settings)
    monkeypatch.undo()
    change_loss(lambda loss: float(loss) + 3, 4)
    resumed = run(recipe_text, tmp_path / "stopped", resume=True, **settings)
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")
    assert metrics(tmp_path / "straight")[-2]["skipped"] == 1
