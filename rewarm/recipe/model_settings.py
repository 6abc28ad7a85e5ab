"""The section `model` of a recipe: what a run starts from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from rewarm.errors import did_you_mean
from rewarm.model.architecture import PRESETS, Activation, Architecture
from rewarm.recipe.fields import Section, Text, field_problem


class ModelSettings(Section):
    """The model that the run starts from: exactly one of base, preset and architecture."""

    base: Text | None = None
    """Base model to continue from: a Hugging Face model name, a NeoX model directory, a GPT-NeoX
    library checkpoint, a rewarm checkpoint, or a run directory RUN (its last checkpoint; another
    one as RUN@40000, RUN@last, RUN@before-decay, RUN@best or RUN@ema). A path is relative to the
    folder of this file; ./OWNER/NAME is always a path, OWNER/NAME a model name unless that folder
    exists."""
    revision: Text | None = None
    """Branch, tag or commit of a base model from Hugging Face, such as step143000."""
    preset: str | None = None
    """Train newly initialized weights of a Pythia size: pythia-14m ... pythia-12b."""
    architecture: Architecture | None = None
    """Train newly initialized weights of this architecture."""
    base_lr: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    """The last learning rate of the base model, if its lineage does not record it. Rates such as
    `base` and `5x base` are multiples of it."""
    fresh: bool = False
    """Use the architecture of the base model with newly initialized weights (the from-scratch
    baseline)."""

    tokenizer: Text | None = None
    """A tokenizer with the base's entries, under the same ids, and new ones after them: a folder
    with a tokenizer.json, or that file. New rows of the embedding and of the head are the mean of
    those that the base's entries have. It is in each checkpoint. Without a base: the tokenizer of
    new weights, with which text among the corpora is sharded."""
    activation: Activation | None = None
    """The non-linearity of a base or a preset, if not its own, by Hugging Face's names: `gelu` is
    exact, `gelu_pytorch_tanh` the approximation with which GPT-NeoX trained Pythia. It is written
    to each checkpoint's config.json."""

    @model_validator(mode="after")
    def _check_one_source(self) -> ModelSettings:
        sources = [n for n in ("base", "preset", "architecture") if getattr(self, n) is not None]
        if len(sources) != 1:
            source_names = " and ".join(sources) or "none of them"
            raise ValueError(
                f"should have exactly one of base, preset, architecture; got {source_names}"
            )
        if self.preset is not None and self.preset not in PRESETS:
            names = list(PRESETS)
            message = (
                f"no preset named {self.preset!r}{did_you_mean(self.preset, names)} "
                f"(presets: {', '.join(names)})"
            )
            problem = field_problem(("preset",), message, self.preset)
            raise ValidationError.from_exception_data("Model", [problem])
        if self.base is None and (self.revision or self.fresh or self.base_lr is not None):
            raise ValueError("revision, fresh and base_lr need a base; set base, or remove them")
        if self.tokenizer is not None and self.fresh:
            raise ValueError(
                "tokenizer extends the vocabulary of a base's weights, and with fresh these are "
                "not used; remove it, or fresh"
            )
        if self.architecture is not None and self.activation is not None:
            raise ValueError("activation is for a base or a preset; set architecture.activation")
        return self

    def with_own_activation(self, architecture: Architecture) -> Architecture:
        """Returns the architecture of the base or preset, with `activation` if that is set."""
        if self.activation is None:
            return architecture
        return architecture.model_copy(update={"activation": self.activation})

    @property
    def explicit_architecture(self) -> Architecture | None:
        """The architecture in the recipe; None for a base model, whose files contain it."""
        return self.with_own_activation(PRESETS[self.preset]) if self.preset else self.architecture
