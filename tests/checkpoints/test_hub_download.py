"""Errors if a model cannot be downloaded; no test contacts the hub."""

import huggingface_hub
import pytest

from rewarm.checkpoints.hub_download import download_from_hub
from rewarm.errors import CheckpointError


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../model", "-x/model", "owner/"])
def test_a_name_that_is_not_a_hub_name_is_refused(name):
    with pytest.raises(CheckpointError, match="no such folder, and not a hub name"):
        download_from_hub(name, None, weights=True)


def test_a_failed_download_names_the_revision_and_the_reason(monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("no network\nand many more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    reason = "owner/model at revision step1: .*from the hub failed: no network; check the name"
    with pytest.raises(CheckpointError, match=reason):
        download_from_hub("owner/model", "step1", weights=True)


def test_pickles_are_downloaded_only_without_safetensors(monkeypatch, tmp_path):
    patterns = []

    def snapshot_download(name, *, revision, allow_patterns):
        patterns.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download_from_hub("owner/model", None, weights=True) == tmp_path
    assert ["pytorch_model*.bin" in pattern for pattern in patterns] == [False, True]
    (tmp_path / "model.safetensors").touch()
    download_from_hub("owner/model", None, weights=True)
    assert len(patterns) == 3
