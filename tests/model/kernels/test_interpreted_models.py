"""Whole models with interpreted Triton kernels, eager and compiled, and every operator."""

import pytest
import torch
from compiled_graphs import graphs
from interpreted import (
    TRITON,
    check_close_in_norm,
    loss_and_gradients,
    make_model,
    normal,
    scale_arguments,
)

from rewarm.model.kernels import selection
from rewarm.model.kernels.fp8.scaling import GRADIENT, INPUT
from rewarm.model.kernels.selection import KERNEL_NAMES, PYTORCH_KERNELS


@pytest.fixture(autouse=True)
def _no_compiled_graphs():
    """Starts and ends each test without graphs of others: PyTorch keeps a limited number."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_layers(model, backend="aot_eager"):
    for layer in model.gpt_neox.layers:
        layer.compile(backend=backend, fullgraph=True, dynamic=False)


def all_equal(actual, expected):
    return all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def amaxes(model):
    return torch.stack(model.fp8_scaling._amaxes)


@pytest.mark.parametrize(
    "changed",
    [
        {"rotary": 0.5},
        {"parallel_residual": False, "attention_bias": False},
        {"tied": True, "activation": "gelu_new", "rotary": 1.0},
    ],
)
@pytest.mark.parametrize("separator_id", [None, 5])
def test_loss_and_gradients_equal_those_of_plain_pytorch(changed, separator_id):
    torch.manual_seed(0)
    model, tokens = make_model(**changed), torch.randint(0, 97, (2, 22))
    names = list(model.state_dict())
    expected = loss_and_gradients(model, PYTORCH_KERNELS, tokens, separator_id=separator_id)
    actual = loss_and_gradients(model, TRITON, tokens, separator_id=separator_id)
    for pair in zip(actual, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("changed", "autocast"), [({}, True), ({"parallel_residual": False}, False)]
)
def test_lean_memory_gives_the_same_bits(changed, autocast):
    torch.manual_seed(0)
    model, tokens = make_model(**changed), torch.randint(0, 97, (2, 22))
    expected = loss_and_gradients(model, TRITON, tokens, autocast=autocast)
    eager = loss_and_gradients(model, TRITON, tokens, autocast=autocast, memory="lean")
    assert all_equal(eager, expected)
    compile_layers(model)
    compiled = loss_and_gradients(model, TRITON, tokens, autocast=autocast, memory="lean")
    assert all_equal(compiled, expected)


def test_each_kernel_can_be_replaced_by_plain_pytorch():
    torch.manual_seed(0)
    model, tokens = make_model(), torch.randint(0, 97, (2, 22))
    expected = loss_and_gradients(model, PYTORCH_KERNELS, tokens)
    actual = loss_and_gradients(model, TRITON.without(*KERNEL_NAMES), tokens)
    assert all_equal(actual, expected)
    for name in KERNEL_NAMES:
        only_one = TRITON.without(*(other for other in KERNEL_NAMES if other != name))
        actual = loss_and_gradients(model, only_one, tokens)
        for pair in zip(actual, expected, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)


def test_under_autocast_gradients_are_in_fp32():
    torch.manual_seed(0)
    model, tokens = make_model(), torch.randint(0, 97, (2, 22))
    expected = loss_and_gradients(model, PYTORCH_KERNELS, tokens)
    actual = loss_and_gradients(model, TRITON, tokens, autocast=True)
    assert {x.dtype for x in actual} == {torch.float32}
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=2e-3)
    check_close_in_norm(actual[1:], expected[1:], tolerance=2e-2)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_layer_is_one_graph_and_gives_the_same_bits(autocast):
    torch.manual_seed(0)
    model, tokens = make_model(), torch.randint(0, 97, (2, 22))
    eager = loss_and_gradients(model, TRITON, tokens, autocast=autocast)
    compile_layers(model)
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = loss_and_gradients(model, TRITON, tokens, autocast=autocast)
    assert counters["stats"]["unique_graphs"] == 1  # shared by all layers
    assert all_equal(compiled, eager)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(model.loss(tokens[:, :-1], tokens[:, 1:]), eager[0])
    fewer = TRITON.without("norms", "mlp")
    compiled = loss_and_gradients(model, fewer, tokens, autocast=autocast)
    assert counters["stats"]["unique_graphs"] == 3  # also without gradients; with other kernels
    torch._dynamo.reset()
    for layer in model.gpt_neox.layers:
        layer._compiled_call_impl = None
    eager = loss_and_gradients(model, fewer, tokens, autocast=autocast)
    for pair in zip(eager, compiled, strict=True):
        torch.testing.assert_close(*pair, rtol=2e-2 if autocast else 1e-5, atol=1e-2 * autocast)


@pytest.mark.parametrize("changed", [{}, {"parallel_residual": False, "attention_bias": False}])
def test_a_compiled_fp8_layer_is_one_graph_and_gives_the_same_bits(changed):
    torch.manual_seed(0)
    model, tokens = make_model(**changed, positions=32), torch.randint(0, 97, (2, 33))
    settings = {"autocast": True, "precision": "fp8"}
    eager = loss_and_gradients(model, TRITON, tokens, **settings)
    eager_amaxes = amaxes(model)
    assert (eager_amaxes > 0).all()
    # Two roundings of slightly different gradients are as far apart as each is from its gradient.
    reference = loss_and_gradients(model, PYTORCH_KERNELS, tokens, **settings)
    check_close_in_norm(reference, eager, tolerance=0.2)
    torch._dynamo.reset()
    compile_layers(model)
    counters = torch._dynamo.utils.counters
    counters.clear()
    for memory in ("fast", "lean"):
        compiled = loss_and_gradients(model, TRITON, tokens, **settings, memory=memory)
        assert all_equal(compiled, eager), memory
        assert torch.equal(amaxes(model), eager_amaxes)
    assert counters["stats"]["unique_graphs"] == 2  # fast and lean


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_layer_partitioned_as_by_inductor_gives_the_same_numbers(precision, memory):
    """Inductor recomputes other operators in the backward pass than aot_eager."""
    torch.manual_seed(0)
    model, tokens = make_model(layers=1, positions=32), torch.randint(0, 97, (1, 33))
    settings = {"autocast": True, "precision": precision, "memory": memory}
    eager = loss_and_gradients(model, TRITON, tokens, **settings)
    eager_amaxes = amaxes(model) if precision == "fp8" else None
    compile_layers(model, graphs())
    compiled = loss_and_gradients(model, TRITON, tokens, **settings)
    for pair in zip(compiled, eager, strict=True):
        torch.testing.assert_close(*pair, rtol=2e-2, atol=2e-2)
    if precision == "fp8":
        assert torch.equal(amaxes(model), eager_amaxes)


def test_trying_the_kernels_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.random.get_rng_state()
    selection._check_kernels_run(TRITON, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_operators_return_what_they_declare_to_torch_compile():
    """Shapes, dtypes and strides of their results, and which arguments they change in place."""
    ops = torch.ops.rewarm
    x, row, cos = normal(2, 5, 48), normal(2, 5), normal(5, 4)
    qkv = [normal(2, 3, 5, 16, seed=i).bfloat16() for i in range(3)]
    weight, bias = normal(48), normal(48, seed=1)
    calls = [
        (ops.turn_, (normal(2, 5, 3, 48), cos, cos)),
        (ops.pack, (*qkv, cos, cos)),
        (ops.norms_forward, (x, weight, bias, weight, bias, 1e-5, torch.bfloat16)),
        (ops.norms_backward, (x, x, x, x, row, row, weight, weight)),
        (ops.gelu_forward, (x.half(), bias, True)),
        (ops.gelu_backward, (x.half(), x.half(), bias, False)),
        (ops.softmax_grad_, (normal(4, 50), torch.arange(4), True, 1e-2)),
        (ops.add_matmul_, (normal(4, 5), normal(4, 3).bfloat16(), normal(3, 5).bfloat16())),
        *((ops.round8, (normal(32, 48), *scale_arguments(k), k)) for k in range(3)),
        (ops.gelu_forward8, (normal(32, 48), bias, True, *scale_arguments(INPUT))),
        (
            ops.gelu_backward8,
            (normal(32, 48), normal(32, 48), bias, False, *scale_arguments(GRADIENT)),
        ),
        (ops.pack8, (*qkv, cos, cos, *scale_arguments(GRADIENT))),
    ]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, arguments in calls:
        results = torch.library.opcheck(op.default, arguments, test_utils=checks)
        assert set(results.values()) == {"SUCCESS"}
