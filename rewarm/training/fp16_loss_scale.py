"""The loss scale of fp16: gradients too small for its exponents are multiplied before they arise.

```
 loss × scale ── backward ──> gradient ÷ scale ── norm ──> finite; after `window` such, scale × 2
                                                  └──────> not finite: not applied, scale ÷ 2
```
DeepSpeed's rule, by which GPT-NeoX trained Pythia. The scale stays on the device: no step waits.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rewarm.recipe.fields import LossScaleSettings, PowerOfTwo

_LARGEST = 2**32  # gradients are of a mean over fewer tokens; beyond it, a scale has no use


class LossScaleState(BaseModel):
    """What a checkpoint keeps of a loss scale."""

    model_config = ConfigDict(extra="forbid")

    scale: PowerOfTwo
    calm: Annotated[int, Field(ge=0, le=2**24)] = 0
    """Steps since the last overflow or change."""
    left: Annotated[int, Field(ge=1, le=2**24)]
    """Overflows that the scale still bears, the one that lowers it among them."""


class LossScaler:
    """The scale of the next step's loss, as the steps so far left it."""

    def __init__(
        self, settings: LossScaleSettings, device: torch.device, memory: LossScaleState | None
    ) -> None:
        """Goes on from the `memory` of a checkpoint, or begins."""
        self._settings = settings
        then = memory or LossScaleState(scale=settings.initial, left=settings.hysteresis)
        self.scale = torch.tensor(float(then.scale), device=device)
        """What the loss is multiplied by; a power of 2, so that to divide by it again is exact."""
        self._calm = torch.tensor(float(then.calm), device=device)
        self._left = torch.tensor(float(then.left), device=device)

    def see(self, grad_norm: Tensor) -> Tensor:
        """Returns whether the scale is to blame that a gradient is not finite; on the device.

        At the minimum it is not: there, something else is wrong. Sets the next step's scale.
        """
        said = self._settings
        overflow = ~torch.isfinite(grad_norm)
        blamed = overflow & (self.scale > said.minimum)
        lower = overflow & (self._left <= 1)
        calm = torch.where(overflow, 0.0, self._calm + 1)
        higher = calm >= said.window
        left = torch.where(overflow, (self._left - 1).clamp(min=1), self._left)
        self._calm = torch.where(higher, 0.0, calm)
        self._left = torch.where(higher, float(said.hysteresis), left)
        halved, doubled = self.scale / 2, self.scale * 2
        scale = torch.where(lower, halved, torch.where(higher, doubled, self.scale))
        self.scale = scale.clamp(said.minimum, _LARGEST)
        return blamed

    def state(self) -> LossScaleState:
        """Returns what a checkpoint has to keep. Waits for the device."""
        calm, left = int(self._calm.item()), int(self._left.item())
        return LossScaleState(scale=int(self.scale.item()), calm=calm, left=left)
