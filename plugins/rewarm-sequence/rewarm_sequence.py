"""Schedules in a row, as a plug-in of rewarm: each takes its part of the run."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rewarm import Schedule, Span, schedules
from rewarm.quantities import Budget

_ROUNDING = 1e-12  # nearer than this, two places of a run are one


class Part(BaseModel):
    """A stretch of the run, and the schedule that it takes from its beginning to its end."""

    model_config = Schedule.model_config

    length: Annotated[Span, Field(gt=0)]
    """How much of the run it takes: a share of it, or tokens, or steps."""
    repeat: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    """How often the schedule is gone through within the length: a cycle."""
    # The format tells `rewarm schema` what goes here.
    schedule: Annotated[SerializeAsAny[Schedule], Field(json_schema_extra={"format": "schedule"})]
    """Any installed schedule with its settings; their spans are of this part, or of one cycle."""

    @field_validator("schedule", mode="plain", json_schema_input_type=dict[str, Any])
    @classmethod
    def _of_this_part(cls, written: Any, info: ValidationInfo) -> Schedule:
        context = {"budget": None, "base_lr": None, **(info.context or {})}
        if whole := context["budget"]:
            share = info.data.get("length", 1.0) / info.data.get("repeat", 1)
            context["budget"] = Budget(whole.steps * share, whole.tokens_per_step)
        return schedules.read(written, context)


class Sequence(Schedule):
    """Joins schedules: several re-warmings in a row, or cycles of one, in a single run."""

    contract: ClassVar[int] = 1
    name: Literal["sequence"] = "sequence"
    parts: Annotated[
        tuple[Part, ...],
        Field(
            min_length=1,
            examples=[
                [
                    {
                        "length": "60%",
                        "schedule": {"name": "rewarm", "peak_lr": 3e-4, "min_lr": 3e-5},
                    },
                    {"length": "40%", "schedule": {"name": "constant", "lr": 3e-5}},
                ]
            ],
        ),
    ]
    """The schedules, each with its length, in their order; the lengths add up to the run."""

    @model_validator(mode="after")
    def _add_up(self, info: ValidationInfo) -> Self:
        lengths = [float(part.length) for part in self.parts]
        budget = (info.context or {}).get("budget")
        # Tokens may say the whole budget, of which a run leaves out what makes no whole batch.
        in_tokens = any("token" in str(part.length.written) for part in self.parts)
        over = 1 / budget.steps if in_tokens and budget and budget.steps else 1e-9
        if not -1e-9 < math.fsum(lengths) - 1 < over:
            said = " + ".join(f"{100 * length:.10g} %" for length in lengths)
            raise ValueError(
                f"the parts should take the whole run, and take {said} = "
                f"{100 * math.fsum(lengths):.10g} % of it"
            )
        return self

    def _stretches(self) -> list[tuple[Part, float, float]]:
        """Returns each part with where it starts and where it ends; the last ends with the run."""
        inner = accumulate(float(part.length) for part in self.parts[:-1])
        ends = [*inner, 1.0]
        return list(zip(self.parts, [0.0, *ends], ends, strict=False))

    def __call__(self, progress: float) -> float:
        """Returns the rate that the part at this progress has there."""
        part, start, end = next(
            (one for one in self._stretches() if progress <= one[2] + _ROUNDING),
            self._stretches()[-1],
        )
        cycles = part.repeat * (min(progress, end) - start) / (end - start)
        within = cycles - min(part.repeat, max(1, math.ceil(cycles - _ROUNDING * part.repeat))) + 1
        return part.schedule(within if within < 1 - _ROUNDING else 1.0)

    def marks(self) -> dict[str, float]:
        """Returns where parts and cycles end, and the marks of each part, in their order."""
        places = {}
        for number, (part, start, end) in enumerate(self._stretches(), start=1):
            inner = schedules.marks(part.schedule)
            for cycle in range(part.repeat):
                of = f"part {number}" + (f", cycle {cycle + 1}" if part.repeat > 1 else "")
                here = {f"{of}: {label}": place for label, place in inner.items()}
                for label, place in {**here, f"end of {of}": 1.0}.items():
                    places[label] = min(1.0, start + (end - start) * (cycle + place) / part.repeat)
        return dict(sorted(places.items(), key=lambda mark: mark[1]))
