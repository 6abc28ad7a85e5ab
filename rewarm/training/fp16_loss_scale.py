"""The loss scale of fp16: keeps gradients from becoming 0 that are too small for fp16's exponents.

```
 loss × scale ── backward ──> gradient ÷ scale ── norm ──> finite; after `window` such, scale × 2
                                                  └──────> not finite: not applied, scale ÷ 2
```
DeepSpeed's rule, with which GPT-NeoX trained Pythia. The scale stays on the device: no step waits.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rewarm.recipe.training_settings import LossScaleSettings, PowerOfTwo

_MAX_SCALE = 2**32  # gradients are of a mean over fewer tokens; a larger scale has no use


class LossScaleState(BaseModel):
    """What a checkpoint keeps of a loss scale."""

    model_config = ConfigDict(extra="forbid")

    scale: PowerOfTwo
    calm: Annotated[int, Field(ge=0, le=2**24)] = 0
    """Steps since the last overflow or change."""
    left: Annotated[int, Field(ge=1, le=2**24)]
    """Overflows until the scale is halved, the one that halves it included."""


class LossScaler:
    """The scale of the next step's loss, as the steps so far leave it."""

    def __init__(
        self, settings: LossScaleSettings, device: torch.device, state: LossScaleState | None
    ) -> None:
        """Continues from the `state` of a checkpoint, or starts."""
        self._settings = settings
        state = state or LossScaleState(scale=settings.initial, left=settings.hysteresis)
        self.scale = torch.tensor(float(state.scale), device=device)
        """What the loss is multiplied by; a power of 2, so that dividing by it again is exact."""
        self._calm = torch.tensor(float(state.calm), device=device)
        self._left = torch.tensor(float(state.left), device=device)

    def update(self, grad_norm: Tensor) -> Tensor:
        """Sets the next step's scale; returns whether the scale caused an overflow, on the device.

        At the minimum it did not: there, something else is wrong.
        """
        settings = self._settings
        overflow = ~torch.isfinite(grad_norm)
        caused = overflow & (self.scale > settings.minimum)
        halve = overflow & (self._left <= 1)
        calm = torch.where(overflow, 0.0, self._calm + 1)
        double = calm >= settings.window
        left = torch.where(overflow, (self._left - 1).clamp(min=1), self._left)
        self._calm = torch.where(double, 0.0, calm)
        self._left = torch.where(double, float(settings.hysteresis), left)
        halved, doubled = self.scale / 2, self.scale * 2
        scale = torch.where(halve, halved, torch.where(double, doubled, self.scale))
        self.scale = scale.clamp(settings.minimum, _MAX_SCALE)
        return caused

    def state(self) -> LossScaleState:
        """Returns what a checkpoint has to keep. Waits for the device."""
        calm, left = int(self._calm.item()), int(self._left.item())
        return LossScaleState(scale=int(self.scale.item()), calm=calm, left=left)
