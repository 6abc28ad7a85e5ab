import json
import math
import random
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from training_runs import signal_in_step, trained_files, metrics, run

from rewarm.data.batch_loader import DataPosition
from rewarm.errors import CheckpointError, Diverged, Preempted, RecipeError
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.fields import GuardSettings as Settings
from rewarm.recipe.fields import LossScaleSettings, OptimizerSettings
from rewarm.training.divergence_guard import DivergenceGuard
from rewarm.training.fp16_loss_scale import LossScaler, LossScaleState
from rewarm.training.loop import take_step
from rewarm.training.optimizer import build_adamw

CPU = torch.device("cpu")
FINE, OVERFLOW = torch.tensor(1.0), torch.tensor(math.inf)


def deepspeed(overflows, *, initial, window, hysteresis, minimum):
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


@pytest.mark.parametrize(("window", "hysteresis", "rare"), [(5, 2, 0.2), (3, 1, 0.4), (7, 4, 0.3)])
def test_the_rule_is_deepspeeds(window, hysteresis, rare):
    draw = random.Random(window)
    overflows = [draw.random() < rare for _ in range(400)]
    said = {"initial": 256, "window": window, "hysteresis": hysteresis, "minimum": 2}
    scaler, scales = LossScaler(LossScaleSettings(**said), CPU, None), []
    for number, overflow in enumerate(overflows):
        scales.append(scaler.scale.item())
        scaler.see(OVERFLOW if overflow else FINE)
        if number % 50 == 7:  # as if resumed
            scaler = LossScaler(LossScaleSettings(**said), CPU, scaler.state())
    assert scales == deepspeed(overflows, **said)
    assert len(set(scales)) > 5


def test_the_defaults_are_pythias():
    # EleutherAI/pythia, models/410M/pythia-410m.yml: initial_scale_power 12, loss_scale_window
    # 1000, hysteresis 2, min_loss_scale 1.
    assert LossScaleSettings() == LossScaleSettings(
        initial=2**12, window=1000, hysteresis=2, minimum=1
    )


def test_a_scale_is_bounded():
    scaler = LossScaler(LossScaleSettings(initial=2**32, window=1), CPU, None)
    scaler.see(FINE)
    assert scaler.scale.item() == 2**32
    with pytest.raises(ValidationError, match="power of 2"):
        LossScaleState(scale=3, left=1)


def step(scale, clip=0.5, tokens=None):
    """The weights behind two steps of a model whose loss is scaled, and the norms it told."""
    shape = Architecture(layers=2, hidden=32, heads=2, vocabulary=64, positions=16)
    model = NeoX(shape)
    initialize_weights(model, 3)
    optimizer = build_adamw(model, OptimizerSettings())
    torch.manual_seed(0)
    norms = [
        take_step(
            model, optimizer, torch.randint(0, 64, (4, 17)), microbatch=2, lr=1e-3, clip=clip,
            cast=nullcontext(), scale=scale,
        ).grad_norm.item()
        for _ in range(2)
    ]  # fmt: skip
    return model.state_dict(), norms


@pytest.mark.parametrize("clip", [0.5, None])
def test_scaling_and_unscaling_changes_no_bit(clip):
    plain, norms = step(None, clip)
    assert norms[0] > 0.5  # it is clipped
    for power in (12, 24):
        scaled, told = step(torch.tensor(2.0**power), clip)
        assert same(plain, scaled)
        assert told == norms


def judged(guard, pairs):
    """Has a guard judge (loss, norm) pairs; returns which were not to be applied."""
    skipped = []
    for number, (loss, norm) in enumerate(pairs, start=1):
        guard.begin(number, 1e-3, DataPosition({}))
        if guard.judge(torch.tensor(loss), torch.tensor(norm)).item():
            skipped.append(number)
    return skipped


def test_an_overflow_is_not_applied_and_counts_at_the_minimum_only():
    guard = DivergenceGuard(
        Settings(patience=3), CPU, {}, 1e-3, LossScaleSettings(initial=8, hysteresis=1)
    )
    assert judged(guard, [(3.0, 1.0)] + 6 * [(3.0, math.inf)]) == [2, 3, 4, 5, 6, 7]
    events, stop = guard.read(1)
    assert [(event.kind, event.step) for event in events] == [
        *(("overflow", number) for number in (2, 3, 4)),
        *(("not-finite", number) for number in (5, 6, 7)),
    ]
    assert [event.values["loss_scale"] for event in events[:3]] == [8, 4, 2]
    assert "overflowed fp16 at a loss scale of 8; not applied" in events[0].in_words()
    assert stop.trouble == 5
    assert guard.skipped == 6


def test_a_loss_that_is_not_finite_is_no_fault_of_the_scale():
    guard = DivergenceGuard(Settings(patience=2), CPU, {}, 1e-3, LossScaleSettings())
    assert judged(guard, [(math.nan, math.nan)] * 2) == [1, 2]
    events, stop = guard.read(1)
    assert [event.kind for event in events] == ["not-finite"] * 2
    assert stop.trouble == 1


FP16 = {"precision": "fp16"}


def trained(directory):
    return [line for line in metrics(directory) if line["kind"] == "train"]


def test_fp16_trains_as_fp32_does(recipe_text, tmp_path):
    saved = run(recipe_text, tmp_path / "fp16", **FP16)
    run(recipe_text, tmp_path / "fp32")
    half, full = trained(tmp_path / "fp16"), trained(tmp_path / "fp32")
    assert [line["loss_scale"] for line in half] == [4096] * 7
    assert "loss_scale" not in full[0]
    for one, other in zip(half, full, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=3e-3)
        assert one["loss"] != other["loss"]  # it is another precision
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.05)
    for file in ("model", "optimizer"):
        assert {t.dtype for t in load_file(saved / f"{file}.safetensors").values()} == {
            torch.float32
        }
    rates = [json.loads(x) for x in (tmp_path / "fp16" / "events.jsonl").read_text().splitlines()]
    rates = [line for line in rates if line["kind"] == "rate"]
    assert len(rates) >= 3
    assert all(one["measured"] == pytest.approx(one["scheduled"], rel=1e-3) for one in rates)


# So large that fp16 overflows for real, and raised again so soon that it does once more.
WILD = {**FP16, "loss_scale": "{initial: 4294967296, window: 4, hysteresis: 1}"}


def test_real_overflows_lower_the_scale_and_do_not_end_the_run(recipe_text, tmp_path):
    settings = {**WILD, "tokens": 30720, "data__max_epochs": "null", "every__log": 1}
    run(recipe_text, tmp_path / "run", **settings)
    overflows = [x["step"] for x in metrics(tmp_path / "run") if x["kind"] == "overflow"]
    assert overflows[:4] == [1, 2, 3, 4]  # more than `guard.patience`
    lines = trained(tmp_path / "run")
    scales = [line["loss_scale"] for line in lines]
    assert scales[: len(scales) // 4] == [2.0 ** (32 - n) for n in range(len(scales) // 4)]
    assert any(b > a for a, b in pairwise(scales))  # and raised again
    assert lines[-1]["skipped"] == len(overflows)
    first = next(n for n in range(1, 31) if n not in overflows)
    losses = {line["step"]: line["loss"] for line in lines}
    assert losses[first] == pytest.approx(math.log(512), rel=0.1)  # nothing was applied by then
    assert losses[30] < losses[first] - 0.5


def test_at_the_minimum_the_run_ends(recipe_text, tmp_path):
    floor = {**FP16, "loss_scale": "{initial: 4294967296, minimum: 4294967296}"}
    with pytest.raises(Diverged, match=r"steps 1 to 3 were not finite: loss 6.*gradient norm"):
        run(recipe_text, tmp_path / "run", **floor)


@pytest.mark.parametrize("stop", [6, 17])
def test_the_scale_is_resumed_exactly(recipe_text, tmp_path, monkeypatch, stop):
    straight = run(recipe_text, tmp_path / "straight", **WILD)
    with monkeypatch.context() as patch:
        signal_in_step(patch, stop)
        with pytest.raises(Preempted):
            run(recipe_text, tmp_path / "stopped", **WILD)
    assert trained_files(run(recipe_text, tmp_path / "stopped", resume=True, **WILD)) == trained_files(straight)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")
    kept = json.loads((straight / "progress.json").read_text())["guard"]["loss_scale"]
    assert 1 < kept["scale"] < 2**32


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("loss_scale.initial=1000", "loss_scale.initial: should be a power of 2"),
        ("loss_scale.initial=2^12", "loss_scale.initial: "),
        ("loss_scale={initial: 2, minimum: 4}", "initial should be at least the minimum of 4"),
        ("loss_scale.window=0", "loss_scale.window: should be greater than 0"),
        ("tf32=true", "tf32: should be false with precision: bf16, since TF32 is a way to"),
    ],
)
def test_settings_that_make_no_sense_are_refused(thousand_steps, changed, said):
    from rewarm.recipe.recipe import validate_recipe
    from rewarm.recipe.yaml_document import YamlDocument

    document = YamlDocument(thousand_steps, "r.yaml")
    document.apply_override(changed)
    with pytest.raises(RecipeError) as error:
        validate_recipe(document)
    assert said in str(error.value)


def test_a_scale_that_no_run_left_behind_is_refused(recipe_text, tmp_path):
    from rewarm.checkpoints.manifest import build_manifest

    saved = run(recipe_text, tmp_path / "run", tokens=10240, **FP16)
    path = saved / "progress.json"
    path.write_text(path.read_text().replace('"scale": 4096', '"scale": -4096'))
    (saved / "MANIFEST.json").unlink()
    (saved / "MANIFEST.json").write_text(json.dumps(build_manifest(saved)))
    with pytest.raises(CheckpointError, match=r"guard: loss_scale\.scale: "):
        run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, **FP16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_step_waits_for_the_scale():
    shape = Architecture(layers=2, hidden=64, heads=2, vocabulary=64, positions=16)
    model = NeoX(shape)
    initialize_weights(model, 3)
    device = torch.device("cuda")
    optimizer = build_adamw(model.to(device), OptimizerSettings())
    guard = DivergenceGuard(
        Settings(), device, {}, 1e-3, LossScaleSettings(initial=2**32, hysteresis=1)
    )
    tokens = torch.randint(0, 64, (8, 17), device=device)
    for number in range(1, 9):
        guard.begin(number, 1e-3, DataPosition({}))
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        try:
            take_step(
                model, optimizer, tokens, microbatch=4, lr=1e-3, clip=1.0, judge=guard.judge,
                cast=torch.autocast("cuda", torch.float16), scale=guard.scale,
            )  # fmt: skip
        finally:
            torch.cuda.set_sync_debug_mode("default")
    events, stop = guard.read(1)
    assert events[0].kind == "overflow"
    assert stop is None


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
