"""Compares Triton kernels, interpreted on a CPU, with their PyTorch reference.

Test files that import this module are skipped unless TRITON_INTERPRET=1, which Triton reads only
once, when it is imported. tests/model/kernels/test_selection.py runs them all in such a process; to
run one: `TRITON_INTERPRET=1 pytest tests/model/kernels/test_gelu.py`.
"""

import os

import pytest
import torch
from torch import nn

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_selection.py runs it with TRITON_INTERPRET=1", allow_module_level=True)

from rewarm.model.architecture import Architecture
from rewarm.model.kernels.fp8.scaling import TensorScale
from rewarm.model.kernels.selection import PYTORCH_KERNELS, fp8_kernels, triton_kernels
from rewarm.model.neox import NeoX, initialize_weights

TRITON = triton_kernels()
TRITON_FP8, PYTORCH_FP8 = fp8_kernels(TRITON), fp8_kernels(PYTORCH_KERNELS)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# In half precision the kernels round once where the reference rounds after every operation, so the
# reference is computed in fp32 from the same rounded numbers.
TOLERANCES = {
    torch.float32: (2e-5, 2e-6),  # rtol, atol
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.float16: (2e-3, 2e-3),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_linear(inputs, outputs, *, bias=True):
    torch.manual_seed(outputs)
    return nn.Linear(inputs, outputs, bias=bias)


def outputs_and_gradients(function, inputs, parameters):
    """What a function returns, and the gradients of a fixed random combination of it."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    for parameter in parameters:
        parameter.grad = None
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    combined = sum(
        (y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum() for y in outputs
    )
    combined.backward()
    return [*outputs, *(x.grad for x in inputs), *(p.grad for p in parameters)]


def compare(kernel, reference, arguments, x, modules, dtype):
    """Compares a kernel with its reference, and with itself: a second run gives the same bits."""
    for module in modules:
        module.to(dtype)
    parameters = [p for module in modules for p in module.parameters()]
    runs = [
        outputs_and_gradients(lambda x: kernel(x, *arguments), [x.to(dtype)], parameters)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    for module in modules:
        module.float()
    expected = outputs_and_gradients(
        lambda x: reference(x, *arguments), [x.to(dtype).float()], parameters
    )
    rtol, atol = TOLERANCES[dtype]
    for actual, reference_tensor in zip(runs[0], expected, strict=True):
        # A sum over many tokens is as exact as its largest terms are.
        scaled_atol = atol * max(1.0, reference_tensor.abs().max().item() / 4)
        torch.testing.assert_close(actual.float(), reference_tensor, rtol=rtol, atol=scaled_atol)


def add_scales(linear):
    """Gives a linear layer scales that clamp nothing near 1, with amaxes of 0."""
    linear.scales = tuple(
        TensorScale(torch.tensor(factor), torch.tensor(1 / factor), torch.tensor(0.0))
        for factor in (64.0, 128.0, 2.0**14)
    )
    return linear


def scale_arguments(operand):
    """The factor and the amax of one operand, as the operators take them."""
    scale = add_scales(make_linear(8, 8)).scales[operand]
    return scale.factor, scale.amax


def fp8_results(kernel, arguments, x, linears):
    """Outputs and gradients of a kernel, and the amaxes that it measured."""
    for linear in linears:
        add_scales(linear)
    parameters = [p for linear in linears for p in linear.parameters()]
    results = outputs_and_gradients(lambda x: kernel(x, *arguments), [x], parameters)
    return [*results, *(scale.amax for linear in linears for scale in linear.scales)]


def check_close_in_norm(actual, expected, tolerance=4e-3):
    """Compares numbers that were rounded after sums in another order: a few round differently."""
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).norm() <= tolerance * b.float().norm()


def make_model(**changed):
    settings = {"layers": 2, "hidden": 48, "heads": 3, "vocabulary": 97, "positions": 21} | changed
    model = NeoX(Architecture(**settings))
    initialize_weights(model, 0)
    with torch.no_grad():  # new biases are 0 and norms 1, which would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loss_and_gradients(
    model, kernels, tokens, *, autocast=False, memory="fast", precision="fp32", **loss_arguments
):
    model.configure(kernels, memory=memory, precision=precision)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], **loss_arguments)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]
