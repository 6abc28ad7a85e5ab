"""Adam's state as tensors of a checkpoint, and back."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rewarm.checkpoints.load_weights import is_finite
from rewarm.checkpoints.manifest import OPTIMIZER_FILE
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX

_MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer_tensors(model: NeoX, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns Adam's state by parameter name: `exp_avg/...`, `exp_avg_sq/...` and `updates`."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        of = optimizer.state[parameter]
        for moment in _MOMENTS:
            state[f"{moment}/{name}"] = of[moment]
        state["updates"] = of["step"].detach().cpu().reshape(1)
    return state


def load_optimizer_tensors(
    model: NeoX, optimizer: torch.optim.Optimizer, state: dict[str, Tensor], source: str
) -> None:
    """Puts Adam's state back; the rate is no part of it, so none can come back with it.

    Raises:
        CheckpointError: the state is of another model, or not what Adam leaves behind.
    """
    wanted = {f"{m}/{name}": p.shape for name, p in model.named_parameters() for m in _MOMENTS}
    wanted["updates"] = torch.Size([1])
    for name in sorted(wanted.keys() | state.keys()):
        complaint = _complaint(name, state.get(name), wanted.get(name))
        if complaint:
            raise CheckpointError(
                f"{source}: {name}: {complaint}; use another checkpoint, or start from this one's "
                "weights alone (set optimizer.carry: false)"
            )
    for name, parameter in model.named_parameters():
        step = state["updates"].reshape(()).clone()
        optimizer.state[parameter] = {
            "step": step.to(parameter.device if parameter.is_cuda else "cpu"),
            **{m: state[f"{m}/{name}"].to(parameter.device).clone() for m in _MOMENTS},
        }


def _complaint(name: str, found: Tensor | None, wanted: torch.Size | None) -> str | None:
    """Returns what is wrong with one tensor of Adam's state, if anything."""
    if found is None or wanted is None:
        return "missing" if found is None else "not part of this model's state"
    if found.dtype != torch.float32 or found.shape != wanted:
        return f"{found.dtype} {tuple(found.shape)}, and wanted is fp32 {tuple(wanted)}"
    if not is_finite(found):
        return "not finite"
    if name.startswith("exp_avg_sq/") and found.min() < 0:
        return "a mean of squares below 0"
    if name == "updates" and (found.item() < 0 or found.item() % 1):
        return f"{found.item()} is no count"
    return None


_AMAXES = "fp8/amaxes"


def load_optimizer_state(directory: Path, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's Adam moments into the optimiser, and the scales of fp8 into the model.

    Raises:
        CheckpointError: they cannot be read, or are of another model.
    """
    path = directory / OPTIMIZER_FILE
    instead = (
        "use another checkpoint, or start from this one's weights alone (set optimizer.carry: "
        "false)"
    )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {instead}") from None
    amaxes = state.pop(_AMAXES, None)
    load_optimizer_tensors(model, optimizer, state, str(path))
    if model.scaling and amaxes is not None:  # those of a run in bf16 are found as a new run's
        try:
            model.scaling.load(amaxes)
        except ValueError as error:
            raise CheckpointError(f"{path}: {_AMAXES}: {error}; {instead}") from None
