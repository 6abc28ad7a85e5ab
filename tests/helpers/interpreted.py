"""The Triton kernels on a CPU, beside the plain PyTorch that they stand for: values and gradients.

`test_kernels.py` runs this in a process of its own: Triton looks at TRITON_INTERPRET only once.
"""

import interpreter_rounding as benchmark
import pytest
import torch
from compiled_graphs import graphs
from torch import nn
from triton.runtime import interpreter

from rewarm.model.architecture import Architecture
from rewarm.model.kernels import (
    cross_entropy,
    gelu,
    layer_norm,
    pytorch_reference,
    rotary,
    selection,
)
from rewarm.model.kernels.fp8 import pytorch_reference as fp8_reference
from rewarm.model.kernels.fp8 import rounding
from rewarm.model.kernels.fp8.scaling import GRADIENT, WEIGHT, TensorScale, X
from rewarm.model.kernels.selection import (
    KERNEL_NAMES,
    PYTORCH_KERNELS,
    fp8_kernels,
    triton_kernels,
)
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.model.rotary_embedding import rotary_angles

# Of Triton 3.6 in its interpreter, by numpy 2.3; later Tritons do it otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")

TRITON = triton_kernels()
TRITON_8, PLAIN_8 = fp8_kernels(TRITON), fp8_kernels(PYTORCH_KERNELS)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# In half precision the kernels round once where the reference rounds after every step, so the
# reference is computed in fp32 from the same rounded numbers.
CLOSE = {
    torch.float32: (2e-5, 2e-6),  # rtol, atol
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.float16: (2e-3, 2e-3),
}


@pytest.fixture(autouse=True)
def mended(monkeypatch):
    monkeypatch.setattr(interpreter, "_convert_float", benchmark.rounding())


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """So few that each has several turns of its loop to take, as on a GPU with its many rows."""
    for module in (rotary, layer_norm, gelu):
        monkeypatch.setattr(module, "MULTIPROCESSORS", 1)


def gradients(function, inputs, parameters):
    """What a function returns, and the gradients of a fixed random combination of it."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    for parameter in parameters:
        parameter.grad = None
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    draw = torch.Generator().manual_seed(7)
    combined = sum((y * torch.randn(y.shape, generator=draw).to(y.dtype)).sum() for y in outputs)
    combined.backward()
    return [*outputs, *(x.grad for x in inputs), *(p.grad for p in parameters)]


def compare(kernel, reference, arguments, x, modules, dtype):
    """Holds a kernel to its reference, and to itself: a second run gives the same bits."""
    for module in modules:
        module.to(dtype)
    parameters = [p for module in modules for p in module.parameters()]
    runs = [gradients(lambda x: kernel(x, *arguments), [x.to(dtype)], parameters) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    for module in modules:
        module.float()
    expected = gradients(lambda x: reference(x, *arguments), [x.to(dtype).float()], parameters)
    rtol, atol = CLOSE[dtype]
    for found, wanted in zip(runs[0], expected, strict=True):
        # A sum over many tokens is as exact as its largest terms are.
        atol_here = atol * max(1.0, wanted.abs().max().item() / 4)
        torch.testing.assert_close(found.float(), wanted, rtol=rtol, atol=atol_here)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs, outputs, *, bias=True):
    torch.manual_seed(outputs)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("size", "turned", "bias"), [(64, 16, True), (80, 20, False), (128, 32, True)]
)
def test_rotary(size, turned, bias, dtype):
    heads, length = 3, 37
    angles = rotary_angles(
        Architecture(
            layers=1, hidden=heads * size, heads=heads, rotary=turned / size, positions=length
        ),
        length,
    )
    x = normal(2, length, 24)
    projection = linear(24, 3 * heads * size, bias=bias)
    compare(
        TRITON.rotary, PYTORCH_KERNELS.rotary, (projection, heads, *angles), x, [projection], dtype
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_rotary_takes_gradients_of_any_layout(dtype):
    """Attention kernels return them as (B, T, H, K) seen from the side, or (B, H, T, K)."""
    cos, sin = normal(5, 16).cos(), normal(5, 16).sin()
    gradients = [normal(2, 3, 5, 64, seed=i).to(dtype) for i in range(3)]
    aside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in gradients]
    strange = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in gradients]
    for one, other, third in zip(
        *(rotary.pack(*layout, cos, sin) for layout in (gradients, aside, strange)), strict=True
    ):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "width"), [(5, 1024), (3, 2048), (37, 80), (61, 8)])
def test_norms(rows, width, dtype):
    torch.manual_seed(0)
    modules = [nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)]
    with torch.no_grad():
        for module in modules:
            module.weight.normal_()
            module.bias.normal_()
    x = 3 * normal(1, rows, width) + 1
    compare(TRITON.norms, PYTORCH_KERNELS.norms, tuple(modules), x, modules, dtype)


def test_rows_too_wide_for_the_registers_are_normed_plainly():
    modules = [nn.LayerNorm(4104), nn.LayerNorm(4104)]
    x = normal(1, 2, 4104)
    for found, wanted in zip(
        TRITON.norms(x, *modules), PYTORCH_KERNELS.norms(x, *modules), strict=True
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize(("rows", "inner"), [(7, 1024), (37, 80), (130, 16)])
def test_gelu(rows, inner, activation, dtype):
    up = linear(8, inner)
    compare(
        gelu.gelu, pytorch_reference.gelu, (up, activation), 3 * normal(1, rows, 8), [up], dtype
    )


@pytest.mark.parametrize("tanh", [False, True])
def test_gelu_over_its_whole_range(tanh):
    x = torch.cat((torch.linspace(-12, 12, 1501), torch.tensor([0.0, -0.0, 1e-30, 3e4, -3e4])))
    exact = x.double().requires_grad_()
    wanted = nn.functional.gelu(exact, approximate="tanh" if tanh else "none")
    (slope,) = torch.autograd.grad(wanted.sum(), exact)
    bias = torch.zeros(1)
    found = gelu.gelu_forward(x[:, None], bias, tanh)[:, 0]
    assert ((found - wanted).abs() <= 4e-7 * (1 + x.abs())).all()
    back, _ = gelu.gelu_backward(torch.ones_like(x)[:, None], x[:, None], bias, tanh)
    assert (back[:, 0] - slope).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy(reduction, dtype, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", 16 * 1003)  # three chunks, one short
    head = linear(24, 1003, bias=False)
    targets = torch.randint(0, 1003, (2, 19), generator=torch.Generator().manual_seed(3))
    targets[0, ::3] = -100
    compare(
        TRITON.cross_entropy,
        PYTORCH_KERNELS.cross_entropy,
        (head, targets, reduction),
        normal(2, 19, 24),
        [head],
        dtype,
    )


def test_cross_entropy_of_more_columns_than_a_tile():
    head = linear(4, 20_001, bias=False)
    targets = torch.tensor([[0, 20_000, 8192, -100]])
    compare(
        TRITON.cross_entropy,
        PYTORCH_KERNELS.cross_entropy,
        (head, targets, "mean"),
        30 * normal(1, 4, 4),
        [head],
        torch.float32,
    )


@pytest.mark.parametrize("targets", [[-100, -100], [3, 50]])
def test_cross_entropy_of_nothing_and_of_no_target_is_not_a_number(targets):
    """As for nothing in PyTorch; and the guard sees a target that is none."""
    head = linear(4, 50, bias=False)
    x = normal(1, 2, 4)
    assert TRITON.cross_entropy(x, head, torch.tensor([targets]), "mean").isnan()


def test_cross_entropy_without_gradients_makes_none():
    head = linear(4, 50, bias=False)
    x, targets = normal(1, 2, 4), torch.tensor([[3, 4]])
    with torch.no_grad():
        found = TRITON.cross_entropy(x, head, targets, "sum")
    assert found.grad_fn is None
    torch.testing.assert_close(
        found, PYTORCH_KERNELS.cross_entropy(x, head, targets, "sum").detach()
    )
    head.requires_grad_(False)
    x.requires_grad_()
    TRITON.cross_entropy(x, head, targets, "sum").backward()
    assert x.grad is not None
    assert head.weight.grad is None


def scaled(linear):
    """A product with scales that have seen nothing, and cut off nothing near 1."""
    linear.scales = tuple(
        TensorScale(torch.tensor(one), torch.tensor(1 / one), torch.tensor(0.0))
        for one in (64.0, 128.0, 2.0**14)
    )
    return linear


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("which", [X, WEIGHT, GRADIENT])
@pytest.mark.parametrize(("rows", "width"), [(64, 64), (37, 80), (130, 16)])
def test_rounding_to_8_bits(rows, width, which, dtype):
    x = (normal(rows, width) * (3 * normal(rows, width, seed=1)).exp()).to(dtype)
    x[1, 2], x[3, 4], x[-1, -1], x[5, 6] = torch.nan, torch.inf, -torch.inf, 0
    one, other = scaled(linear(8, 8)).scales, scaled(linear(8, 8)).scales
    for found, wanted in zip(
        rounding.cast8(x, one, which), fp8_reference.cast8(x, other, which), strict=True
    ):
        assert found.dtype == wanted.dtype
        assert found.is_contiguous()
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
    assert one[which].seen == x[x.isfinite()].float().abs().max()
    assert one == other
    assert found.float().isnan().sum() == 3


def in_8_bits(kernel, arguments, x, linears):
    """Outputs and gradients of a kernel, and the largest magnitudes that it saw."""
    for one in linears:
        scaled(one)
    found = gradients(
        lambda x: kernel(x, *arguments), [x], [p for one in linears for p in one.parameters()]
    )
    return [*found, *(scale.seen for one in linears for scale in one.scales)]


def agree(found, wanted, most=4e-3):
    """Holds what was rounded after other sums: now and then a number goes the other way."""
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - other.float()).norm() <= most * other.float().norm()


@pytest.mark.parametrize("bias", [True, False])
def test_rotary_in_fp8(bias):
    shape = Architecture(layers=1, hidden=96, heads=3, rotary=0.5, positions=32)
    projection, x = linear(96, 288, bias=bias), normal(2, 32, 96)
    how = ((projection, 3, *rotary_angles(shape, 32)), x, [projection])
    agree(in_8_bits(TRITON_8.rotary, *how), in_8_bits(PLAIN_8.rotary, *how))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_mlp_in_fp8(activation):
    up, down, x = linear(48, 160), linear(160, 48), normal(2, 40, 48)
    how = ((up, down, activation), x, [up, down])
    agree(in_8_bits(TRITON_8.mlp, *how), in_8_bits(PLAIN_8.mlp, *how), most=1e-2)


def test_product_in_fp8():
    dense, x = linear(48, 96), normal(2, 40, 48)
    for pair in zip(
        *(in_8_bits(one.product, (dense,), x, [dense]) for one in (TRITON_8, PLAIN_8)), strict=True
    ):
        assert torch.equal(*pair)


def model(**shape):
    said = {"layers": 2, "hidden": 48, "heads": 3, "vocabulary": 97, "positions": 21} | shape
    made = NeoX(Architecture(**said))
    initialize_weights(made, 0)
    with torch.no_grad():  # fresh biases are 0 and norms 1, which would hide mistakes
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def step(made, kernels, tokens, *, autocast=False, how=None, **loss):
    made.configure(kernels, **(how or {}))
    made.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = made.loss(tokens[:, :-1], tokens[:, 1:], **loss)
    found.backward()
    return [found.detach(), *(p.grad for p in made.parameters())]


@pytest.mark.parametrize(
    "shape",
    [
        {"rotary": 0.5},
        {"parallel_residual": False, "attention_bias": False},
        {"tied": True, "activation": "gelu_new", "rotary": 1.0},
    ],
)
@pytest.mark.parametrize("separator", [None, 5])
def test_models_are_the_same_with_either(shape, separator):
    torch.manual_seed(0)
    made, tokens = model(**shape), torch.randint(0, 97, (2, 22))
    names = list(made.state_dict())
    wanted = step(made, PYTORCH_KERNELS, tokens, separator=separator)
    for found, expected in zip(
        step(made, TRITON, tokens, separator=separator), wanted, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert list(made.state_dict()) == names


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [{}, {"parallel_residual": False}])
def test_lean_they_give_the_same_bits(shape, autocast):
    torch.manual_seed(0)
    made, tokens = model(**shape), torch.randint(0, 97, (2, 22))
    wanted = step(made, TRITON, tokens, autocast=autocast)
    for compiled in (False, True):
        if compiled:
            torch._dynamo.reset()
            for layer in made.gpt_neox.layers:
                layer.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        made.zero_grad()
        found = step(made, TRITON, tokens, autocast=autocast, how={"memory": "lean"})
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    torch._dynamo.reset()


def test_each_kernel_can_be_left_out():
    torch.manual_seed(0)
    made, tokens = model(), torch.randint(0, 97, (2, 22))
    wanted = step(made, PYTORCH_KERNELS, tokens)
    found = step(made, TRITON.without(*KERNEL_NAMES), tokens)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    for name in KERNEL_NAMES:
        alone = TRITON.without(*(other for other in KERNEL_NAMES if other != name))
        for found, expected in zip(step(made, alone, tokens), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_under_autocast_gradients_stay_those_of_fp32():
    torch.manual_seed(0)
    made, tokens = model(), torch.randint(0, 97, (2, 22))
    wanted = step(made, PYTORCH_KERNELS, tokens)
    found = step(made, TRITON, tokens, autocast=True)
    assert {x.dtype for x in found} == {torch.float32}
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=2e-3)
    for a, b in zip(found[1:], wanted[1:], strict=True):
        assert (a - b).norm() / b.norm() < 2e-2


@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_layer_is_one_graph_and_gives_the_same_bits(autocast):
    torch.manual_seed(0)
    made, tokens = model(), torch.randint(0, 97, (2, 22))
    eager = step(made, TRITON, tokens, autocast=autocast)
    for layer in made.gpt_neox.layers:
        layer.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = step(made, TRITON, tokens, autocast=autocast)
    assert counters["stats"]["unique_graphs"] == 1  # that of all layers
    assert all(torch.equal(*pair) for pair in zip(compiled, eager, strict=True))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(made.loss(tokens[:, :-1], tokens[:, 1:]), eager[0])
    expected = step(made, TRITON.without("norms", "mlp"), tokens, autocast=autocast)
    assert counters["stats"]["unique_graphs"] == 3  # without gradients; with other kernels
    torch._dynamo.reset()
    for layer in made.gpt_neox.layers:
        layer._compiled_call_impl = None
    found = step(made, TRITON.without("norms", "mlp"), tokens, autocast=autocast)
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=2e-2 if autocast else 1e-5, atol=1e-2 * autocast)


@pytest.mark.parametrize("shape", [{}, {"parallel_residual": False, "attention_bias": False}])
def test_in_fp8_a_model_is_one_graph_and_lean_the_same_bits(shape):
    torch.manual_seed(0)
    made, tokens = model(**shape, positions=32), torch.randint(0, 97, (2, 33))
    how = {"autocast": True, "how": {"precision": "fp8"}}
    wanted = step(made, TRITON, tokens, **how)
    seen = torch.stack(made.fp8_scaling._amaxes)
    assert (seen > 0).all()
    # Two roundings of a gradient that differ a little lie as far apart as either lies from it.
    agree(step(made, PYTORCH_KERNELS, tokens, **how), wanted, most=0.2)
    torch._dynamo.reset()
    for layer in made.gpt_neox.layers:
        layer.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    counters = torch._dynamo.utils.counters
    counters.clear()
    for memory in ("fast", "lean"):
        found = step(made, TRITON, tokens, autocast=True, how=how["how"] | {"memory": memory})
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True)), memory
        assert torch.equal(torch.stack(made.fp8_scaling._amaxes), seen)
    assert counters["stats"]["unique_graphs"] == 2  # fast and lean
    torch._dynamo.reset()
    for layer in made.gpt_neox.layers:
        layer._compiled_call_impl = None


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_divided_as_inductor_divides_it_a_compiled_layer_gives_the_same_bits(precision, memory):
    """The parts that are computed again on the way back are not those of aot_eager."""
    torch.manual_seed(0)
    made, tokens = model(positions=32), torch.randint(0, 97, (2, 33))
    how = {"autocast": True, "how": {"precision": precision, "memory": memory}}
    wanted = step(made, TRITON, tokens, **how)
    seen = torch.stack(made.fp8_scaling._amaxes) if made.fp8_scaling else None
    for layer in made.gpt_neox.layers:
        layer.compile(backend=graphs(), fullgraph=True, dynamic=False)
    found = step(made, TRITON, tokens, **how)
    for pair in zip(found, wanted, strict=True):
        torch.testing.assert_close(*pair, rtol=2e-2, atol=2e-2)
    if made.fp8_scaling:
        assert torch.equal(torch.stack(made.fp8_scaling._amaxes), seen)
    torch._dynamo.reset()
    for layer in made.gpt_neox.layers:
        layer._compiled_call_impl = None


def test_without_gradients_nothing_is_in_fp8():
    torch.manual_seed(0)
    made, tokens = model(positions=32), torch.randint(0, 97, (2, 33))
    found = []
    for precision in ("bf16", "fp8"):
        made.configure(TRITON, precision=precision)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found.append(made.loss(tokens[:, :-1], tokens[:, 1:]))
    assert torch.equal(*found)
    assert not any(made.fp8_scaling._amaxes)


def test_the_loss_compiles_too():
    head, x = linear(4, 50, bias=False), normal(1, 2, 4).requires_grad_()
    targets = torch.tensor([[3, 4]])

    def loss(x):
        return TRITON.cross_entropy(x, head, targets, "mean")

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(x)
    (found,) = torch.autograd.grad(compiled, x)
    (wanted,) = torch.autograd.grad(loss(x), x)
    assert torch.equal(found, wanted)


def test_the_trial_before_a_run_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.random.get_rng_state()
    selection._try(TRITON, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), expected)


def scaled8(which):
    scale = scaled(linear(8, 8)).scales[which]
    return scale.factor, scale.seen


def test_operators_keep_what_they_tell_torch_compile():
    """Shapes, dtypes and layouts of what they return, and what they change in place."""
    ops = torch.ops.rewarm
    x, row, cos = normal(2, 5, 48), normal(2, 5), normal(5, 4)
    parts = [normal(2, 3, 5, 16, seed=i).bfloat16() for i in range(3)]
    wide, bias = normal(48), normal(48, seed=1)
    calls = [
        (ops.turn_, (normal(2, 5, 3, 48), cos, cos)),
        (ops.pack, (*parts, cos, cos)),
        (ops.norms_forward, (x, wide, bias, wide, bias, 1e-5, torch.bfloat16)),
        (ops.norms_backward, (x, x, x, x, row, row, wide, wide)),
        (ops.gelu_forward, (x.half(), bias, True)),
        (ops.gelu_backward, (x.half(), x.half(), bias, False)),
        (ops.softmax_grad_, (normal(4, 50), torch.arange(4), True)),
        (ops.add_product_, (normal(4, 5), normal(4, 3).bfloat16(), normal(3, 5).bfloat16())),
        *((ops.round8, (normal(32, 48), *scaled8(one), one)) for one in range(3)),
        (ops.gelu_forward8, (normal(32, 48), bias, True, *scaled8(X))),
        (ops.gelu_backward8, (normal(32, 48), normal(32, 48), bias, False, *scaled8(GRADIENT))),
        (ops.pack8, (*parts, cos, cos, *scaled8(GRADIENT))),
    ]
    for op, arguments in calls:
        checks = ("test_schema", "test_faketensor", "test_autograd_registration")
        assert set(torch.library.opcheck(op.default, arguments, test_utils=checks).values()) == {
            "SUCCESS"
        }
