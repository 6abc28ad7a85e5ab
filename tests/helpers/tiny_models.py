"""A model that takes a step in a moment."""

from contextlib import nullcontext

import torch
from torch import Tensor

from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.batch_split import split_batch
from rewarm.training.loop import StepResult, take_step

TINY = Architecture(layers=2, hidden=32, heads=2, vocabulary=64, positions=16)


def tiny_model() -> NeoX:
    """Returns a model with the same new weights each time."""
    model = NeoX(TINY)
    initialize_weights(model, 3)
    return model


def random_tokens(sequences: int = 4) -> Tensor:
    """Returns sequences of 16 inputs and their targets for a tiny model."""
    return torch.randint(0, TINY.vocabulary, (sequences, TINY.positions + 1))


def take_tiny_step(
    model: NeoX,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    *,
    microbatch: int = 4,
    **changed: object,
) -> StepResult:
    """Takes a step of one microbatch at 1e-3, or with other arguments."""
    arguments = {
        "split": split_batch(len(tokens), 1, microbatch),
        "lr": 1e-3,
        "max_grad_norm": 1.0,
        "autocast_context": nullcontext(),
    } | changed
    return take_step(model, optimizer, tokens, **arguments)


def same_tensors(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Returns whether all tensors of two state dicts are the same, bit for bit."""
    return all(torch.equal(tensor, other[name]) for name, tensor in state.items())
