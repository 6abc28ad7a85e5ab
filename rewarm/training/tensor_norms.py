"""Norms of each weight tensor and of its gradient (`every.norms`).

The head's norm tells of logits that grow when the learning rate is decayed far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewarm.model.divided_tensors import own_part
from rewarm.model.neox import NeoX
from rewarm.training.optimizer import sum_of_squares
from rewarm.training.processes import Processes


class TensorNorms:
    """The norms of one step. They stay on the device until `by_name` reads them."""

    def __init__(self, model: NeoX, processes: Processes) -> None:
        """Takes the model, and the processes among which its tensors may be divided."""
        self._model, self._processes = model, processes
        self._norms: Tensor | None = None

    @torch.no_grad()
    def measure(self, loss_scale: Tensor | None = None) -> None:
        """Measures the current weights and gradients; a `loss_scale` is divided out of the latter.

        Squares are summed in double precision, over the parts of a divided tensor too.
        """
        parameters = list(self._model.parameters())
        squares = torch.stack(
            [sum_of_squares([own_part(p)]) for p in parameters]
            + [sum_of_squares([own_part(p.grad)]) for p in parameters if p.grad is not None]
        )
        weights, gradients = self._processes.sum_of_parts(squares).sqrt().chunk(2)
        if loss_scale is not None:
            gradients = gradients / loss_scale
        self._norms = torch.stack([weights, gradients])

    def by_name(self) -> dict[str, float]:
        """Returns `weight_norm/NAME` and `grad_norm/NAME` by tensor. Waits for the device."""
        assert self._norms is not None
        names = [name for name, _ in self._model.named_parameters()]
        kinds = ("weight_norm", "grad_norm")
        return {
            f"{kind}/{name}": norm
            for kind, norms in zip(kinds, self._norms.float().tolist(), strict=True)
            for name, norm in zip(names, norms, strict=True)
        }
