"""optimizer.safetensors, or its parts: the state of AdamW, and the amax history of fp8 scaling.

| tensor | shape | content |
|---|---|---|
| `exp_avg/NAME`, `exp_avg_sq/NAME` | as parameter NAME | the Adam moments, fp32 |
| `updates` | (1,) | optimizer updates so far |
| `fp8/amaxes` | as `model.fp8_scaling.amax_history` | only with `precision: fp8` |

The file does not contain the learning rate, so loading a checkpoint cannot change it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rewarm.checkpoints.load_weights import all_finite
from rewarm.checkpoints.part_files import OPTIMIZER, part_name, part_paths
from rewarm.errors import CheckpointError
from rewarm.model.divided_tensors import copy_whole, part_of
from rewarm.model.neox import NeoX

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_UPDATES = "updates"
_AMAXES = "fp8/amaxes"
_ADVICE = (
    "use another checkpoint, or load only the weights of this one (set optimizer.carry: false)"
)


def optimizer_state_tensors(model: NeoX, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the tensors of the optimizer state by their names in a checkpoint, not copied."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        for moment in _ADAM_MOMENTS:
            tensors[f"{moment}/{name}"] = state[moment]
        tensors[_UPDATES] = state["step"].detach().cpu().reshape(1)
    if model.fp8_scaling:
        tensors[_AMAXES] = model.fp8_scaling.amax_history
    return tensors


def load_optimizer_state(directory: Path, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
    """Loads the optimizer state of a checkpoint, and the amax history if the model uses fp8.

    Raises:
        CheckpointError: the file cannot be read, is of another model, or is not a valid state of
            AdamW.
    """
    path = directory / part_name(OPTIMIZER, 0, 1)
    tensors: dict[str, Tensor] = {}
    try:
        for path in part_paths(directory, OPTIMIZER):
            tensors |= load_file(path)  # in fact mapped: what is not used is not read
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {_ADVICE}") from None
    amaxes = tensors.pop(_AMAXES, None)
    _check_adam_tensors(tensors, model, path)
    _load_adam_tensors(tensors, model, optimizer)
    if model.fp8_scaling and amaxes is not None:  # a checkpoint in bf16 has no history
        try:
            model.fp8_scaling.load_history(amaxes)
        except ValueError as error:
            raise CheckpointError(f"{path}: {_AMAXES}: {error}; {_ADVICE}") from None


def _check_adam_tensors(tensors: dict[str, Tensor], model: NeoX, path: Path) -> None:
    expected: dict[str, Tensor] = {
        f"{moment}/{name}": parameter
        for name, parameter in model.named_parameters()
        for moment in _ADAM_MOMENTS
    }
    expected[_UPDATES] = torch.zeros(1)
    for name in sorted(expected.keys() | tensors.keys()):
        problem = _tensor_problem(name, tensors.get(name), expected.get(name))
        if problem:
            raise CheckpointError(f"{path}: {name}: {problem}; {_ADVICE}")


def _tensor_problem(name: str, tensor: Tensor | None, expected: Tensor | None) -> str | None:
    """Returns the problem with one tensor of the optimizer state; None if it is valid.

    Of a tensor that is divided among processes, only this one's part is read.
    """
    if tensor is None:
        return "missing"
    if expected is None:
        return "not part of the optimizer state of this model"
    if tensor.dtype != torch.float32 or tensor.shape != expected.shape:
        return f"{tensor.dtype} {tuple(tensor.shape)}; expected fp32 {tuple(expected.shape)}"
    tensor = part_of(tensor, expected)
    if not all_finite(tensor):
        return "not finite"
    if name.startswith("exp_avg_sq/") and (tensor < 0).any():
        return "a mean of squares below 0"
    if name == _UPDATES and (tensor.item() < 0 or tensor.item() % 1):
        return f"{tensor.item()} is not a count"
    return None


def _load_adam_tensors(
    tensors: dict[str, Tensor], model: NeoX, optimizer: torch.optim.Optimizer
) -> None:
    for name, parameter in model.named_parameters():
        updates = tensors[_UPDATES].reshape(()).clone()
        moments = {moment: torch.empty_like(parameter.detach()) for moment in _ADAM_MOMENTS}
        for moment, tensor in moments.items():
            copy_whole(tensor, tensors[f"{moment}/{name}"])
        # A fused AdamW on a GPU keeps its step count there.
        device = parameter.device if parameter.is_cuda else "cpu"
        optimizer.state[parameter] = {"step": updates.to(device), **moments}
