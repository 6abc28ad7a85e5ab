import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from repository import ROOT
from torch import nn

from rewarm.errors import RecipeError
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.model.kernels.selection import (
    KERNEL_NAMES,
    PYTORCH_KERNELS,
    choose_kernels,
    triton_kernels,
)
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.model.rotary_embedding import rotary_angles
from rewarm.recipe.recipe import load_recipe

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def release(package):
    return tuple(map(int, re.findall(r"\d+", version(package))[:2]))


@pytest.mark.slow
def test_interpreted_kernels_equal_plain_pytorch():
    """Runs the test files that import interpreted.py, in a process of their own."""
    if not find_spec("triton"):
        pytest.skip("Triton is not installed")
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("Triton 3.6 cannot interpret a loop with this numpy; with 2.3 it can")
    files = [
        path
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))
        if "\nfrom interpreted import" in path.read_text()
    ]
    assert len(files) == 7
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *files],
        # Tensors are tiny: more threads would only wait for each other.
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert " skipped" not in process.stdout


@pytest.mark.slow
def test_kernels_compile_for_a_hopper_gpu(tmp_path):
    if not find_spec("triton"):
        pytest.skip("Triton is not installed")
    process = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "helpers" / "hopper.py"],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    compiled_kernels = {line.split()[0] for line in process.stdout.splitlines()[1:]}
    assert len(compiled_kernels) == 8


def test_a_model_on_a_cpu_uses_plain_pytorch_and_does_not_import_triton():
    assert choose_kernels("auto", torch.device("cpu")) == (PYTORCH_KERNELS, "")
    script = (
        "import sys, rewarm.training.loop; "
        "print(any(name.startswith('triton') for name in sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert process.stdout == "False\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton works on this GPU")
def test_plain_kernels_are_used_and_the_reason_is_reported_if_triton_does_not_work():
    kernels, note = choose_kernels("auto", torch.device("cuda"))
    assert kernels == PYTORCH_KERNELS
    assert re.fullmatch(
        r", with plain kernels, slower: Triton does not work here \(\w+: .+\)", note
    )
    assert choose_kernels("plain", torch.device("cuda")) == (PYTORCH_KERNELS, "")


def test_kernels_are_replaced_by_name():
    kernels = PYTORCH_KERNELS._replace(mlp=None, norms=None)
    assert kernels.without("mlp") == PYTORCH_KERNELS._replace(norms=None)
    assert kernels.without(*KERNEL_NAMES) == PYTORCH_KERNELS


def test_the_recipe_selects_kernels(recipe_text, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text)
    assert load_recipe(path).kernels == "auto"
    path.write_text(recipe_text + "kernels: plain\n")
    assert load_recipe(path).kernels == "plain"
    path.write_text(recipe_text + "kernels: fast\n")
    with pytest.raises(RecipeError, match="kernels: should be 'auto' or 'plain'"):
        load_recipe(path)


# On a GPU, at Pythia-410M's shapes: compiled, under autocast, against plain PyTorch in fp32.

ARCHITECTURE = PRESETS["pythia-410m"]
SMALL = {"layers": 2, "hidden": 256, "heads": 4, "vocabulary": 512, "positions": 256}
DEVICE = "cuda"


def kernel_cases():
    """The modules and further arguments of each kernel, by its name."""
    torch.manual_seed(0)
    width = ARCHITECTURE.hidden
    angles = [x.to(DEVICE) for x in rotary_angles(ARCHITECTURE, ARCHITECTURE.positions)]
    projection = nn.Linear(width, 3 * width, device=DEVICE)
    up = nn.Linear(width, ARCHITECTURE.inner, device=DEVICE)
    down = nn.Linear(ARCHITECTURE.inner, width, device=DEVICE)
    norms = [nn.LayerNorm(width, device=DEVICE) for _ in range(2)]
    head = nn.Linear(width, ARCHITECTURE.vocabulary, bias=False, device=DEVICE)
    targets = torch.randint(0, ARCHITECTURE.vocabulary, (2, ARCHITECTURE.positions), device=DEVICE)
    targets[:, ::5] = -100
    return {
        "rotary": ([projection], (projection, ARCHITECTURE.heads, *angles)),
        "norms": (norms, tuple(norms)),
        "linear": ([projection], (projection,)),
        "mlp": ([up, down], (up, down, "gelu")),
        "cross_entropy": ([head], (head, targets, "mean")),
    }


def outputs_and_gradients(function, x, modules, arguments, *, autocast):
    """Outputs and gradients, all in fp32."""
    x = x.clone().requires_grad_()
    for module in modules:
        module.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        outputs = function(x, *arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.manual_seed(1)
    sum((y.float() * torch.randn(y.shape, device=DEVICE)).sum() for y in outputs).backward()
    gradients = [p.grad for module in modules for p in module.parameters()]
    return [y.detach().float() for y in (*outputs, x.grad, *gradients)]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_each_kernel_compiled_in_bf16_is_close_to_plain_pytorch_in_fp32(name):
    modules, arguments = kernel_cases()[name]
    x = torch.randn(2, ARCHITECTURE.positions, ARCHITECTURE.hidden, device=DEVICE)
    reference = getattr(PYTORCH_KERNELS, name)
    expected = outputs_and_gradients(reference, x, modules, arguments, autocast=False)
    kernel = getattr(triton_kernels(), name)
    compiled = torch.compile(kernel, fullgraph=True, dynamic=False)
    actual = outputs_and_gradients(compiled, x, modules, arguments, autocast=True)
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()
    repeated = outputs_and_gradients(compiled, x, modules, arguments, autocast=True)
    assert all(torch.equal(*pair) for pair in zip(actual, repeated, strict=True))
    eager = outputs_and_gradients(kernel, x, modules, arguments, autocast=True)
    for a, b in zip(eager, expected, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()


def new_model():
    model = NeoX(ARCHITECTURE)
    initialize_weights(model, 0)
    return model.to(DEVICE)


@pytest.mark.gpu
@on_gpu
def test_twenty_steps_have_the_losses_of_plain_fp32():
    def losses(model, *, autocast):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95))
        generator = torch.Generator().manual_seed(2)
        # A part of the vocabulary, so that something can be learned in twenty steps.
        tokens = torch.randint(
            0,
            ARCHITECTURE.vocabulary // 64,
            (20, 2, ARCHITECTURE.positions + 1),
            generator=generator,
        )
        for block in tokens.to(DEVICE):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                loss = model.loss(block[:, :-1], block[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()

    expected = list(losses(new_model(), autocast=False))
    model = new_model()
    model.configure(choose_kernels("auto", torch.device(DEVICE))[0])
    assert model.kernels != PYTORCH_KERNELS
    model.compile_layers()
    assert list(losses(model, autocast=True)) == pytest.approx(expected, rel=5e-3)
    assert expected[-1] < expected[0]


@pytest.mark.gpu
@on_gpu
def test_a_compiled_model_in_bf16_has_the_gradients_of_plain_fp32():
    tokens = torch.randint(
        0, ARCHITECTURE.vocabulary, (2, ARCHITECTURE.positions + 1), device=DEVICE
    )
    plain, compiled = new_model(), new_model()
    compiled.configure(triton_kernels())
    compiled.compile_layers()
    expected = plain.loss(tokens[:, :-1], tokens[:, 1:])
    expected.backward()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = compiled.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (a.grad - b.grad).norm() / a.grad.norm() < 5e-2, name


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(
    "changed", [{}, {"parallel_residual": False}, {"tied": True, "rotary": 1.0}]
)
@pytest.mark.parametrize("separator_id", [None, 7])
def test_other_architectures_and_separate_documents_equal_the_cpu(changed, separator_id):
    model = NeoX(Architecture(**SMALL, **changed))
    initialize_weights(model, 1)
    tokens = torch.randint(0, 50, (4, 257))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = model.loss(inputs, targets, separator_id=separator_id)
    model.to(DEVICE).configure(triton_kernels())
    model.compile_layers()
    inputs, targets = inputs.to(DEVICE), targets.to(DEVICE)
    loss = model.loss(inputs, targets, separator_id=separator_id)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    with torch.autocast(DEVICE, torch.float16):
        fp16_loss = model.loss(inputs, targets, separator_id=separator_id)
    (1024 * fp16_loss).backward()
    assert fp16_loss.item() == pytest.approx(expected.item(), rel=2e-3)
    assert all(p.grad.isfinite().all() for p in model.parameters())
