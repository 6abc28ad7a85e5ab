"""The loss scale of fp16: DeepSpeed's rule, exact scaling, and real overflows."""

import json
import math
import random
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_models import random_tokens, same_tensors, take_tiny_step, tiny_model
from training_runs import events, metrics, run, signal_in_step, trained_files

from recipes import recipe_problems
from rewarm.checkpoints.manifest import build_manifest
from rewarm.data.batch_loader import DataPosition
from rewarm.errors import CheckpointError, Diverged, Preempted
from rewarm.recipe.training_settings import GuardSettings, LossScaleSettings, OptimizerSettings
from rewarm.training.divergence_guard import DivergenceGuard
from rewarm.training.fp16_loss_scale import LossScaler, LossScaleState
from rewarm.training.optimizer import build_adamw

CPU = torch.device("cpu")
FINITE, OVERFLOW = torch.tensor(1.0), torch.tensor(math.inf)


def deepspeed_scales(overflows, *, initial, window, hysteresis, minimum):
    """The scale before each step by DeepSpeed's DynamicLossScaler, which counts otherwise."""
    scale, left, last, scales = initial, hysteresis, -1, []
    for number, overflow in enumerate(overflows):
        scales.append(scale)
        if overflow:
            if left == 1:
                scale = max(scale / 2, minimum)
            else:
                left -= 1
            last = number
        elif (number - last) % window == 0:
            left = hysteresis
            scale *= 2
    return scales


@pytest.mark.parametrize(
    ("window", "hysteresis", "probability"), [(5, 2, 0.2), (3, 1, 0.4), (7, 4, 0.3)]
)
def test_the_rule_is_deepspeeds(window, hysteresis, probability):
    draw = random.Random(window)
    overflows = [draw.random() < probability for _ in range(400)]
    settings = {"initial": 256, "window": window, "hysteresis": hysteresis, "minimum": 2}
    scaler, scales = LossScaler(LossScaleSettings(**settings), CPU, None), []
    for number, overflow in enumerate(overflows):
        scales.append(scaler.scale.item())
        scaler.update(OVERFLOW if overflow else FINITE)
        if number % 50 == 7:  # as if resumed
            scaler = LossScaler(LossScaleSettings(**settings), CPU, scaler.state())
    assert scales == deepspeed_scales(overflows, **settings)
    assert len(set(scales)) > 5


def test_defaults_are_pythias():
    # EleutherAI/pythia, models/410M/pythia-410m.yml: initial_scale_power 12, loss_scale_window
    # 1000, hysteresis 2, min_loss_scale 1.
    assert LossScaleSettings() == LossScaleSettings(
        initial=2**12, window=1000, hysteresis=2, minimum=1
    )


def test_scale_is_bounded():
    scaler = LossScaler(LossScaleSettings(initial=2**32, window=1), CPU, None)
    scaler.update(FINITE)
    assert scaler.scale.item() == 2**32
    with pytest.raises(ValidationError, match="power of 2"):
        LossScaleState(scale=3, left=1)


def take_two_steps(scale, clip):
    """The weights after two steps with a loss scale, and the gradient norms that were returned."""
    model = tiny_model()
    optimizer = build_adamw(model, OptimizerSettings())
    torch.manual_seed(0)
    arguments = {"microbatch": 2, "max_grad_norm": clip, "loss_scale": scale}
    norms = [
        take_tiny_step(model, optimizer, random_tokens(), **arguments).grad_norm.item()
        for _ in range(2)
    ]
    return model.state_dict(), norms


@pytest.mark.parametrize("clip", [0.5, None])
def test_scaling_changes_no_bit(clip):
    plain, norms = take_two_steps(None, clip)
    assert norms[0] > 0.5  # it is clipped
    for power in (12, 24):
        scaled, scaled_norms = take_two_steps(torch.tensor(2.0**power), clip)
        assert same_tensors(plain, scaled)
        assert scaled_norms == norms


def judge_steps(guard, pairs):
    """Has a guard judge (loss, norm) pairs; returns the steps that should not be applied."""
    skipped = []
    for step, (loss, norm) in enumerate(pairs, start=1):
        guard.start_step(step, 1e-3, DataPosition({}))
        if guard.should_skip(torch.tensor(loss), torch.tensor(norm)).item():
            skipped.append(step)
    return skipped


def test_an_overflow_is_not_applied_and_is_trouble_only_at_the_minimum():
    scale_settings = LossScaleSettings(initial=8, hysteresis=1)
    guard = DivergenceGuard(GuardSettings(patience=3), CPU, {}, 1e-3, scale_settings)
    assert judge_steps(guard, [(3.0, 1.0)] + 6 * [(3.0, math.inf)]) == [2, 3, 4, 5, 6, 7]
    found, stop = guard.read(1)
    assert [(event.kind, event.step) for event in found] == [
        *(("overflow", step) for step in (2, 3, 4)),
        *(("not-finite", step) for step in (5, 6, 7)),
    ]
    assert [event.values["loss_scale"] for event in found[:3]] == [8, 4, 2]
    assert "overflowed fp16 at a loss scale of 8; not applied" in found[0].message()
    assert stop.first_bad_step == 5
    assert guard.skipped == 6


def test_a_loss_that_is_not_finite_is_no_overflow():
    guard = DivergenceGuard(GuardSettings(patience=2), CPU, {}, 1e-3, LossScaleSettings())
    assert judge_steps(guard, [(math.nan, math.nan)] * 2) == [1, 2]
    found, stop = guard.read(1)
    assert [event.kind for event in found] == ["not-finite"] * 2
    assert stop.first_bad_step == 1


FP16 = {"precision": "fp16"}


def test_fp16_trains_as_fp32_does(recipe_text, tmp_path):
    checkpoint = run(recipe_text, tmp_path / "fp16", **FP16)
    run(recipe_text, tmp_path / "fp32")
    half, full = (metrics(tmp_path / name, "train") for name in ("fp16", "fp32"))
    assert [line["loss_scale"] for line in half] == [4096] * 7
    assert "loss_scale" not in full[0]
    for in_half, in_full in zip(half, full, strict=True):
        assert in_half["loss"] == pytest.approx(in_full["loss"], rel=3e-3)
        assert in_half["loss"] != in_full["loss"]  # it is another precision
        assert in_half["grad_norm"] == pytest.approx(in_full["grad_norm"], rel=0.05)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert {t.dtype for t in load_file(checkpoint / file).values()} == {torch.float32}
    rates = events(tmp_path / "fp16", "rate")
    assert len(rates) >= 3
    assert all(rate["measured"] == pytest.approx(rate["scheduled"], rel=1e-3) for rate in rates)


# So large that fp16 overflows for real, and raised again so soon that it does once more.
OVERFLOWING = {**FP16, "loss_scale": "{initial: 4294967296, window: 4, hysteresis: 1}"}


def test_real_overflows_lower_the_scale_and_do_not_end_the_run(recipe_text, tmp_path):
    settings = {**OVERFLOWING, "tokens": 30720, "data__max_epochs": "null", "every__log": 1}
    run(recipe_text, tmp_path / "run", **settings)
    overflows = [line["step"] for line in metrics(tmp_path / "run", "overflow")]
    assert overflows[:4] == [1, 2, 3, 4]  # more than `guard.patience`
    lines = metrics(tmp_path / "run", "train")
    scales = [line["loss_scale"] for line in lines]
    assert scales[: len(scales) // 4] == [2.0 ** (32 - n) for n in range(len(scales) // 4)]
    assert any(b > a for a, b in pairwise(scales))  # and raised again
    assert lines[-1]["skipped"] == len(overflows)
    first = next(n for n in range(1, 31) if n not in overflows)
    losses = {line["step"]: line["loss"] for line in lines}
    assert losses[first] == pytest.approx(math.log(512), rel=0.1)  # nothing was applied by then
    assert losses[30] < losses[first] - 0.5


def test_overflows_at_the_minimum_end_the_run(recipe_text, tmp_path):
    lowest = {**FP16, "loss_scale": "{initial: 4294967296, minimum: 4294967296}"}
    with pytest.raises(Diverged, match=r"steps 1 to 3 were not finite: loss 6.*gradient norm"):
        run(recipe_text, tmp_path / "run", **lowest)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [6, 17])
def test_the_scale_is_resumed_exactly(recipe_text, tmp_path, monkeypatch, stop):
    straight = run(recipe_text, tmp_path / "straight", **OVERFLOWING)
    with monkeypatch.context() as patch:
        signal_in_step(patch, stop)
        with pytest.raises(Preempted):
            run(recipe_text, tmp_path / "stopped", **OVERFLOWING)
    resumed = run(recipe_text, tmp_path / "stopped", resume=True, **OVERFLOWING)
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")
    saved = json.loads((straight / "progress.json").read_text())["guard"]["loss_scale"]
    assert 1 < saved["scale"] < 2**32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss_scale.initial=1000", "loss_scale.initial: should be a power of 2"),
        ("loss_scale.initial=2^12", "loss_scale.initial: "),
        ("loss_scale={initial: 2, minimum: 4}", "initial should be at least the minimum of 4"),
        ("loss_scale.window=0", "loss_scale.window: should be greater than 0"),
        ("tf32=true", "tf32: should be false with precision: bf16, since TF32 is a way to"),
    ],
)
def test_contradictory_settings_are_refused(thousand_steps, override, message):
    assert message in "\n".join(recipe_problems(thousand_steps, override))


def test_a_damaged_scale_in_a_checkpoint_is_refused(recipe_text, tmp_path):
    checkpoint = run(recipe_text, tmp_path / "run", tokens=10240, **FP16)
    path = checkpoint / "progress.json"
    path.write_text(path.read_text().replace('"scale": 4096', '"scale": -4096'))
    (checkpoint / "MANIFEST.json").unlink()
    (checkpoint / "MANIFEST.json").write_text(json.dumps(build_manifest(checkpoint)))
    with pytest.raises(CheckpointError, match=r"guard: loss_scale\.scale: "):
        run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, **FP16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_step_waits_for_the_scale():
    device = torch.device("cuda")
    model = tiny_model().to(device)
    optimizer = build_adamw(model, OptimizerSettings())
    scale_settings = LossScaleSettings(initial=2**32, hysteresis=1)
    guard = DivergenceGuard(GuardSettings(), device, {}, 1e-3, scale_settings)
    tokens = random_tokens(8).to(device)
    for step in range(1, 9):
        guard.start_step(step, 1e-3, DataPosition({}))
        torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
        try:
            take_tiny_step(
                model, optimizer, tokens, should_skip=guard.should_skip, loss_scale=guard.scale,
                autocast_context=torch.autocast("cuda", torch.float16),
            )  # fmt: skip
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found, stop = guard.read(1)
    assert found[0].kind == "overflow"
    assert stop is None
