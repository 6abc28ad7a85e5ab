import pytest
import torch
from interpreted import FLOATS, TRITON, compare, make_linear, normal

from rewarm.model.kernels import cross_entropy
from rewarm.model.kernels.selection import PYTORCH_KERNELS


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_equals_the_reference(reduction, dtype, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_CHUNK_LOGITS", 16 * 1003)  # three chunks, one short
    head = make_linear(24, 1003, bias=False)
    targets = torch.randint(0, 1003, (2, 19), generator=torch.Generator().manual_seed(3))
    targets[0, ::3] = -100
    x, arguments = normal(2, 19, 24), (head, targets, reduction)
    compare(TRITON.cross_entropy, PYTORCH_KERNELS.cross_entropy, arguments, x, [head], dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_z_loss_equals_the_reference(reduction, dtype, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_CHUNK_LOGITS", 16 * 1003)  # three chunks, one short
    head = make_linear(24, 1003, bias=False)
    targets = torch.randint(0, 1003, (2, 19), generator=torch.Generator().manual_seed(3))
    targets[0, ::3] = -100
    x, arguments = normal(2, 19, 24), (head, targets, reduction, 0.03)
    compare(TRITON.cross_entropy, PYTORCH_KERNELS.cross_entropy, arguments, x, [head], dtype)


def test_a_vocabulary_wider_than_a_tile():
    head = make_linear(4, 20_001, bias=False)
    targets = torch.tensor([[0, 20_000, 8192, -100]])
    x, arguments = 30 * normal(1, 4, 4), (head, targets, "mean")
    reference = PYTORCH_KERNELS.cross_entropy
    compare(TRITON.cross_entropy, reference, arguments, x, [head], torch.float32)


@pytest.mark.parametrize("targets", [[-100, -100], [3, 50]])
def test_the_loss_is_nan_without_targets_and_with_an_invalid_one(targets):
    """PyTorch's mean of no losses is NaN too; NaN for an invalid target stops the run."""
    head = make_linear(4, 50, bias=False)
    x = normal(1, 2, 4)
    assert TRITON.cross_entropy(x, head, torch.tensor([targets]), "mean").isnan()


def test_only_required_gradients_are_computed():
    head = make_linear(4, 50, bias=False)
    x, targets = normal(1, 2, 4), torch.tensor([[3, 4]])
    with torch.no_grad():
        loss = TRITON.cross_entropy(x, head, targets, "sum")
    assert loss.grad_fn is None
    expected = PYTORCH_KERNELS.cross_entropy(x, head, targets, "sum").detach()
    torch.testing.assert_close(loss, expected)
    head.requires_grad_(False)
    x.requires_grad_()
    TRITON.cross_entropy(x, head, targets, "sum").backward()
    assert x.grad is not None
    assert head.weight.grad is None


def test_compiled_cross_entropy_has_the_same_gradient():
    head, x = make_linear(4, 50, bias=False), normal(1, 2, 4).requires_grad_()
    targets = torch.tensor([[3, 4]])

    def loss(x):
        return TRITON.cross_entropy(x, head, targets, "mean")

    compiled_loss = torch.compile(loss, backend="aot_eager", fullgraph=True)(x)
    (actual,) = torch.autograd.grad(compiled_loss, x)
    (expected,) = torch.autograd.grad(loss(x), x)
    assert torch.equal(actual, expected)
