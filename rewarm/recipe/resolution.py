"""What settings are resolved with: the length of the run, and the last rate of its base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationInfo

from rewarm.paths import short_path
from rewarm.quantities import Budget
from rewarm.recipe.fields import Section
from rewarm.recipe.model_settings import ModelSettings

_Section = TypeVar("_Section", bound=Section)

BaseRateLookup = Callable[[ModelSettings], float]
"""A function that returns a base model's last learning rate; raises ValueError if it is unknown."""


def resolution_context(info: ValidationInfo) -> dict[str, Any]:
    """Returns the budget that resolves spans, and the function that looks up the base's last rate.

    Each is None if the settings that it depends on are missing or invalid.
    """
    tokens, batch, model = (info.data.get(name) for name in ("tokens", "batch", "model"))
    context: dict[str, Any] = {"budget": None, "base_lr": None}
    if tokens is not None and batch is not None:
        context["budget"] = Budget(tokens // batch.tokens, batch.tokens)
    if model is not None and model.base is not None:
        # Looked up only if the schedule refers to it, since the base may have to be read.
        context["base_lr"] = lambda: (info.context or {}).get("base_lr", base_lr_in_recipe)(model)
    return context


def resolve_spans(section: type[_Section], value: Any, info: ValidationInfo) -> _Section:
    """Validates a section whose spans are of this run's length; another run's are resolved anew."""
    if isinstance(value, section):
        value = value.model_dump(mode="json", by_alias=True)
    return section.model_validate(value, context=resolution_context(info))


def base_lr_in_recipe(model: ModelSettings) -> float:
    """Returns `model.base_lr`.

    Raises:
        ValueError: it is not set.
    """
    if model.base_lr is None:
        base = short_path(model.base or "")
        raise ValueError(
            f"the last rate of {base} is not known; give it as model.base_lr: the schedule has "
            "multiples of it"
        )
    return model.base_lr
