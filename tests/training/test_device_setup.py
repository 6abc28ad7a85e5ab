"""TF32, determinism and attention are set for the process, and hold on a GPU."""

import pytest
import torch

from rewarm.model.architecture import PRESETS
from rewarm.model.kernels.selection import choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.recipe import load_recipe
from rewarm.training import device_setup
from rewarm.training.device_setup import set_up_device
from rewarm.training.verify_resume import verify_resume

CPU, GPU = torch.device("cpu"), torch.device("cuda")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def choices(monkeypatch):
    """What PyTorch is asked for; the process itself is left as it was."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    arguments = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", arguments.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", arguments.append)
    monkeypatch.setattr(
        device_setup, "choose_backend", lambda _, *, deterministic: arguments.append(deterministic)
    )
    return arguments


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("tf32", "precision"), [(False, "highest"), (True, "high")])
def test_all_choices_are_always_made(choices, tf32, precision, deterministic):
    set_up_device(GPU, tf32=tf32, deterministic=deterministic)
    assert choices == [precision, deterministic, deterministic]
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_a_cpu_has_no_such_choices(choices):
    set_up_device(CPU, tf32=True, deterministic=True)
    assert choices == []


def test_pytorch_makes_sums_of_compiled_layers_deterministic_too():
    """Otherwise they are in the order that was fastest when it was tried."""
    torch.use_deterministic_algorithms(True)
    assert torch._inductor.config.deterministic
    torch.use_deterministic_algorithms(False)
    assert not torch._inductor.config.deterministic


@pytest.mark.gpu
@gpu
def test_tf32_rounds_the_operands_and_can_be_turned_off_again():
    torch.manual_seed(0)
    a, b = torch.randn(512, 512, device="cuda"), torch.randn(512, 512, device="cuda")
    exact = a.double() @ b.double()
    errors = []
    for tf32 in (False, True, False):
        set_up_device(a.device, tf32=tf32, deterministic=False)
        errors.append(float(((a @ b).double() - exact).norm() / exact.norm()))
    # 2^-24 and 2^-11 are the largest rounding errors of an operand.
    assert errors[0] == errors[2] < 2**-20 < 2**-14 < errors[1] < 2**-10


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_deterministic_gradients_are_the_same_bits_each_time(precision):
    """At a shape where the fast backward passes of cuDNN and FlashAttention sum in any order."""
    set_up_device(GPU, tf32=False, deterministic=True)
    try:
        model = NeoX(PRESETS["pythia-410m"].model_copy(update={"layers": 2}))
        initialize_weights(model, 0)
        model.to(GPU).configure(choose_kernels("auto", GPU)[0], precision=precision)
        model.compile_layers()
        tokens = torch.randint(0, 50_000, (8, 2049), device=GPU)
        gradients = []
        for _ in range(3):
            with torch.autocast("cuda", torch.bfloat16):
                model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            gradients.append([p.grad for p in model.parameters()])
            model.zero_grad()
        for repeated in gradients[1:]:
            assert all(torch.equal(*pair) for pair in zip(repeated, gradients[0], strict=True))
    finally:
        set_up_device(GPU, tf32=False, deterministic=False)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_resume_is_exact_on_a_gpu(recipe_file, tmp_path, precision):
    overrides = [f"precision={precision}", "model.architecture.hidden=256"]
    assert verify_resume(load_recipe(recipe_file, overrides), 12, tmp_path) == []
