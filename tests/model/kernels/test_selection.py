import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

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

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def release(package):
    return tuple(map(int, re.findall(r"\d+", version(package))[:2]))


def test_in_the_interpreter_they_are_what_plain_pytorch_says():
    if not find_spec("triton"):
        pytest.skip("Triton is not installed")
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("Triton 3.6 cannot interpret a loop with this numpy; with 2.3 it can")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", ROOT / "tests" / "helpers" / "interpreted.py"],
        # Tensors are tiny: more threads would only wait for each other.
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout


def test_they_compile_for_a_hopper_gpu(tmp_path):
    if not find_spec("triton"):
        pytest.skip("Triton is not installed")
    ended = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "helpers" / "hopper.py"],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kernels_compiled = {line.split()[0] for line in ended.stdout.splitlines()[1:]}
    assert len(kernels_compiled) == 8


def test_a_model_on_a_cpu_is_plain_and_never_waits_for_triton():
    assert choose_kernels("auto", torch.device("cpu")) == (PYTORCH_KERNELS, "")
    script = "import sys, rewarm.train; print(any(m.startswith('triton') for m in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would work")
def test_where_triton_does_not_work_plain_kernels_do_and_one_line_says_so():
    chosen, said = choose_kernels("auto", torch.device("cuda"))
    assert chosen == PYTORCH_KERNELS
    assert re.fullmatch(
        r", with plain kernels, slower: Triton does not work here \(\w+: .+\)", said
    )
    assert choose_kernels("plain", torch.device("cuda")) == (PYTORCH_KERNELS, "")


def test_kernels_are_left_out_by_name():
    one = PYTORCH_KERNELS._replace(mlp=None, norms=None)
    assert one.without("mlp") == PYTORCH_KERNELS._replace(norms=None)
    assert one.without(*KERNEL_NAMES) == PYTORCH_KERNELS


def test_the_recipe_says_which(recipe_text, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text)
    assert load_recipe(path).kernels == "auto"
    path.write_text(recipe_text + "kernels: plain\n")
    assert load_recipe(path).kernels == "plain"
    path.write_text(recipe_text + "kernels: fast\n")
    with pytest.raises(RecipeError, match="kernels: should be 'auto' or 'plain'"):
        load_recipe(path)


# On a GPU, at Pythia-410M's shapes: compiled, under autocast, beside plain PyTorch in fp32.

SHAPE = PRESETS["pythia-410m"]
SMALL = {"layers": 2, "hidden": 256, "heads": 4, "vocabulary": 512, "positions": 256}
DEVICE = "cuda"


def passes():
    """The modules and further arguments of each kernel, by its name."""
    torch.manual_seed(0)
    width = SHAPE.hidden
    angles = [x.to(DEVICE) for x in rotary_angles(SHAPE, SHAPE.positions)]
    projection = nn.Linear(width, 3 * width, device=DEVICE)
    up = nn.Linear(width, SHAPE.inner, device=DEVICE)
    down = nn.Linear(SHAPE.inner, width, device=DEVICE)
    norms = [nn.LayerNorm(width, device=DEVICE) for _ in range(2)]
    head = nn.Linear(width, SHAPE.vocabulary, bias=False, device=DEVICE)
    targets = torch.randint(0, SHAPE.vocabulary, (2, SHAPE.positions), device=DEVICE)
    targets[:, ::5] = -100
    return {
        "rotary": ([projection], (projection, SHAPE.heads, *angles)),
        "norms": (norms, tuple(norms)),
        "product": ([projection], (projection,)),
        "mlp": ([up, down], (up, down, "gelu")),
        "cross_entropy": ([head], (head, targets, "mean")),
    }


def run(function, x, modules, arguments, *, autocast):
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
@gpu
@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_compiled_in_bf16_each_is_what_plain_pytorch_says_in_fp32(name):
    modules, arguments = passes()[name]
    x = torch.randn(2, SHAPE.positions, SHAPE.hidden, device=DEVICE)
    wanted = run(getattr(PYTORCH_KERNELS, name), x, modules, arguments, autocast=False)
    kernel = getattr(triton_kernels(), name)
    compiled = torch.compile(kernel, fullgraph=True, dynamic=False)
    found = run(compiled, x, modules, arguments, autocast=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()
    again = run(compiled, x, modules, arguments, autocast=True)
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))
    eager = run(kernel, x, modules, arguments, autocast=True)
    for a, b in zip(eager, wanted, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()


def model():
    made = NeoX(SHAPE)
    initialize_weights(made, 0)
    return made.to(DEVICE)


@pytest.mark.gpu
@gpu
def test_twenty_steps_have_the_losses_of_plain_fp32():
    def losses(made, *, autocast):
        optimizer = torch.optim.AdamW(made.parameters(), lr=3e-4, betas=(0.9, 0.95))
        draw = torch.Generator().manual_seed(2)
        # A part of the vocabulary: something can be learned in twenty steps.
        tokens = torch.randint(
            0, SHAPE.vocabulary // 64, (20, 2, SHAPE.positions + 1), generator=draw
        )
        for block in tokens.to(DEVICE):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                loss = made.loss(block[:, :-1], block[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()

    wanted = list(losses(model(), autocast=False))
    made = model()
    made.use(choose_kernels("auto", torch.device(DEVICE))[0])
    assert made.kernels != PYTORCH_KERNELS
    made.compile_layers()
    assert list(losses(made, autocast=True)) == pytest.approx(wanted, rel=5e-3)
    assert wanted[-1] < wanted[0]


@pytest.mark.gpu
@gpu
def test_the_whole_model_compiled_in_bf16_has_the_gradients_of_plain_fp32():
    tokens = torch.randint(0, SHAPE.vocabulary, (2, SHAPE.positions + 1), device=DEVICE)
    plain, made = model(), model()
    made.use(triton_kernels())
    made.compile_layers()
    wanted = plain.loss(tokens[:, :-1], tokens[:, 1:])
    wanted.backward()
    with torch.autocast(DEVICE, torch.bfloat16):
        found = made.loss(tokens[:, :-1], tokens[:, 1:])
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=2e-3)
    for (name, a), b in zip(plain.named_parameters(), made.parameters(), strict=True):
        assert (a.grad - b.grad).norm() / a.grad.norm() < 5e-2, name


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("more", [{}, {"parallel_residual": False}, {"tied": True, "rotary": 1.0}])
@pytest.mark.parametrize("separator", [None, 7])
def test_other_models_and_separate_documents_are_what_they_are_on_a_cpu(more, separator):
    made = NeoX(Architecture(**SMALL, **more))
    initialize_weights(made, 1)
    tokens = torch.randint(0, 50, (4, 257))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    wanted = made.loss(inputs, targets, separator=separator)
    made.to(DEVICE).use(triton_kernels())
    made.compile_layers()
    inputs, targets = inputs.to(DEVICE), targets.to(DEVICE)
    found = made.loss(inputs, targets, separator=separator)
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    with torch.autocast(DEVICE, torch.float16):
        half = made.loss(inputs, targets, separator=separator)
    (1024 * half).backward()
    assert half.item() == pytest.approx(wanted.item(), rel=2e-3)
    assert all(p.grad.isfinite().all() for p in made.parameters())
