import pytest
import torch
from interpreted import (
    PYTORCH_FP8,
    TRITON,
    TRITON_FP8,
    check_close_in_norm,
    fp8_results,
    make_linear,
    make_model,
    normal,
)


def test_linear_gives_the_bits_of_the_reference():
    dense, x = make_linear(48, 96), normal(2, 40, 48)
    actual, expected = (
        fp8_results(kernels.linear_layer, (dense,), x, [dense])
        for kernels in (TRITON_FP8, PYTORCH_FP8)
    )
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_mlp_equals_the_reference(activation):
    up, down, x = make_linear(48, 160), make_linear(160, 48), normal(2, 40, 48)
    case = ((up, down, activation), x, [up, down])
    actual, expected = (fp8_results(kernels.mlp, *case) for kernels in (TRITON_FP8, PYTORCH_FP8))
    check_close_in_norm(actual, expected, tolerance=1e-2)


def test_without_gradients_nothing_is_computed_in_fp8():
    torch.manual_seed(0)
    model, tokens = make_model(positions=32), torch.randint(0, 97, (2, 33))
    losses = []
    for precision in ("bf16", "fp8"):
        model.configure(TRITON, precision=precision)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(model.loss(tokens[:, :-1], tokens[:, 1:]))
    assert torch.equal(*losses)
    assert not any(model.fp8_scaling._amaxes)
