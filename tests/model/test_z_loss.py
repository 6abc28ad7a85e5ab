"""The z-loss in plain PyTorch, in chunks and in a step, against its formula in double precision."""

import pytest
import torch
from sharded_steps import ResizedMemoryMeter
from tiny_models import random_tokens, take_tiny_step, tiny_model
from torch import nn

from rewarm.model import activation_recompute
from rewarm.model.activation_recompute import chunked_cross_entropy
from rewarm.model.kernels.pytorch_reference import cross_entropy
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.training.optimizer import build_adamw

Z_LOSS = 0.03


def formula(x, weight, targets, z_loss):
    """Cross-entropy and z-loss summed over tokens, from softmax by hand in fp64."""
    counts = targets != -100
    logits = (x.double() @ weight.double().T)[counts]
    log_z = logits.exp().sum(-1).log()
    losses = log_z - logits[torch.arange(len(logits)), targets[counts]]
    return losses.sum(), z_loss * (log_z**2).sum(), int(counts.sum())


@pytest.mark.parametrize("function", [cross_entropy, chunked_cross_entropy])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_z_loss_and_its_gradients_are_those_of_the_formula(function, reduction, monkeypatch):
    monkeypatch.setattr(activation_recompute, "_CHUNK_LOGITS", 8 * 50)  # 38 tokens: 5 chunks
    torch.manual_seed(0)
    x, head = torch.randn(2, 19, 16, requires_grad=True), nn.Linear(16, 50, bias=False)
    targets = torch.randint(0, 50, (2, 19))
    targets[0, ::3] = -100
    total = function(x, head, targets, reduction, Z_LOSS)
    actual = torch.autograd.grad(2 * total[0] + 3 * total[1], (x, head.weight))  # [1] has none
    loss, z, count = formula(x.flatten(0, 1), head.weight, targets.flatten(), Z_LOSS)
    divisor = count if reduction == "mean" else 1
    expected = torch.autograd.grad(2 * (loss + z) / divisor, (x, head.weight))
    reduced = torch.stack((loss + z, z)).detach() / divisor
    assert total.tolist() == pytest.approx(reduced.tolist())
    for pair in zip(actual, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_a_step_reports_cross_entropy_and_z_loss_and_its_gradient_has_both():
    model, tokens = tiny_model(), random_tokens()
    with torch.no_grad():
        hidden = model._hidden_states(tokens[:, :-1], None).flatten(0, 1)
    loss, z, count = formula(hidden, model.embed_out.weight, tokens[:, 1:].flatten(), Z_LOSS)
    result = take_tiny_step(model, build_adamw(model, OptimizerSettings()), tokens, z_loss=Z_LOSS)
    assert result.loss.item() == pytest.approx(loss.item() / count, rel=1e-6)
    assert result.z_loss.item() == pytest.approx(z.item() / count, rel=1e-5)
    other = tiny_model()
    logits = other(tokens[:, :-1]).flatten(0, 1)
    nll = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    (nll + Z_LOSS * (logits.logsumexp(-1) ** 2).mean()).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in other.parameters()])
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("microbatch", [1, 2])
def test_a_step_with_z_loss_does_not_depend_on_the_microbatch(microbatch):
    tokens, weights, results = random_tokens(), [], []
    for size in (4, microbatch):
        model = tiny_model()
        optimizer = build_adamw(model, OptimizerSettings())
        results.append(take_tiny_step(model, optimizer, tokens, microbatch=size, z_loss=Z_LOSS))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0].loss, results[1].loss)
    torch.testing.assert_close(results[0].z_loss, results[1].z_loss)
    torch.testing.assert_close(results[0].grad_norm, results[1].grad_norm)
    # Adam's first update is lr · sign(gradient): where that is rounding alone, its sign may differ.
    assert ((weights[0] - weights[1]).abs() > 1e-5).float().mean() < 1e-3


def test_without_a_z_loss_there_is_none():
    model = tiny_model()
    result = take_tiny_step(model, build_adamw(model, OptimizerSettings()), random_tokens())
    assert result.z_loss is None


def test_a_z_loss_takes_no_more_memory_than_the_cross_entropy():
    """Peaks of both passes, as the estimate of memory assumes."""

    def peak(*z_loss):
        x, head = torch.randn(1, 64, 16, requires_grad=True), nn.Linear(16, 4096, bias=False)
        targets = torch.randint(0, 4096, (1, 64))
        with ResizedMemoryMeter(x, head.weight, targets) as meter:
            cross_entropy(x, head, targets, "sum", *z_loss).flatten()[0].backward()
        return meter.peak

    assert peak(Z_LOSS) <= peak()
