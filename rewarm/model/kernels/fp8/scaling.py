"""`precision: fp8`: at which scales a layer's four products are rounded to 8 bits.

```
 x        ── · scale ── e4m3 ─┬── product ── / both scales ──> bf16
 weight   ── · scale ── e4m3 ─┘                              its gradient with the weight ──> x's
 gradient ── · scale ── e5m2 ────────────────────────────────                and with x ──> weight's
    └── largest magnitude ──> seen ── after the step ──> amaxes of 16 steps ──> the next scales
```
The formats and the scale per tensor are those of arXiv:2209.05433; that a scale follows from the
steps before ("delayed scaling") is what lets a number be rounded where it is computed: no pass over
memory looks for the largest first. Embeddings, head, norms, attention, master weights and moments
are as in bf16, and so is what is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rewarm.errors import RecipeError

X, WEIGHT, GRADIENT = range(3)
"""The three tensors of a product, which index what is known of them."""
FORMATS = (torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2)
LARGEST = tuple(torch.finfo(kind).max for kind in FORMATS)

HISTORY = 16
"""Steps whose largest magnitudes a scale follows from."""

_GUESSES = (1.0, 2.0**6, 2.0**20)  # about the middle of the range, before anything was seen
_TRIES = 8
_FIRST = (8, 9)  # the compute capability of Ada


def check_fp8_device(device: torch.device) -> str:
    """Makes sure that a device has products in fp8; returns what to add to a line that names it.

    Raises:
        RecipeError: it has none.
    """
    if device.type == "cpu":
        return ", which rounds as a GPU does, slower than in bf16"
    if torch.cuda.get_device_capability(device) < _FIRST:
        raise RecipeError(
            [
                f"precision: fp8: {torch.cuda.get_device_name(device)} multiplies no 8-bit floats; "
                "wanted is a Hopper GPU (H100, H200), Ada or a later one; set precision: bf16"
            ]
        )
    return ""


class TensorScale(NamedTuple):
    """What is known of one tensor of a product: each (), fp32, read and written on the device.

    Each is a tensor of its own, no part of a larger one. A compiled layer may write to a tensor on
    its way forward or on its way back, not on both; and PyTorch 2.11 cannot compile a product whose
    `inverse` is a view.
    """

    factor: Tensor
    """The power of two that numbers are multiplied by."""
    inverse: Tensor
    """One by it."""
    seen: Tensor
    """The largest finite magnitude since the last step."""


Scales = tuple[TensorScale, TensorScale, TensorScale]
"""Of a product's three tensors."""


class ScaledLinear(nn.Linear):
    """A product of a layer, which has scales where it is made in fp8."""

    scales: Scales


def scales_of(linear: nn.Linear) -> Scales:
    """Returns the scales of a layer's product."""
    return cast(ScaledLinear, linear).scales


class Fp8Scaling:
    """The scales of all layers of a model, which follow the largest magnitudes of each step."""

    def __init__(self, layers: nn.Module) -> None:
        """Gives every product below `layers` its scales; they are guesses."""
        linears = [one for one in layers.modules() if isinstance(one, ScaledLinear)]
        device = linears[0].weight.device
        self.amaxes = torch.zeros(HISTORY, len(linears), 3, device=device)
        """The largest magnitudes of each step, the last step first; 0 where there was none."""
        self._largest = torch.tensor(LARGEST, device=device)
        self.is_guess = True
        """Whether nothing was seen yet that the scales could follow from."""
        self._guesses = torch.tensor(_GUESSES, device=device)
        self._scales: list[TensorScale] = []
        """Those of the first product, of the second, and so on."""
        for linear in linears:
            x, weight, gradient = (
                TensorScale(guess.clone(), 1 / guess, torch.zeros_like(guess))
                for guess in self._guesses
            )
            linear.scales = x, weight, gradient
            self._scales += linear.scales

    def settle(self, run: Callable[[], object]) -> None:
        """Finds the first step's scales: runs a part of it until they stay, eight times at most.

        Numbers that a guess loses, or cuts off, are missing in what is computed from them. So each
        run sees a little further than the last; with good guesses the second sees what the first
        did.
        """
        self.forget()
        for _ in range(_TRIES):
            before = self._factors()
            run()
            self.amaxes.zero_()
            self.follow()
            if torch.equal(self._factors(), before):
                break

    def follow(self, skipped: Tensor | None = None) -> None:
        """Has the scales follow what was seen since this was last called: a step.

        Of one that was `skipped`, 1 and not 0, nothing: it may have seen what is about to overflow.
        """
        step = torch.stack(self._seen).view(1, -1, len(FORMATS))
        if skipped is not None:
            step = torch.where(skipped > 0, self.amaxes[:1], step)
        self.amaxes = torch.cat((step, self.amaxes[:-1]))
        self._set()
        self.forget()

    def forget(self) -> None:
        """Drops what was seen since: it was no step."""
        torch._foreach_zero_(self._seen)

    def load(self, amaxes: Tensor) -> None:
        """Goes on from the amaxes of a checkpoint, (16, products, 3) in fp32.

        Raises:
            ValueError: they are of another model, or no magnitudes.
        """
        if amaxes.shape != self.amaxes.shape or amaxes.dtype != torch.float32:
            raise ValueError(
                f"{amaxes.dtype} {tuple(amaxes.shape)}, and wanted is fp32 "
                f"{tuple(self.amaxes.shape)}"
            )
        if not bool((amaxes.isfinite() & (amaxes >= 0)).all()):
            raise ValueError("not magnitudes: below 0, or not finite")
        self.amaxes = amaxes.to(self.amaxes.device)
        self._set()
        self.forget()

    @property
    def _seen(self) -> list[Tensor]:
        return [one.seen for one in self._scales]

    def _factors(self) -> Tensor:
        return torch.stack([one.factor for one in self._scales])

    def _set(self) -> None:
        """Takes the largest powers of two at which nothing of the last steps would be cut off.

        They lie between 2⁻¹⁰⁰ and 2¹⁰⁰, as their inverses do. Of nothing but zeros they are the
        guesses.
        """
        self.is_guess = False
        most = self.amaxes.amax(0)
        ratio = torch.where(most > 0, (self._largest / most).clamp(max=2.0**100), self._guesses)
        exponent = (torch.frexp(ratio).exponent - 1).clamp(min=-100)
        factors, inverses = (
            ((127 + one) << 23).view(torch.float32).flatten() for one in (exponent, -exponent)
        )
        known = [one.factor for one in self._scales] + [one.inverse for one in self._scales]
        torch._foreach_copy_(known, [*factors.unbind(), *inverses.unbind()])
