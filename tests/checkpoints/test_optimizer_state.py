"""The optimizer state is stored without a learning rate, and is refused by another model."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewarm.checkpoints.optimizer_state import load_optimizer_state, optimizer_state_tensors
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX

SMALL = Architecture(layers=1, hidden=8, heads=1, vocabulary=16, positions=8)


def model_and_optimizer(steps):
    torch.manual_seed(steps)
    model = NeoX(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return model, optimizer


@pytest.fixture
def folder(tmp_path):
    save_file(optimizer_state_tensors(*model_and_optimizer(3)), tmp_path / "optimizer.safetensors")
    return tmp_path


def test_no_learning_rate_is_stored(folder):
    names = {name.split("/")[0] for name in load_file(folder / "optimizer.safetensors")}
    assert names == {"exp_avg", "exp_avg_sq", "updates"}


def test_the_state_is_loaded_bit_for_bit(folder):
    model, optimizer = model_and_optimizer(1)
    load_optimizer_state(folder, model, optimizer)
    stored = load_file(folder / "optimizer.safetensors")
    loaded = optimizer_state_tensors(model, optimizer)
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert stored["updates"].item() == 3


def test_the_state_of_another_model_is_refused(folder):
    model = NeoX(SMALL.model_copy(update={"vocabulary": 24}))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match=r"\(16, 8\); expected fp32 \(24, 8\); use another"):
        load_optimizer_state(folder, model, optimizer)
