"""Downloads a model from the Hugging Face hub, or finds it in the hub's cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from rewarm.checkpoints.weight_files import SAFETENSORS_FILES
from rewarm.errors import CheckpointError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def download_from_hub(name: str, revision: str | None, *, weights: bool) -> Path:
    """Downloads a hub model and returns its local folder; only config.json without `weights`.

    Raises:
        CheckpointError: `name` is not a hub name, or the download failed.
    """
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and not a hub name (owner/model)")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # It logs a warning for each retry; the error below reports the last one.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    try:
        if not weights:
            return Path(hf_hub_download(name, "config.json", revision=revision)).parent
        patterns = ["*.json", "*.safetensors", "tokenizer*"]
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if not any((directory / file).exists() for file in SAFETENSORS_FILES):
            # Early Pythia revisions were published as pytorch_model.bin only.
            patterns = ["*.json", "pytorch_model*.bin", "tokenizer*"]
            directory = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        at_revision = f" at revision {revision}" if revision else ""
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{name}{at_revision}: no such folder, and downloading it from the hub failed: "
            f"{reason}; check the name and the network, or download the model first and name its "
            "folder"
        ) from None
    return directory
