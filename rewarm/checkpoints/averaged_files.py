"""Completes a checkpoint of averaged weights: what a checkpoint has except optimizer state."""

from __future__ import annotations

import shutil
from pathlib import Path

from rewarm.checkpoints.find_checkpoint import read_architecture
from rewarm.checkpoints.manifest import MANIFEST, MODEL_CARD, FileEntries, build_manifest
from rewarm.checkpoints.model_card import model_card
from rewarm.checkpoints.model_files import write_json
from rewarm.checkpoints.training_state import TrainingState

_NOT_COPIED = {"progress.json", MODEL_CARD, MANIFEST}


def complete_averaged(
    folder: Path, source: Path, state: TrainingState, entries: FileEntries | None = None
) -> None:
    """Adds to a folder of averaged weights everything else that a checkpoint of them has.

    Args:
        folder: with the weights, and their index if their files have other names than the source's.
        source: the checkpoint that configuration, tokenizer, recipe and weight index are copied of.
        state: the training state of the source, with how the weights were averaged.
        entries: what the manifest says of files that are already known.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in sorted(source.iterdir()):
        is_copied = path.suffix != ".safetensors" and path.name not in _NOT_COPIED
        if is_copied and path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    write_json(folder / "progress.json", state.model_dump())
    recipe_yaml = (folder / "recipe.yaml").read_text(encoding="utf-8")
    card = model_card(read_architecture(folder), state, recipe_yaml)
    (folder / MODEL_CARD).write_text(card, encoding="utf-8")
    write_json(folder / MANIFEST, build_manifest(folder, known=entries, weights_only=True))
