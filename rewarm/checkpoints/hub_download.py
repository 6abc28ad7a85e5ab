"""Downloads a model from the Hugging Face hub, or finds it in the hub's cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from rewarm.checkpoints.weight_files import SAFETENSORS_FILES
from rewarm.errors import CheckpointError
from rewarm.path_contents import nearest_name, no_such_folder

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_logger = logging.getLogger(__name__)


def is_hub_name(name: str) -> bool:
    """Returns whether a name is written as one of a hub model, OWNER/NAME."""
    return _HUB_NAME.fullmatch(name) is not None


def download_from_hub(name: str, revision: str | None, *, weights: bool) -> Path:
    """Downloads a hub model and returns its local folder; only config.json without `weights`.

    Raises:
        CheckpointError: the download failed.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    path = Path(name)
    # A mistake in a path is likely then, and asking the hub takes half a minute.
    if path.parent.is_dir():
        _logger.warning(
            "%s: %s; asking the hub for a model of that name%s",
            name,
            no_such_folder(path),
            nearest_name(path),
        )

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
        raise _download_failed(name, revision, error) from None
    return directory


def find_hub_tokenizer(name: str, revision: str | None, *, download: bool) -> Path | None:
    """Returns a folder with the tokenizer of a hub model; None if it is not in the hub's cache.

    Args:
        name: of the model.
        revision: of the model.
        download: it if it is not there.

    Raises:
        CheckpointError: the download failed, or the model has no tokenizer.json.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    if isinstance(cached, str) or not download:
        return Path(cached).parent if isinstance(cached, str) else None
    try:
        patterns = ["config.json", "tokenizer*"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _download_failed(name, revision, error) from None
    return folder


def _download_failed(name: str, revision: str | None, error: Exception) -> CheckpointError:
    path, at_revision = Path(name), f" at revision {revision}" if revision else ""
    return CheckpointError(
        f"{name}{at_revision}: {no_such_folder(path)}, and no model of the hub that can be "
        f"downloaded: {_reason(error)}; correct the path (one in a recipe is relative to the "
        f"recipe's folder) or the name, or name the folder of a download{nearest_name(path)}"
    )


def _reason(error: Exception) -> str:
    """Returns why a download failed, and the library's own words for it."""
    kinds = {
        "GatedRepoError": "access to it has to be requested on its page",
        "RepositoryNotFoundError": "the hub has no model of that name, or it is private",
        "RevisionNotFoundError": "the model has no such revision",
        "RemoteEntryNotFoundError": "the model lacks a file",
        "LocalEntryNotFoundError": "the hub cannot be reached, and the model is not in its cache",
    }
    message = str(error.__cause__ or error).strip().split("\n")[0] or type(error).__name__
    kind = next((kinds[k.__name__] for k in type(error).__mro__ if k.__name__ in kinds), None)
    return f"{kind} ({message})" if kind else message
