"""An exponential moving average of the weights, beside them (`optimizer.ema`).

```
 before step 1                            average = weights
 after each step that was applied         average += (1 - decay) · (weights - average)
```
as `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)` computes it. It is in
fp32, and divided among processes as the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rewarm.checkpoints.training_state import Averaging
from rewarm.checkpoints.write_checkpoint import AverageSource
from rewarm.model.divided_tensors import own_part
from rewarm.model.neox import NeoX


class WeightAverage:
    """The average of a model's weights; it starts at their current values."""

    def __init__(self, model: NeoX, decay: float) -> None:
        """Takes the model, and the share that the average keeps at each step."""
        self._decay = decay
        self._parameters = dict(model.named_parameters())
        self.tensors = {name: p.detach().clone() for name, p in self._parameters.items()}
        """The average by the names of the weights."""

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Moves the average towards the weights after a step; not if `skipped` is 1, else 0.

        No step waits for it: `skipped` stays on the device.
        """
        weight = (1 - skipped) * (1 - self._decay)
        for name, parameter in self._parameters.items():
            own_part(self.tensors[name]).lerp_(own_part(parameter), weight)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Exchanges the model's weights and the average, bit for bit, and back at the end."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            weight, average = own_part(parameter), own_part(self.tensors[name])
            copy = weight.clone()
            weight.copy_(average)
            average.copy_(copy)

    def to_save(self) -> AverageSource:
        """Returns what checkpoints save of it."""
        return AverageSource(self.tensors, Averaging(method="ema", decay=self._decay))
