"""What the sections of a recipe share: their base class, and types with their bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import (
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Strict,
    StringConstraints,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from rewarm.quantities import Count
from rewarm.recipe.yaml_document import KeyPath

# A shared type holds no Field: pydantic 2.9 to 2.11.4 keep the default of one use for all others.
Steps = Count
PositiveFloat = Annotated[float, Strict(), Gt(0), AllowInfNan(False)]
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

Role = Literal["upstream", "downstream"]
"""Whether a validation set holds what the base model was trained on, or what is new to it."""


def field_problem(key_path: KeyPath, message: str, value: object) -> InitErrorDetails:
    """Returns the problem of one setting, for pydantic to raise together with others."""
    error = PydanticCustomError("recipe", message)
    return InitErrorDetails(type=error, loc=key_path, input=value)


class Section(BaseModel):
    """A frozen group of settings; any other setting is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )
