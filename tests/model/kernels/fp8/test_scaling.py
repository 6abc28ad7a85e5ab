"""Scales of fp8, and training with them on a CPU, which rounds as a GPU does."""

import json
import re

import pytest
import torch
from compiled_graphs import compiles, graphs
from safetensors.torch import load_file, save_file
from torch import nn
from training_runs import metrics, run, signal_in_step, trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.manifest import MANIFEST, build_manifest
from rewarm.errors import CheckpointError, Preempted, RecipeError
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.model.kernels.fp8 import scaling
from rewarm.model.kernels.fp8.scaling import (
    AMAX_HISTORY,
    Fp8Scaling,
    ScaledLinear,
    check_fp8_device,
    get_scales,
)
from rewarm.model.kernels.selection import PYTORCH_KERNELS, choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.batch_split import split_batch
from rewarm.recipe.recipe import load_recipe, validate_recipe
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.runs.resolve_run import preflight
from rewarm.training import microbatch_search
from rewarm.training.device_setup import autocast
from rewarm.training.loop import take_step
from rewarm.training.optimizer import build_adamw

CPU = torch.device("cpu")
ARCHITECTURE = Architecture(layers=2, hidden=64, heads=4, vocabulary=512, positions=64)


def new_model(precision, **settings):
    model = NeoX(ARCHITECTURE)
    initialize_weights(model, 0)
    model.configure(PYTORCH_KERNELS, precision=precision, **settings)
    return model


def batch(seed=0, sequences=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 64, (sequences, 65), generator=generator)


def step(model, optimizer, tokens, precision="fp8"):
    cast = autocast(precision, CPU)
    return take_step(
        model,
        optimizer,
        tokens,
        split=split_batch(len(tokens), 1, 4),
        lr=1e-3,
        max_grad_norm=1.0,
        autocast_context=cast,
    )


def test_scales_are_the_largest_powers_of_two_that_clamp_nothing():
    layers = nn.ModuleList([ScaledLinear(8, 8)])
    fp8_scaling, scales = Fp8Scaling(layers), get_scales(layers[0])

    def factors():
        assert [float(scale.inverse) for scale in scales] == [
            1 / float(scale.factor) for scale in scales
        ]
        return [float(scale.factor) for scale in scales]

    for amaxes, expected in [
        ((3.5, 448.0, 57344.0), (2**7, 1, 1)),  # exactly the maximum
        ((3.6, 449.0, 57345.0), (2**6, 2**-1, 2**-1)),
        ((0.0, 1e-3, 3e-7), (2**6, 2**-1, 2**-1)),  # the history keeps the amaxes before
    ]:
        for scale, amax in zip(scales, amaxes, strict=True):
            scale.amax.fill_(amax)
        fp8_scaling.update()
        assert factors() == list(expected)
        assert not any(scale.amax for scale in scales)
    for _ in range(AMAX_HISTORY - 1):
        assert scales[0].factor == 2**6
        fp8_scaling.update()
    assert factors() == [1, 2**18, 2**37]  # of the third amaxes alone
    fp8_scaling.update()
    assert factors() == [1, 2**6, 2**20]  # the initial ones
    for scale in scales:
        scale.amax.fill_(1e-40)
    fp8_scaling.update()
    assert factors() == [2.0**100] * 3


def test_calibration_finds_the_same_scales_from_any_initial_ones(monkeypatch):
    calibrated = []
    for initial in ((1.0, 2.0**6, 2.0**20), (1.0, 1.0, 1.0), (2.0**-4, 2.0**10, 2.0**40)):
        monkeypatch.setattr(scaling, "_INITIAL_FACTORS", initial)
        model = new_model("fp8")
        runs = []

        def forward_and_backward(model=model, runs=runs):
            runs.append(1)
            model.loss(batch()[:, :-1], batch()[:, 1:]).backward()

        model.fp8_scaling.calibrate(forward_and_backward)
        assert not model.fp8_scaling.needs_calibration
        assert len(runs) <= 6
        calibrated.append(model.fp8_scaling.amax_history[0])
        assert (calibrated[-1] > 0).all()
        assert not model.fp8_scaling.amax_history[1:].any()
    for amaxes in calibrated[1:]:
        torch.testing.assert_close(amaxes, calibrated[0], rtol=0.15, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_losses_in_fp8_are_close_to_those_in_fp32(memory):
    losses = {}
    for precision in ("fp32", "fp8"):
        model = new_model(precision, memory=memory)
        optimizer = build_adamw(model, OptimizerSettings())
        losses[precision] = [
            float(step(model, optimizer, batch(n), precision).loss) for n in range(60)
        ]
    assert losses["fp32"][-1] < losses["fp32"][0] - 1.5
    assert losses["fp8"] == pytest.approx(losses["fp32"], rel=5e-3)
    assert losses["fp8"] != pytest.approx(losses["fp32"], rel=1e-5)  # it is rounded


def test_lean_memory_gives_the_same_bits():
    results = []
    for memory in ("fast", "lean"):
        model = new_model("fp8", memory=memory)
        optimizer = build_adamw(model, OptimizerSettings())
        for n in range(3):
            step(model, optimizer, batch(n))
        results.append([*model.parameters(), model.fp8_scaling.amax_history])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


class Overflow:
    """A backward hook that scales gradients: some numbers stay finite, but not their squares."""

    factor = 1e34

    def __call__(self, _module, gradients):
        return tuple(gradient * self.factor for gradient in gradients)


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_compiled_layers_have_the_same_losses_and_amaxes(memory):
    """Partitioned as by inductor, with amaxes written in both passes."""
    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = new_model("fp8", memory=memory)
        if compiled:
            for layer in model.gpt_neox.layers:
                layer.compile(fullgraph=True, dynamic=False, backend=graphs())
        optimizer = build_adamw(model, OptimizerSettings())
        losses = [float(step(model, optimizer, batch(n)).loss) for n in range(3)]
        results.append((losses, model.fp8_scaling.amax_history))
    (eager_losses, eager_amaxes), (losses, amaxes) = results
    assert losses == pytest.approx(eager_losses, rel=2e-4)
    torch.testing.assert_close(amaxes[:3], eager_amaxes[:3], rtol=0.2, atol=0)


def test_a_gradient_that_is_not_finite_skips_the_step_and_does_not_change_the_amaxes():
    model = new_model("fp8")
    optimizer = build_adamw(model, OptimizerSettings())
    step(model, optimizer, batch())
    before = model.fp8_scaling.amax_history[0].clone()
    model.gpt_neox.layers[1].register_full_backward_pre_hook(overflow := Overflow())
    assert step(model, optimizer, batch()).skipped == 1
    overflow.factor = 1.0
    assert torch.equal(model.fp8_scaling.amax_history[0], before)
    assert step(model, optimizer, batch()).skipped == 0
    weight = model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight[3, 4] = torch.inf
    assert step(model, optimizer, batch()).skipped == 1
    assert model.fp8_scaling.amax_history.isfinite().all()
    with torch.no_grad():
        weight.copy_(original)
    assert step(model, optimizer, batch()).skipped == 0
    torch.testing.assert_close(model.fp8_scaling.amax_history[0], before, rtol=0.5, atol=0)


def test_only_a_layers_four_linear_layers_have_scales():
    model = new_model("fp8")
    scaled = {name for name, module in model.named_modules() if hasattr(module, "scales")}
    linears = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h")
    assert scaled == {
        f"gpt_neox.layers.{layer}.{linear}"
        for layer in range(2)
        for linear in (*linears, "mlp.dense_4h_to_h")
    }


def test_evaluation_is_in_bf16():
    model = new_model("fp8")
    with torch.no_grad(), autocast("fp8", CPU):
        loss = model.loss(batch()[:, :-1], batch()[:, 1:])
        model.configure(PYTORCH_KERNELS, precision="bf16")
        assert model.fp8_scaling is None
        assert model.loss(batch()[:, :-1], batch()[:, 1:]) == loss


def test_twenty_steps_equal_seven_and_thirteen_after_a_resume(recipe_text, tmp_path, monkeypatch):
    text = recipe_text.replace("precision: fp32", "precision: fp8")
    uninterrupted = run(text, tmp_path / "uninterrupted")
    resumed = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        signal_in_step(patch, 7)
        with pytest.raises(Preempted):
            run(text, resumed)
    assert trained_files(run(text, resumed, resume=True)) == trained_files(uninterrupted)
    assert metrics(resumed) == metrics(tmp_path / "uninterrupted")


def test_a_run_may_resume_in_another_precision(recipe_text, tmp_path, capfd):
    directory = tmp_path / "run"
    run(recipe_text, directory, precision="bf16", tokens=10240, every__save="null")
    changed = {"resume": True, "accept_changes": True}
    run(recipe_text, directory, precision="fp8", tokens=15360, **changed)
    last = run(recipe_text, directory, precision="bf16", tokens=20480, **changed)
    assert last.name == "step-00000020"
    losses = [line["loss"] for line in metrics(directory) if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    stderr = capfd.readouterr().err
    assert "fp8 rounds as on a GPU there, and is slower than bf16 and fp32" in stderr
    assert "precision: bf16 → fp8" in stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t[:, :1], "torch.float32 (16, 1, 3), expected torch.float32 (16, 8, 3)"),
        (lambda t: t.half(), "torch.float16 (16, 8, 3), expected torch.float32 (16, 8, 3)"),
        (lambda t: t * torch.nan, "not amaxes"),
        (lambda t: t + torch.inf, "not amaxes"),
        (lambda t: -t - 1, "not amaxes"),
    ],
)
def test_amaxes_of_another_model_or_invalid_ones_are_refused(damage, message):
    model = new_model("fp8")
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fp8_scaling.load_history(damage(torch.zeros(16, 8, 3)))


def test_invalid_amaxes_in_a_checkpoint_are_a_checkpoint_error(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run", precision="fp8", tokens=10240)
    last = last_checkpoint(tmp_path / "run")
    state = load_file(last / "optimizer.safetensors")
    save_file(state | {"fp8/amaxes": state["fp8/amaxes"] - 1e9}, last / "optimizer.safetensors")
    (last / MANIFEST).unlink()
    (last / MANIFEST).write_text(json.dumps(build_manifest(last)))
    with pytest.raises(CheckpointError, match=r"fp8/amaxes: not amaxes.*another checkpoint"):
        run(recipe_text, tmp_path / "run", precision="fp8", resume=True, accept_changes=True)


def test_sizes_that_a_gpu_cannot_multiply_in_fp8_are_refused(recipe_text, tmp_path):
    with pytest.raises(RecipeError, match=r"context: should be a multiple of 16 .*got 40; try 32"):
        run(recipe_text, tmp_path, precision="fp8", data__context=40, batch__tokens=1280)
    narrow = recipe_text.replace("hidden: 32, heads: 2", "hidden: 40, heads: 5")
    with pytest.raises(RecipeError, match="hidden width of 40 should be a multiple of 16"):
        run(narrow, tmp_path / "narrow", precision="fp8")
    assert not (tmp_path / "narrow" / "metrics.jsonl").exists()


def test_check_refuses_those_sizes_too(recipe_text):
    narrow = recipe_text.replace("hidden: 32, heads: 2", "hidden: 40, heads: 5")
    document = YamlDocument(narrow.replace("fp32", "fp8"), "recipe.yaml")
    problems = preflight(validate_recipe(document))
    assert [type(problem) for problem in problems] == [RecipeError]
    assert "hidden width of 40" in str(problems[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="simulates another GPU")
@pytest.mark.parametrize(("capability", "works"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_an_older_gpu_is_refused_by_name(monkeypatch, recipe_file, capability, works):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    if works:
        check_fp8_device(torch.device("cuda"))
    else:
        message = r"A100.* has no 8-bit float matmuls.*bf16"
        with pytest.raises(RecipeError, match=message):
            check_fp8_device(torch.device("cuda"))
        with pytest.raises(RecipeError, match=message):  # before microbatches are tried
            microbatch_search._remembered_or_searched(
                load_recipe(recipe_file, ["precision=fp8"]), ARCHITECTURE, torch.device("cuda")
            )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("setting", ["plain", "auto"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_on_a_gpu_twenty_compiled_steps_have_the_losses_of_bf16(setting, memory):
    device = torch.device("cuda")
    architecture = PRESETS["pythia-410m"].model_copy(update={"layers": 4})
    kernels, _ = choose_kernels(setting, device)
    losses, grad_norms = {}, {}
    for precision in ("bf16", "fp8"):
        torch.compiler.reset()
        model = NeoX(architecture)
        initialize_weights(model, 0)
        model.to(device).configure(kernels, memory=memory, precision=precision)
        model.compile_layers()
        optimizer, cast = build_adamw(model, OptimizerSettings()), autocast(precision, device)
        generator = torch.Generator().manual_seed(2)
        tokens = torch.randint(0, 700, (20, 4, 2049), generator=generator)
        results = [
            take_step(
                model,
                optimizer,
                block,
                split=split_batch(4, 1, 2),
                lr=3e-4,
                max_grad_norm=1.0,
                autocast_context=cast,
            )
            for block in tokens
        ]
        losses[precision] = [float(result.loss) for result in results]
        grad_norms[precision] = [float(result.grad_norm) for result in results]
    assert losses["bf16"][-1] < losses["bf16"][0]
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=5e-3)
    assert grad_norms["fp8"] == pytest.approx(grad_norms["bf16"], rel=0.2)
