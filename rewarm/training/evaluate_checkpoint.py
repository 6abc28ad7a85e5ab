"""Losses of checkpoints and models on shards, measured as the run that made them measured its own.

```
 recipe.yaml of the checkpoint ── context, documents ──┐
 options of `rewarm eval`, which outrank it ───────────┼──> MeasuredCheckpoint
 the model's positions, where there is no recipe ──────┘
```
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.checkpoints.find_checkpoint import (
    BaseCheckpoint,
    ignored_settings,
    locate_base,
    read_last_checkpoint,
)
from rewarm.checkpoints.load_weights import load_model
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.data.shard_source import ShardSource
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.data.tokenizer import check_model_matches_shards
from rewarm.errors import CheckpointError, RecipeError
from rewarm.model.attention_backend import choose_backend
from rewarm.recipe.saved_recipe import load_saved_document
from rewarm.runs.preconditions import check_open_files
from rewarm.training.device_setup import find_device
from rewarm.training.validation_loss import SetLoss, measure_losses

DOCUMENTS = ("attend-across", "separate")
"""What `data.documents` may be."""

_logger = logging.getLogger(__name__)


class EvaluationSettings(NamedTuple):
    """How a model reads the tokens that its loss is measured on, and where that is known from."""

    context: int
    """Tokens in a sequence."""
    context_source: str
    documents: str
    """Whether tokens attend to earlier documents: one of `DOCUMENTS`."""
    documents_source: str

    def __str__(self) -> str:
        return (
            f"context {self.context:,} ({self.context_source}), documents {self.documents} "
            f"({self.documents_source})"
        )


class MeasuredCheckpoint(NamedTuple):
    """The losses of one checkpoint or model."""

    settings: EvaluationSettings
    losses: dict[str, SetLoss]
    """By validation set."""

    def not_finite(self) -> Iterator[str]:
        """Yields the validation sets on which the loss is not finite."""
        return (name for name, result in self.losses.items() if not math.isfinite(result.loss))


class CheckpointEvaluator:
    """Measures checkpoints on named shards, which are opened and verified once for all of them."""

    def __init__(
        self,
        sources: dict[str, ShardSource],
        *,
        context: int | None = None,
        documents: str | None = None,
        microbatch: int = 8,
        tokens: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """Takes what to measure on, and how.

        Args:
            sources: the shards of each validation set, by name.
            context: tokens in a sequence; None for that of the checkpoint's recipe, or else the
                model's number of positions.
            documents: one of `DOCUMENTS`; None for that of the recipe, or else `attend-across`.
            microbatch: sequences at once.
            tokens: maximum number of tokens of each set, from its start; None for all.
            precision: of the forward pass.
        """
        self._sources = sources
        self._context, self._documents = context, documents
        self._microbatch, self._tokens, self._precision = microbatch, tokens, precision
        self._sets_by_context: dict[int, dict[str, StoredBlocks]] = {}

    def measure(self, name: str) -> MeasuredCheckpoint:
        """Returns the losses of a checkpoint, a run's last checkpoint, or any NeoX base.

        Raises:
            CheckpointError: it cannot be found or loaded, or its tokenizer is not the shards'.
            DataError: a shard folder cannot be read, or holds less than one block.
        """
        # A run that trains may delete a checkpoint while it is read, after it saved a newer one.
        return read_last_checkpoint(Path(name), self._measure) or self._measure(name)

    def _measure(self, directory: str | Path) -> MeasuredCheckpoint:
        base = locate_base(str(directory))
        for sentence in ignored_settings(base.directory):
            _logger.warning("warning: %s: %s", base.name, sentence)
        if base.kind == "rewarm checkpoint":
            verify_checkpoint(base.directory)
            read_training_state(base.directory)  # it has to be that of its step
        settings = self._settings_for(base)
        for source in self._sources.values():
            check_model_matches_shards(
                base.architecture,
                base.directory,
                source.index.tokenizer,
                str(source),
                settings.context,
            )
        sets = self._sets(settings.context)
        model, _ = load_model(base.architecture, base.directory)
        device = find_device()
        choose_backend(device, deterministic=False)
        model.to(device)
        separate = settings.documents == "separate"
        losses: dict[str, SetLoss] = {}
        for name, blocks in sets.items():  # the sets may have different end-of-text tokens
            separator_id = blocks.source.index.tokenizer.eos if separate else None
            losses |= measure_losses(
                model,
                {name: blocks},
                microbatch=self._microbatch,
                precision=self._precision,
                separator_id=separator_id,
            )
        return MeasuredCheckpoint(settings, losses)

    def _settings_for(self, base: BaseCheckpoint) -> EvaluationSettings:
        recipe = _data_settings(base) if base.kind == "rewarm checkpoint" else {}
        context, context_source = base.architecture.positions, "the model's positions"
        documents, documents_source = DOCUMENTS[0], "the default"
        if recipe:
            context, documents = recipe["context"], recipe["documents"]
            context_source = documents_source = "its recipe"
        if self._context is not None:
            context, context_source = self._context, "--context"
        if self._documents is not None:
            documents, documents_source = self._documents, "--documents"
        return EvaluationSettings(context, context_source, documents, documents_source)

    def _sets(self, context: int) -> dict[str, StoredBlocks]:
        """Returns the validation sets at a context length, opened when they are first asked for."""
        if context not in self._sets_by_context:
            sets = {
                name: StoredBlocks(source, context=context, tokens=self._tokens)
                for name, source in self._sources.items()
            }
            check_open_files({}, sets)
            self._sets_by_context[context] = sets
        return self._sets_by_context[context]


def _data_settings(base: BaseCheckpoint) -> dict[str, Any]:
    """Returns `context` and `documents` in the recipe of a checkpoint; its plug-in is not needed.

    Raises:
        CheckpointError: the recipe does not have them.
    """
    path = base.directory / "recipe.yaml"
    try:
        data = load_saved_document(path).data.get("data")
    except RecipeError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.problems[0]}") from None
    data = data if isinstance(data, dict) else {}
    context, documents = data.get("context"), data.get("documents", DOCUMENTS[0])
    if not isinstance(context, int) or context < 1 or documents not in DOCUMENTS:
        raise CheckpointError(
            f"{path}: data.context is {context!r:.60} and data.documents {documents!r:.60}; "
            f"expected a number of tokens, and {' or '.join(DOCUMENTS)}; copy the checkpoint again"
        )
    return {"context": context, "documents": documents}
