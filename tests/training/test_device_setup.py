import pytest
import torch

from rewarm.model.architecture import PRESETS
from rewarm.model.kernels.selection import choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.recipe import load_recipe
from rewarm.training.device_setup import set_up_device
from rewarm.training.verify_resume import verify_resume

CPU, GPU = torch.device("cpu"), torch.device("cuda")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def said(monkeypatch):
    """What PyTorch is told; the process is left as it was."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    told = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", told.append)
    return told


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("tf32", "products"), [(False, "highest"), (True, "high")])
def test_a_gpu_is_told_how_to_compute_either_way(said, tf32, products, deterministic):
    set_up_device(GPU, tf32=tf32, deterministic=deterministic)
    assert said == [products, deterministic]
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_sums_of_compiled_layers_are_deterministic_too():
    """PyTorch sees to it: else they would be ordered in the way that was fastest when tried."""
    torch.use_deterministic_algorithms(True)
    assert torch._inductor.config.deterministic
    torch.use_deterministic_algorithms(False)
    assert not torch._inductor.config.deterministic


def test_a_cpu_has_no_such_choices(said):
    set_up_device(CPU, tf32=True, deterministic=True)
    assert said == []


@pytest.mark.gpu
@gpu
def test_tf32_rounds_what_is_multiplied_and_can_be_taken_back():
    torch.manual_seed(0)
    a, b = torch.randn(512, 512, device="cuda"), torch.randn(512, 512, device="cuda")
    exact = a.double() @ b.double()
    errors = []
    for on in (False, True, False):
        set_up_device(a.device, tf32=on, deterministic=False)
        errors.append(float(((a @ b).double() - exact).norm() / exact.norm()))
    # 2^-24 and 2^-11 are the largest roundings of a factor.
    assert errors[0] == errors[2] < 2**-20 < 2**-14 < errors[1] < 2**-10


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_deterministic_gradients_are_the_same_bits_each_time(precision):
    """At the shape that cuDNN's and FlashAttention's fast ways back add up in any order at."""
    set_up_device(GPU, tf32=False, deterministic=True)
    try:
        model = NeoX(PRESETS["pythia-410m"].model_copy(update={"layers": 2}))
        initialize_weights(model, 0)
        model.to(GPU).configure(choose_kernels("auto", GPU)[0], precision=precision)
        model.compile_layers()
        tokens = torch.randint(0, 50_000, (8, 2049), device=GPU)
        found = []
        for _ in range(3):
            with torch.autocast("cuda", torch.bfloat16):
                model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            found.append([p.grad for p in model.parameters()])
            model.zero_grad()
        for again in found[1:]:
            assert all(torch.equal(*pair) for pair in zip(again, found[0], strict=True))
    finally:
        set_up_device(GPU, tf32=False, deterministic=False)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_resume_is_exact_on_a_gpu(recipe_file, tmp_path, precision):
    said = load_recipe(recipe_file, [f"precision={precision}", "model.architecture.hidden=256"])
    assert verify_resume(said, 12, tmp_path) == []
