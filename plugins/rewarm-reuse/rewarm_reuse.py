"""Reuse, don't retrain: go on from the base's last rate without re-warming; a plug-in of rewarm."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rewarm import Rate, Schedule, cosine
from rewarm.quantities import Share, as_written


class Reuse(Schedule):
    """Falls in a cosine from the base's last rate to a hundredth of it (arXiv:2407.07263)."""

    contract: ClassVar[int] = 1
    name: Literal["reuse"] = "reuse"
    start_lr: Rate = as_written("base")
    """The rate that the cosine starts from: by default the one at which the base ended."""
    ratio: Annotated[Share, Field(ge=0, lt=1)] = 0.01
    """The rate at the end of the run, as a part of start_lr; it holds after it."""
    switch_ratio: Annotated[Share, Field(gt=0, le=1)] = 0.2
    """Change the blend of the data where the rate has fallen to this part of start_lr."""

    @model_validator(mode="after")
    def _is_reached(self) -> Self:
        if self.switch_ratio < self.ratio:
            raise ValueError(
                f"switch_ratio {self.switch_ratio:g} is never reached; "
                f"the rate falls to ratio {self.ratio:g} of its start"
            )
        return self

    def __call__(self, progress: float) -> float:
        """Returns the rate on the way down, or the one at the end."""
        return cosine(min(progress, 1), self.start_lr, self.ratio * self.start_lr)

    def blend_switch(self) -> float:
        """Returns the progress at which the rate is `switch_ratio` of its start: 71.13 %."""
        fallen = (1 - self.switch_ratio) / (1 - self.ratio)  # of the way down: 0 to 1
        return math.acos(1 - 2 * fallen) / math.pi

    def marks(self) -> dict[str, float]:
        """Returns where to change the blend of the data."""
        return {"blend switch": self.blend_switch()}
