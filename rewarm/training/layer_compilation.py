"""Compiles a model's layers with torch.compile, and runs them eagerly where that fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from rewarm.errors import printable
from rewarm.model.neox import NeoX


def compile_or_run_eagerly(model: NeoX, attempt: Callable[[], object]) -> list[str]:
    """Compiles a model's layers; returns a warning where that failed and they run eagerly.

    Args:
        model: whose layers.
        attempt: runs them forward and backward, as the first step would.
    """
    torch.compiler.reset()  # PyTorch remembers at most eight variants of a layer
    model.compile_layers()
    try:
        attempt()
        return []
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, and what it calls, may raise anything
        cause = getattr(error, "inner_exception", error)
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no reason"]
        reason = f"{type(cause).__name__}: {lines[0]}"
    for module in model.modules():
        module._compiled_call_impl = None
    attempt()  # an error that has nothing to do with the compiler is raised here as it is
    return [
        printable(
            f"warning: the layers cannot be compiled and run one operation at a time, which is "
            f"slower (transformers' Pythia-410M on an H100: 104k tokens/s in place of 130k): "
            f"{reason[:200]}; fix the compiler, or set compile: false"
        )
    ]


def without_compilation(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which compiled layers run eagerly: they are compiled for one shape.

    Layers are compiled on a GPU only; elsewhere this need not import the compiler.
    """
    if device.type != "cuda":
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def run_trial_pass(
    model: NeoX,
    *,
    microbatch: int,
    context: int,
    cast: AbstractContextManager[object],
    separator_id: int | None = None,
    parts: int = 1,
) -> None:
    """Runs `parts` microbatches of zeros forward and backward, and discards their gradients."""
    device = next(model.parameters()).device
    tokens = torch.zeros(microbatch, context + 1, dtype=torch.int64, device=device)
    for _ in range(parts):
        with cast:
            loss = model.loss(tokens[:, :-1], tokens[:, 1:], separator_id=separator_id)
        torch.autograd.backward(loss)
    model.zero_grad()
    if model.fp8_scaling:
        model.fp8_scaling.discard_amaxes()
