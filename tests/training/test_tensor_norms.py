"""Norms of weights and gradients, against PyTorch's, and as a run records them."""

import pytest
import torch
from tiny_models import random_tokens, take_tiny_step, tiny_model
from training_runs import metrics, run

from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.training.optimizer import build_adamw
from rewarm.training.processes import ALONE
from rewarm.training.tensor_norms import TensorNorms


@pytest.mark.parametrize("loss_scale", [None, 1024.0])
def test_norms_are_of_the_weights_before_the_update_and_the_gradient_before_clipping(loss_scale):
    model, tokens = tiny_model(), random_tokens()
    reference = tiny_model()
    reference.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    norms = TensorNorms(model, ALONE)
    take_tiny_step(
        model,
        build_adamw(model, OptimizerSettings()),
        tokens,
        max_grad_norm=1e-3,
        norms=norms,
        loss_scale=None if loss_scale is None else torch.tensor(loss_scale),
    )
    expected = {}
    for name, parameter in reference.named_parameters():
        expected[f"weight_norm/{name}"] = parameter.double().norm().item()
        expected[f"grad_norm/{name}"] = parameter.grad.double().norm().item()
    assert norms.by_name() == pytest.approx(expected, rel=1e-4)


def test_a_run_records_norms_when_they_are_due(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "with", every__norms=8, every__log=8)
    run(recipe_text, tmp_path / "without", every__log=8)
    lines = metrics(tmp_path / "with", "norms")
    assert [line["step"] for line in lines] == [8, 16]
    others = [line for line in metrics(tmp_path / "with") if line["kind"] != "norms"]
    assert others == metrics(tmp_path / "without")  # they change nothing
    for line, trained in zip(lines, metrics(tmp_path / "with", "train"), strict=False):
        gradients = [norm for name, norm in line.items() if name.startswith("grad_norm/")]
        assert sum(norm**2 for norm in gradients) ** 0.5 == pytest.approx(trained["grad_norm"])
        assert len([name for name in line if name.startswith("weight_norm/")]) == len(gradients)
