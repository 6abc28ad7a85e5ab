"""The rate that a step was applied at, measured on the weights, is the scheduled one."""

import math

import pytest
import torch
from tiny_models import random_tokens, take_tiny_step, tiny_model
from training_runs import measured_rates, run

from rewarm.errors import Preempted, ScheduleError
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.training.applied_rate_check import AppliedRateProbe
from rewarm.training.optimizer import build_adamw, set_lr


@pytest.fixture
def tiny():
    model = tiny_model()
    return model, build_adamw(model, OptimizerSettings())


def test_the_rate_is_measured(tiny):
    model, optimizer = tiny
    for step, lr in enumerate((1e-3, 3e-5), start=1):
        probe = AppliedRateProbe(model, optimizer)
        take_tiny_step(model, optimizer, random_tokens(), lr=lr)
        assert probe.check(lr, step) == pytest.approx(lr, rel=1e-3)


def test_a_hook_that_restores_the_rate_is_found_on_the_weights(tiny):
    model, optimizer = tiny
    optimizer.register_step_pre_hook(lambda *_: set_lr(optimizer, 3e-5))
    optimizer.register_step_post_hook(lambda *_: set_lr(optimizer, 1e-3))
    probe = AppliedRateProbe(model, optimizer)
    take_tiny_step(model, optimizer, random_tokens())
    with pytest.raises(ScheduleError, match=r"at a rate of 3e-05, .* says 0\.001"):
        probe.check(1e-3, step=1)


def test_a_step_that_rounds_away_is_not_measured(tiny):
    model, optimizer = tiny
    bias = model.gpt_neox.final_layer_norm.bias
    with torch.no_grad():
        bias.fill_(1e6)  # its last place is 0.06: a step of 1e-3 leaves it as it is
    probe = AppliedRateProbe(model, optimizer)
    take_tiny_step(model, optimizer, random_tokens())
    assert torch.equal(bias, torch.full_like(bias, 1e6))
    assert probe.check(1e-3, step=1) is None


def test_a_head_of_zeros_gives_the_bias_no_gradient(tiny):
    model, optimizer = tiny
    with torch.no_grad():
        model.embed_out.weight.zero_()
    for step, expected in ((1, None), (2, pytest.approx(1e-3, rel=1e-3))):
        probe = AppliedRateProbe(model, optimizer)
        take_tiny_step(model, optimizer, random_tokens())
        assert probe.check(1e-3, step) == expected


@pytest.mark.parametrize("setting", [("eps", "1e308"), ("clip", "1e-320")])
def test_a_rate_that_cannot_be_measured_is_said_to_be_not_measured(
    recipe_text, tmp_path, capsys, setting
):
    name, value = setting
    run(recipe_text, tmp_path / "run", tokens=2048, **{f"optimizer__{name}": value})
    assert measured_rates(tmp_path / "run") == {1: None, 2: None}
    assert "step 2  lr 0.001 was not measured on the weights: they moved" in capsys.readouterr().err


# The recipe's own curve: up to 1e-2 over 10 % of 20 steps, so 5e-3 and 1e-2 at steps 1 and 2.
@pytest.mark.parametrize("carry", ["false", "true"])
def test_a_base_brings_no_rate_with_it(recipe_text, tmp_path, carry):
    base = run(recipe_text, tmp_path / "base")
    start = {"model": f"{{base: {base}}}", "optimizer__carry": carry}
    run(recipe_text, tmp_path / "run", **start)
    rates = measured_rates(tmp_path / "run")
    assert rates.keys() == {1, 2, 3, 20}
    assert rates[1] == pytest.approx(5e-3, rel=1e-3)
    assert rates[2] == pytest.approx(1e-2, rel=1e-3)
    assert rates[20] == pytest.approx(1e-3, rel=1e-3)


@pytest.fixture
def stopped(recipe_text, tmp_path):
    """A run that was stopped after 11 of 20 steps."""
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "run", until=11)
    return tmp_path / "run"


def test_the_first_step_after_a_resume_has_the_scheduled_rate(recipe_text, stopped):
    run(recipe_text, stopped, resume=True)
    rates = measured_rates(stopped)
    # Step k of the decay: 1e-3 + 9e-3 · (1 + cos(π (k/20 − 0.1) / 0.9)) / 2.
    for step in (12, 13):
        expected = 1e-3 + 9e-3 * (1 + math.cos(math.pi * (step / 20 - 0.1) / 0.9)) / 2
        assert rates[step] == pytest.approx(expected, rel=1e-3)


def test_a_resume_with_another_schedule_uses_that_one(recipe_text, stopped):
    other = {"schedule": "{name: constant, lr: 4e-4}"}
    run(recipe_text, stopped, resume=True, accept_changes=True, **other)
    rates = measured_rates(stopped)
    assert [rates[12], rates[13], rates[20]] == pytest.approx([4e-4] * 3, rel=1e-3)
